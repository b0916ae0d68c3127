"""Pruned and factored models are plain graphs of other shapes: every backend builds them and scores as the interpreter does."""

import numpy as np
import pytest

import burnish
from burnish import testing
from burnish.backends.table import backend
from burnish.graph.interpret import interpret
from burnish.passes.evidence import macs
from burnish.recipe import FactorRequest, Int8, Int8Tables, LowRank, Prune, Recipe, Tidy, apply

HALF = (Tidy(), Prune(keep=0.5), LowRank(rank=16), Int8(rounding="nearest"), Int8Tables(), FactorRequest())


@pytest.mark.parametrize("engine", ["native", "onnxruntime", "openvino"])
@pytest.mark.parametrize("graph", [testing.mmoe(ids=8), testing.dcn_v2(ids=8, width=8, deep=(128, 64))], ids=["mmoe", "dcn_v2"])
def test_half_of_a_model_scores_as_the_interpreter_says(graph, engine, tmp_path):
    missing = backend(engine).missing()
    if missing:
        pytest.skip(missing)
    rows, new = testing.rows(graph, 400, seed=1), testing.rows(graph, 65, seed=2)
    half = apply(graph, Recipe(HALF), rows)
    assert macs(half) < 0.7 * macs(graph)
    burnish.compile(graph, Recipe(HALF), rows, backend=engine).save(tmp_path / "artifact")
    found = burnish.load(tmp_path / "artifact").rows(new)
    for name, value in interpret(half, new).items():
        got = found[name] if isinstance(found, dict) else found
        np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-5)
