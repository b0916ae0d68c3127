"""What each way of making a trained model cheaper loses on real rows it was not calibrated on: paired, with an interval."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import burnish
from burnish.measure import quality
from models import Subject
from speed import OURS, peers

CHUNK = 4096


def measure(subject: Subject) -> dict[str, quality.Quality]:
    """Way -> quality against the model as it came, on all validation rows."""
    with tempfile.TemporaryDirectory() as folder:
        ways = peers(subject, Path(folder))
        original = _scores(ways.pop(next(iter(ways))), subject.validation)  # the first peer is the model as it came
        for recipe in (*OURS, "leaner", "int8-mixed-tables", "int8-int4-tables", "int8-naive"):
            burnish.compile(subject.graph, recipe, subject.calibration).save(Path(folder) / recipe)
            ways[f"burnish {recipe}"] = burnish.load(Path(folder) / recipe).rows
        return {
            name: quality.compare(subject.labels, original, _scores(call, subject.validation), requests=subject.requests)
            for name, call in ways.items()
        }


def _scores(call: Callable[[dict[str, np.ndarray]], np.ndarray], rows: dict[str, np.ndarray]) -> np.ndarray:
    n = len(next(iter(rows.values())))
    return np.concatenate([np.array(call({k: v[i : i + CHUNK] for k, v in rows.items()})).ravel() for i in range(0, n, CHUNK)])


def table(found: dict[str, quality.Quality]) -> list[str]:
    lines = ["| way | AUC | relative change of AUC | interval | relative change of log-loss |", "|---|---:|---:|---:|---:|"]
    for name, each in found.items():
        auc, loss = each["auc"], each["log_loss"]
        change = f"{100 * (auc.relative or 0):+.4f} % | [{100 * (auc.relative_low or 0):+.4f}, {100 * (auc.relative_high or 0):+.4f}] %"
        lines.append(f"| {name} | {auc.value:.5f} | {change} | {100 * (loss.relative or 0):+.4f} % |")
    return lines
