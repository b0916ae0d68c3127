"""The backend cuda beside PyTorch on one GPU: checks every engine against the interpreter, times it, and prints a table last.

    python benchmarks/gpu.py                        on a card
    python benchmarks/gpu.py --device cpu --short   that it runs, anywhere; its times say nothing about a card

Median of a request's latency in microseconds, from numpy arrays to numpy arrays, and candidates a second. Engines take turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from burnish.backends.cuda import Cuda
from burnish.backends.expand import Expand
from burnish.build import tolerance
from burnish.graph.interpret import interpret_request
from burnish.graph.node import Graph
from burnish.host import Host
from burnish.recipe import apply, recipe
from burnish.runtime.artifact import difference
from burnish.testing import as_request, dcn_v2, dlrm, rows

RECIPES = ("fp32", "bf16", "int8")
Score = Callable[[dict[str, Any], dict[str, Any], int], dict[str, np.ndarray]]


def torch_engine(graph: Graph, device: str, mode: str | None) -> Score:
    """The graph's torch twin on the device, eager or by torch.compile of that mode; request values are repeated beside the candidates."""
    import torch

    from burnish.graph.to_torch import to_torch

    module: Any = to_torch(graph).eval().to(device)
    module = torch.compile(module, mode=mode) if mode else module
    expand, (output,) = Expand(graph.inputs), [name for name, _ in graph.outputs]

    def score(request: dict[str, Any], candidates: dict[str, Any], n: int) -> dict[str, np.ndarray]:
        table = expand(request, candidates, n)
        with torch.no_grad():
            return {output: module(*(torch.from_numpy(table[spec.name]).to(device) for spec in graph.inputs)).cpu().numpy()}

    return score


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--short", action="store_true", help="one small model, few calls, no torch.compile")
    given = parser.parse_args(arguments)
    absent = Cuda(given.device).missing()
    if absent:
        print(f"not measured: {absent}", file=sys.stderr)
        return 2
    models = {"DCN-v2": dcn_v2(cardinality=100_000), "DLRM": dlrm(cardinality=100_000)}
    sizes, calls = (1, 16, 128, 512, 4096), 300
    if given.short:
        models, sizes, calls = {"DCN-v2, small": dcn_v2(5, 6, 8, 2, (32, 16), 100)}, (1, 16), 5
    lines = []
    for model, graph in models.items():
        engines: dict[str, tuple[Graph, Score]] = {"eager": (graph, torch_engine(graph, given.device, None))}
        if not given.short:
            engines["max-autotune"] = (graph, torch_engine(graph, given.device, "max-autotune"))
        for name in RECIPES:
            changed = apply(graph, recipe(name), rows(graph, 500, seed=1))
            with tempfile.TemporaryDirectory() as folder:
                program = Cuda(given.device).build(changed, Host.here(), Path(folder))
                engines[f"burnish {name}"] = (changed, Cuda(given.device).open(Path(folder), program, graph.inputs, 1).request)
        for n in sizes:
            request, candidates = as_request(graph, rows(graph, n, seed=n))
            request = {name: np.array(value) for name, value in request.items()}
            candidates = {name: np.ascontiguousarray(value) for name, value in candidates.items()}
            times: dict[str, list[float]] = {name: [] for name in engines}
            for name, (held, score) in engines.items():
                want, got = interpret_request(held, request, candidates), score(request, candidates, n)
                worst = max(difference(got[key], want[key])[0] for key in want)
                if not worst <= tolerance(held)[0]:
                    raise SystemExit(f"{model}, {name}, {n} candidates: differs from the interpreter by {worst:.3g}; nothing was timed")
            for _ in range(calls):
                for name, (_, score) in engines.items():
                    start = time.perf_counter()
                    score(request, candidates, n)
                    times[name].append(time.perf_counter() - start)
            for name, seconds in times.items():
                median = float(np.median(seconds))
                lines.append(f"| {model} | {n} | {name} | {median * 1e6:.0f} | {n / median:,.0f} |")
    print("\n".join(["| model | candidates | engine | p50, µs | candidates/s |", "|---|---|---|---|---|", *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
