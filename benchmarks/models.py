"""The trained models that figures are measured on, and their rows."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import burnish
from burnish.job import Job

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Subject:
    """A trained module, its Graph, and rows: calibration from the training period, validation after it."""

    name: str
    module: Any
    graph: burnish.Graph
    calibration: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    labels: np.ndarray
    requests: np.ndarray | None

    def take(self, which: np.ndarray) -> Subject:
        """The same with these validation rows."""
        rows = {name: array[which] for name, array in self.validation.items()}
        return replace(self, validation=rows, labels=self.labels[which], requests=None if self.requests is None else self.requests[which])


def complete_journey(rows: int | None = None) -> Subject:
    """The demo's DCN-v2; `make demo` makes what it needs. `rows` limits the validation rows."""
    return _of_job("DCN-v2 on Complete Journey", ROOT / "examples" / "complete_journey", rows)


def movielens(rows: int | None = None) -> Subject:
    """A small DCN-v2 on MovieLens-100K, which is authentic data; made on first use."""
    make_movielens()
    return _of_job("DCN-v2 on MovieLens-100K", ROOT / "benchmarks" / "movielens", rows)


def make_movielens() -> None:
    """The rows of MovieLens-100K and a DCN-v2 trained on them, where they are missing."""
    data = ROOT / "data" / "movielens"
    if not (data / "dcn_v2.pt").exists():
        _module(ROOT / "benchmarks" / "movielens" / "ranker.py").train(data)


def _of_job(name: str, folder: Path, rows: int | None) -> Subject:
    job = Job.read(folder / "job.toml")
    module = _module(folder / "ranker.py").load()
    validation = job.rows("validation", rows)
    graph = burnish.capture(module, job.signature)
    return Subject(name, module, graph, job.rows("calibration").table, validation.table, validation.labels, validation.requests)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"ranker_{path.parent.name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
