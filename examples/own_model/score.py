"""Score one request and its candidates with an artifact: python examples/own_model/score.py ARTIFACT

Needs the base install alone: no torch, no compiler.
"""

import sys

import numpy as np

import burnish

scorer = burnish.load(sys.argv[1])
for spec in scorer.inputs:
    print(f"{spec.name}: {spec.dtype} {spec.shape}, {spec.side}")

rng = np.random.default_rng(0)
request = {"user": np.int64(7)}
candidates = {"item": rng.integers(0, 5000, 64), "dense": rng.random((64, 2), np.float32)}
scores = scorer(request, candidates)  # (64,) float32
print("best candidates:", np.argsort(-scores)[:5].tolist())

rows = {"user": np.full(64, 7), **candidates}  # the same as a plain table
assert np.array_equal(scorer.rows(rows), scores)
