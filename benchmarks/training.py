"""What training takes back of what few bits and pruning lose: the tables of docs/training.md.

    python benchmarks/training.py movielens
    python benchmarks/training.py complete_journey --train-rows 200000 --validation-rows 100000 --epochs 1

Scores are the torch twin's on the interpreter's integers, so they do not depend on the machine. The *expected* loss is that of AUC when
labels are drawn with the original's own probabilities: it resolves what the few real labels cannot.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch

import burnish
import models
from burnish.graph.node import Graph
from burnish.graph.to_torch import to_torch
from burnish.job import Job
from burnish.measure import quality
from burnish.passes.evidence import expected_auc
from burnish.recipe import Embeddings, Finetune, Int8, LowRank, Prune, Qat, Recipe, Step, Tidy, apply, describe

FOLDERS = {"movielens": "benchmarks/movielens", "complete_journey": "examples/complete_journey"}
CHUNK = 8192


def pairs(epochs: float) -> Iterator[tuple[tuple[Step, ...], tuple[Step, ...]]]:
    """Steps without training, and the same with it."""
    for bits in (4, 3, 2):
        yield (Int8(weight_bits=bits, loss=1.0),), (Qat(weight_bits=bits, epochs=epochs),)
    small = (Prune(loss=0.002), LowRank(loss=0.004))
    yield (*small, Int8()), (*small, Qat(epochs=epochs))
    yield (*small, Int8()), (*small, Finetune(epochs=epochs), Int8())


def scores(graph: Graph, table: dict[str, np.ndarray]) -> np.ndarray:
    """(N,)"""
    twin, n = to_torch(graph), len(next(iter(table.values())))
    with torch.no_grad():
        parts = [twin(**{k: torch.from_numpy(v[i : i + CHUNK]) for k, v in table.items()}) for i in range(0, n, CHUNK)]
    return torch.cat(parts).flatten().numpy()


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("model", choices=FOLDERS)
    asked.add_argument("--train-rows", type=int)
    asked.add_argument("--validation-rows", type=int)
    asked.add_argument("--epochs", type=float, default=3.0)
    asked.add_argument("--only", type=int, nargs="*", help="of the pairs, by their number from 0")
    options = asked.parse_args()
    torch.set_num_threads(1)
    subject = getattr(models, options.model)(options.validation_rows)
    rows = Job.read(models.ROOT / FOLDERS[options.model] / "job.toml").rows("train", options.train_rows, subject.graph.inputs)
    training = burnish.Training(rows.table, rows.labels)
    base = apply(subject.graph, Recipe((Tidy(), Embeddings())))
    original = scores(base, subject.validation)
    print(f"{subject.name}, {len(rows.labels):,} train rows, {len(original):,} validation rows, {options.epochs:g} epochs\n")
    print("| steps | relative change of AUC | interval | expected | noise in the score | seconds |\n|---|---:|---|---:|---:|---:|")
    told = set()
    for i, pair in enumerate(pairs(options.epochs)):
        for steps in pair if options.only is None or i in options.only else ():
            if steps not in told:
                told.add(steps)
                print(_row(subject, base, original, steps, training), flush=True)


def _row(subject: models.Subject, base: Graph, original: np.ndarray, steps: tuple[Step, ...], training: burnish.Training) -> str:
    began = time.monotonic()
    graph = apply(base, Recipe(steps), subject.calibration, training)
    seconds = time.monotonic() - began
    got = scores(graph, subject.validation)
    auc = quality.compare(subject.labels, original, got, requests=subject.requests)["auc"]
    p = original.astype(np.float64)
    expected = expected_auc(p, got) / expected_auc(p, original) - 1
    noise = 10 * np.log10(np.var(p) / np.mean((got - p) ** 2))
    change = f"{100 * auc.relative:+.4f} % | [{100 * auc.relative_low:+.4f}, {100 * auc.relative_high:+.4f}]"
    return f"| {describe(Recipe(steps))} | {change} | {100 * expected:+.4f} % | {noise:.1f} dB | {seconds:.0f} |"


if __name__ == "__main__":
    main()
