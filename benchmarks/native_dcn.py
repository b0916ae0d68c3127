"""The native backend on DCN-v2 at the demo's sizes, one pinned core, engines in turns, other rows each call.

    python benchmarks/native_dcn.py [seconds an engine and size]

Random weights: for speed only. Peers get a plain table; `native` gets the same table, `native, request` the request beside its candidates.
The last column says how near the native code is to the core's measured int8 peak, over the whole model and the call from Python.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from burnish.backends.table import backend
from burnish.graph.node import Graph
from burnish.graph.show import cost
from burnish.host import Host
from burnish.native import floor
from burnish.recipe import FactorRequest, apply, recipe
from burnish.testing.builders import as_request, one_request, rows
from burnish.testing.models import dcn_v2

SIZES = (1, 16, 128)
CALLS = 32


def opened(graph: Graph, name: str, folder: Path, **options: Any) -> Any:
    made = backend(name)
    for key, value in options.items():
        setattr(made, key, value)
    program = made.build(graph, Host.here(), folder)
    return made.open(folder, program, graph.inputs, 1)


def median_us(engines: dict[str, list[Callable[[], object]]], seconds: float) -> dict[str, float]:
    """Engine -> median of its calls, taken in turns of a few milliseconds."""
    taken: dict[str, list[int]] = {name: [] for name in engines}
    for calls in engines.values():
        for call in calls:
            call()
    end = time.perf_counter() + seconds * len(engines)
    while time.perf_counter() < end:
        for name, calls in engines.items():
            for call in calls:
                begin = time.perf_counter_ns()
                call()
                taken[name].append(time.perf_counter_ns() - begin)
    return {name: float(np.median(us)) / 1e3 for name, us in taken.items()}


def calls(graph: Graph, n: int, plain: dict[str, Any], factored: dict[str, Any]) -> dict[str, list[Callable[[], object]]]:
    """Engine -> calls of n rows each: a plain table for some engines, the request beside its candidates for the others."""
    tables = [one_request(graph, rows(graph, n, seed=seed)) for seed in range(CALLS)]
    found: dict[str, list[Callable[[], object]]] = {}
    for name, engine in plain.items():
        found[name] = [functools.partial(engine.rows, table, n) for table in tables]
    for name, engine in factored.items():
        halves = [[{k: np.ascontiguousarray(v) for k, v in part.items()} for part in as_request(graph, table)] for table in tables]
        found[name] = [functools.partial(engine.request, *pair, n) for pair in halves]
    return found


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    peak = floor.measure()
    print(f"{peak.host.cpu}, {peak.isa}: int8 {peak.int8_macs / 1e9:.0f} GMAC/s, bfloat16 {peak.bf16_macs / 1e9:.0f}, "
          f"float32 {peak.fp32_macs / 1e9:.0f}; memory {peak.memory_bytes / 1e9:.0f} GB/s")  # fmt: skip
    graph = dcn_v2(5, 21, 16, 3, (512, 256, 128), 10_000, parallel=True)
    calibration = rows(graph, 1000, seed=99)
    plain = {name: apply(graph, recipe(name).without(FactorRequest), calibration) for name in ("fp32", "bf16", "int8-tables")}
    macs = cost(graph).macs
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        native = {name: opened(graph, "native", at / name) for name, graph in plain.items()}
        factored = opened(apply(graph, recipe("int8-tables"), calibration), "native", at / "factored")
        peers = {
            "onnxruntime fp32": opened(plain["fp32"], "onnxruntime", at / "ort"),
            "openvino bf16": opened(plain["bf16"], "openvino", at / "ov"),
            "openvino int8": opened(plain["int8-tables"], "openvino", at / "ov8"),
        }
        print(f"{'µs a call, median':24s}" + "".join(f"{n:>10d}" for n in SIZES) + f"{'of the int8 peak':>20s}")
        table: dict[str, list[float]] = {}
        for n in SIZES:
            engines = calls(graph, n, {f"native {name}": e for name, e in native.items()} | peers, {"native int8, request": factored})
            for name, us in median_us(engines, seconds).items():
                table.setdefault(name, []).append(us)
        for name, us in table.items():
            share = f"{macs * SIZES[-1] / us[-1] * 1e6 / peak.int8_macs:19.0%}" if "native int8" in name else ""
            print(f"{name:24s}" + "".join(f"{value:10.1f}" for value in us) + share)


if __name__ == "__main__":
    main()
