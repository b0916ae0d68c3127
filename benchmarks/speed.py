"""How fast one core scores the demo's model: burnish beside its peers, in turns in one run, on different real rows each call.

Peers are given a plain table that is ready; what it costs them to repeat the request's features for each candidate is not counted.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import burnish
from burnish.measure import latency
from burnish.measure.traffic import Traffic
from models import Subject

PEERS = ("eager", "inductor", "onnxruntime_fp32", "onnxruntime_int8", "openvino_fp32", "openvino_bf16", "nncf_int8", "nncf_int8_expert")
OURS = ("fp32", "bf16", "int8", "int8-tables", "lean")
SIZES = (1, 16, 128)
Found = dict[int, dict[str, latency.Latencies]]


class Tables:
    """Traffic whose calls carry both forms: the request beside its candidates, and the plain table."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic

    def __len__(self) -> int:
        return len(self.traffic)

    def __iter__(self) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
        for i, (request, candidates) in enumerate(self.traffic):
            yield self.traffic.rows_table(i), {"request": request, "candidates": candidates}

    def count(self, i: int) -> int:
        return self.traffic.count(i)


def peers(subject: Subject, folder: Path, names: tuple[str, ...] = PEERS) -> dict[str, Callable[[dict[str, np.ndarray]], np.ndarray]]:
    """Name -> function of a plain table, for each peer that is installed."""
    found = {}
    for name in names:
        peer = importlib.import_module(f"peers.{name}")
        found[peer.NAME] = peer.caller(peer.prepare(subject.module, subject.validation, subject.calibration, folder))
    return found


def measure(subject: Subject, seconds: float, rounds: int = 10, sizes: tuple[int, ...] = SIZES) -> Found:
    """Rows a call -> engine -> latencies."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        engines: dict[str, Any] = {}
        for name, call in peers(subject, Path(folder)).items():
            engines[name] = lambda table, _, call=call: call(table)
        for recipe in OURS:
            artifact = burnish.compile(subject.graph, recipe, subject.calibration)
            artifact.save(Path(folder) / recipe)
            scorer = burnish.load(Path(folder) / recipe)
            engines[f"burnish {recipe}, plain table"] = lambda table, _, scorer=scorer: scorer.rows(table)
            engines[f"burnish {recipe}, request + candidates"] = lambda _, call, scorer=scorer: scorer(call["request"], call["candidates"])
        for n in sizes:
            traffic = Traffic.from_rows(subject.graph.inputs, subject.validation, subject.requests, n, calls=64)
            found[n] = latency.measure(engines, Tables(traffic), seconds, rounds)  # type: ignore[arg-type]
    return found


def table(found: Found) -> list[str]:
    """Markdown: median microseconds a call, and how far the medians of the rounds lie apart."""
    sizes = list(found)
    lines = ["| engine | " + " | ".join(f"{n} rows" for n in sizes) + " |", "|---|" + "---:|" * len(sizes)]
    for name in found[sizes[0]]:
        cells = [f"{found[n][name].percentile(50):.0f} (±{50 * found[n][name].spread:.0f} %)" for n in sizes]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines
