"""What training takes back of what few bits and pruning lose: the tables of docs/training.md, one a model.

    python benchmarks/training.py movielens --write
    python benchmarks/training.py complete_journey --train-rows 200000 --validation-rows 100000 --write
    python benchmarks/training.py movielens --only 0 1        # of the pairs, printed; two minutes

Scores are the torch twin's on the interpreter's integers, so they do not depend on the machine. The *expected* loss is that of AUC when
labels are drawn with the original's own probabilities: it resolves what the few real labels cannot.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

import burnish
import models
from accuracy import footer
from burnish.graph.node import Graph
from burnish.graph.to_torch import to_torch
from burnish.job import Job
from burnish.measure import quality
from burnish.passes.evidence import expected_auc
from burnish.recipe import Embeddings, Finetune, Int8, LowRank, Prune, Qat, Recipe, Step, Tidy, apply, describe

FOLDERS = {"movielens": "benchmarks/movielens", "complete_journey": "examples/complete_journey"}
CHUNK = 8192


def pairs(epochs: float | Literal["auto"]) -> Iterator[tuple[tuple[Step, ...], tuple[Step, ...]]]:
    """Steps without training, and the same with it."""
    naive: dict[str, Any] = {"ranges": "min-max", "migration": 0.0, "rounding": "nearest", "bias_correction": False}
    yield (Int8(**naive, weight_bits=4, loss=1.0),), (Qat(weight_bits=4, epochs=epochs),)
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
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("model", choices=FOLDERS)
    asked.add_argument("--train-rows", type=int)
    asked.add_argument("--validation-rows", type=int)
    asked.add_argument("--epochs", type=float, help="left out: as many as the steps choose")
    asked.add_argument("--only", type=int, nargs="*", help="of the pairs, by their number from 0")
    asked.add_argument("--write", action="store_true", help="into docs/training.md, in the place of the model's table there")
    options = asked.parse_args()
    torch.set_num_threads(1)
    subject = getattr(models, options.model)(options.validation_rows)
    rows = Job.read(models.ROOT / FOLDERS[options.model] / "job.toml").rows("train", options.train_rows, subject.graph.inputs)
    training = burnish.Training(rows.table, rows.labels)
    base = apply(subject.graph, Recipe((Tidy(), Embeddings())))
    original = scores(base, subject.validation)
    lines = [f"{subject.name}, {len(rows.labels):,} train rows, {len(original):,} validation rows.", ""]
    lines += ["| steps | relative change of AUC | interval | expected | recovered | noise in the score | seconds |"]
    lines += ["|---|---:|---|---:|---:|---:|---:|"]
    print("\n".join(lines), flush=True)
    found: dict[tuple[Step, ...], Row] = {}
    for i, pair in enumerate(pairs(options.epochs or "auto")):
        for steps in pair if options.only is None or i in options.only else ():
            new = steps not in found
            found[steps] = found.get(steps) or _measured(subject, base, original, steps, training)
            if new or steps is pair[0]:
                lines.append(found[steps].line(found[pair[0]]))
                print(lines[-1], flush=True)
    lines += ["", footer(shlex.join(["python", *sys.argv]))]
    print(lines[-1])
    if options.write:
        _write(options.model, lines)


@dataclass(frozen=True)
class Row:
    """What some steps lose: of AUC in %, with its interval and what is to be expected; signal to noise of the score in dB; seconds."""

    steps: tuple[Step, ...]
    change: float
    low: float
    high: float
    expected: float
    noise_db: float
    seconds: float

    def line(self, untrained: Row) -> str:
        recovered = "" if self is untrained else f"{100 * (1 - self.expected / untrained.expected):.0f} %"
        cells = [describe(Recipe(self.steps)), f"{self.change:+.4f} %", f"[{self.low:+.4f}, {self.high:+.4f}]", f"{self.expected:+.4f} %"]
        return f"| {' | '.join(cells)} | {recovered} | {self.noise_db:.1f} dB | {self.seconds:.0f} |"


def _measured(subject: models.Subject, base: Graph, original: np.ndarray, steps: tuple[Step, ...], training: burnish.Training) -> Row:
    began = time.monotonic()
    graph = apply(base, Recipe(steps), subject.calibration, training)
    seconds = time.monotonic() - began
    got = scores(graph, subject.validation)
    auc = quality.compare(subject.labels, original, got, requests=subject.requests)["auc"]
    p = original.astype(np.float64)
    expected = expected_auc(p, got) / expected_auc(p, original) - 1
    noise = 10 * np.log10(np.var(p) / np.mean((got - p) ** 2))
    in_percent = (100 * float(value or 0) for value in (auc.relative, auc.relative_low, auc.relative_high, expected))
    return Row(steps, *in_percent, float(noise), seconds)


def _write(model: str, lines: list[str]) -> None:
    """Between the marks of the model in docs/training.md."""
    page = models.ROOT / "docs" / "training.md"
    first, last = f"<!-- {model} -->", f"<!-- end of {model} -->"
    before, _, rest = page.read_text().partition(first)
    _, _, after = rest.partition(last)
    page.write_text("\n".join([before + first, *lines, last + after]))


if __name__ == "__main__":
    main()
