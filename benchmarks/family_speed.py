"""How fast one core scores the usual families at natural sizes: the native backend beside ONNX Runtime and OpenVINO, in turns in one run.

    python benchmarks/family_speed.py [--out docs/families.md] [--seconds S] [--family NAME ...]

26 ids in tables of 10,000 rows of 16, 13 dense features, half of both of the request, a history of 50 (`families.py`, random weights: for
speed only). Each call scores other rows. Peers run the graph that burnish exports as ONNX, fp32 and int8 (the same QDQ quantization as
the native int8), one thread, from a plain table that is ready: repeating the request for each candidate is not counted against them.
`burnish` is given the request beside its candidates, as it is served, and `burnish, plain` the peers' table.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import burnish
from burnish.errors import BurnishError
from burnish.graph.node import Graph
from burnish.graph.show import cost
from burnish.host import Host
from burnish.inputs import Input
from burnish.recipe import FactorRequest, Recipe, apply, recipe
from burnish.testing.builders import rows
from families import FAMILIES, WITH_HISTORY, Fields
from native_speed import calls, median_us, opened
from pages import footer

SIZES = (1, 16, 128)
CHOSEN = ("DIN", "AutoInt", "DeepFM", "FiBiNET", "MMoE", "two-tower")
PEERS = ("onnxruntime", "openvino")
FIELDS = Fields((10_000,) * 26, 13, tuple(range(13)), tuple(range(6)), item=13)
HISTORY = 50


def ranker(name: str) -> Graph:
    """The family at these sizes, captured."""
    torch.manual_seed(0)
    side = lambda own, n: ["request" if i in own else "candidate" for i in range(n)]  # noqa: E731
    n = len(FIELDS.cardinality)
    inputs = [
        Input("ids", "int64", (n,), side(FIELDS.request_ids, n), FIELDS.cardinality),
        Input("dense", "float32", (FIELDS.dense,), side(FIELDS.request_dense, FIELDS.dense)),
        Input("history", "int64", (HISTORY,), "request", FIELDS.cardinality[FIELDS.item]),
    ]
    return burnish.capture(FAMILIES[name](FIELDS).eval(), inputs if name in WITH_HISTORY else inputs[:2])


def engines(graph: Graph, folder: Path, names: tuple[str, ...] = ("fp32", "int8")) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """(engines of a plain table, engines of a request, what refuses and why), by name."""
    calibration = rows(graph, 1000, seed=99)
    plain: dict[str, Any] = {}
    factored: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name in names:
        flat = apply(graph, recipe(name).without(FactorRequest), calibration)
        plain[f"burnish {name}, plain"] = opened(flat, "native", folder / f"plain-{name}")
        split = apply(graph, Recipe((*recipe(name).without(FactorRequest).steps, FactorRequest())), calibration)
        factored[f"burnish {name}"] = opened(split, "native", folder / f"native-{name}")
        for peer in PEERS:
            try:
                plain[f"{peer} {name}"] = opened(flat, peer, folder / f"{peer}-{name}")
            except BurnishError as error:
                refused[f"{peer} {name}"] = str(error)
    return plain, factored, refused


def measure(name: str, seconds: float) -> tuple[dict[int, dict[str, float]], int]:
    """Rows a call -> engine -> median microseconds; and the multiply-adds of a candidate."""
    graph = ranker(name)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        plain, factored, refused = engines(graph, Path(folder))
        for engine, why in refused.items():
            print(f"{name}: {engine} does not run it: {why}")
        for n in SIZES:
            found[n] = median_us(calls(graph, n, plain, factored), seconds)
    return found, cost(graph).macs


def peer_names(times: dict[str, float]) -> list[str]:
    return [engine for engine in times if not engine.startswith("burnish")]


def ratio(times: dict[str, float]) -> float:
    """The best peer's time over ours."""
    return min(times[e] for e in peer_names(times)) / min(us for e, us in times.items() if e not in peer_names(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each engine and number of rows")
    parser.add_argument("--family", nargs="*", default=list(CHOSEN))
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    lines, ratios = [], []
    for name in options.family:
        found, macs = measure(name, options.seconds)
        head = ["engine", *(f"{n} candidate{'s' * (n > 1)}" for n in SIZES)]
        lines += [f"## {name}", "", f"{macs:,} multiply-adds a candidate. Microseconds a call, median.", ""]
        lines += ["| " + " | ".join(head) + " |", "|---|" + "---:|" * len(SIZES)]
        for engine in found[SIZES[0]]:
            lines.append(f"| {engine} | " + " | ".join(f"{found[n][engine]:.1f}" for n in SIZES) + " |")
        own = [ratio(found[n]) for n in SIZES]
        ratios += own
        lines += ["| **best peer over best of burnish** | " + " | ".join(f"**{r:.2f}**" for r in own) + " |", ""]
        print("\n".join(lines[-len(found[SIZES[0]]) - 7 :]), flush=True)
    mean = float(np.exp(np.mean(np.log(ratios))))
    summary = f"Best peer over best of burnish: geometric mean {mean:.2f}, least {min(ratios):.2f}, over {len(ratios)} cells."
    print(summary)
    if options.out:
        command = f"python benchmarks/family_speed.py --seconds {options.seconds:g}"
        told = (__doc__ or "").split("\n\n", 2)
        text = ["# Families", "", told[0], "", told[2].strip(), "", summary, "", *lines, footer(command)]
        options.out.write_text("\n".join(text) + "\n")
        print(options.out)


if __name__ == "__main__":
    print(Host.here().cpu)
    main()
