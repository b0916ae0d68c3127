"""Which rankers of other libraries burnish captures and compiles, whether they compute the same, and how fast.

    python benchmarks/coverage.py [--out docs/coverage.md] [--only TEXT ...] [--seconds S]

Each model is built as a user of its library would (`zoo.py`; small: 8 ids in tables of 1,000 rows of 16, 5 dense features, histories of
20), with random weights. It is captured, which holds the graph against the module; compiled natively in fp32 and int8; and the fp32
library is held against the module again at batches of 1, 2, 37 and 128 rows: *off* is the largest difference over the largest score.
Times are medians of 128 rows a call on one core, in turns with ONNX Runtime and OpenVINO, which run the graph that burnish exports, in
fp32 and in the same int8. A library that is not installed is named with the line that installs it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import burnish
from burnish.capture.parity import BATCHES, difference, random_rows
from burnish.errors import BurnishError
from burnish.graph.show import cost
from burnish.host import Host
from burnish.inputs import Input
from burnish.recipe import Int8, Recipe, apply, recipe
from native_speed import median_us, opened
from pages import footer
from zoo import PIP, Absent, Entry, entries

PEERS = {"onnxruntime": "ORT", "openvino": "OpenVINO"}
ROWS, CALLS = 128, 8
ALLOWED = 1e-5  # difference over the largest score, as at capture
INT8 = Int8(ranges="min-max", migration=0.5, rounding="nearest", loss=1.0)  # for its speed only: nothing to choose


@dataclass(frozen=True)
class Row:
    """What became of one model; `refused` is burnish's sentence when it was not built."""

    library: str
    name: str
    refused: str = ""
    nodes: int = 0
    macs: int = 0
    off: float = 0.0
    us: dict[str, float] = dataclasses.field(default_factory=dict)  # engine -> microseconds; "native fp32", "ORT int8", ...
    peers_refuse: tuple[str, ...] = ()

    def best(self, peer: bool) -> tuple[str, float] | None:
        """The fastest engine of ours or of the peers."""
        chosen = {name: us for name, us in self.us.items() if name.startswith("native") != peer}
        return min(chosen.items(), key=lambda item: item[1]) if chosen else None


def cover(entry: Entry, seconds: float = 0.1) -> Row:
    """One model through all steps; Absent when its library is not installed."""
    module, inputs = entry.make()
    plain = recipe("fp32")
    try:
        graph = burnish.capture(module, list(inputs))
        with tempfile.TemporaryDirectory() as folder:
            return _measured(entry, module, graph, plain, Path(folder), seconds)
    except BurnishError as error:
        return Row(entry.library, entry.name, refused=str(error))


def _measured(entry: Entry, module: nn.Module, graph: Any, plain: Recipe, folder: Path, seconds: float) -> Row:
    tables = [random_rows(graph.inputs, ROWS, seed=seed) for seed in range(1, CALLS + 1)]
    flat = apply(graph, plain)
    eight = apply(graph, Recipe((*plain.steps, INT8)), random_rows(graph.inputs, 512, seed=99))
    made = {"native fp32": opened(flat, "native", folder / "fp32"), "native int8": opened(eight, "native", folder / "int8")}
    off = _off(module, graph.inputs, made["native fp32"], tables)
    if off > ALLOWED:
        return Row(entry.library, entry.name, refused=f"the native fp32 library differs from the module by {off:.2g}")
    refuse = []
    for backend, told in PEERS.items():
        for precision, changed in (("fp32", flat), ("int8", eight)):
            try:
                made[f"{told} {precision}"] = opened(changed, backend, folder / f"{backend}-{precision}")
            except BurnishError as error:
                refuse.append(f"{told} {precision}: {error}")
    calls = {name: [functools.partial(engine.rows, table, ROWS) for table in tables] for name, engine in made.items()}
    us = median_us(calls, seconds)
    return Row(entry.library, entry.name, "", len(flat.order), cost(flat).macs, off, us, tuple(refuse))


def _off(module: nn.Module, inputs: Sequence[Input], engine: Any, tables: Sequence[dict[str, np.ndarray]]) -> float:
    """The largest difference from the module, relative to its largest score. A module that fails by itself on one row is passed over."""
    worst = 0.0
    for n, table in zip(BATCHES, tables):
        some = {name: np.ascontiguousarray(array[:n]) for name, array in table.items()}
        tensors = [torch.from_numpy(some[spec.name]) for spec in inputs]
        try:
            with torch.no_grad():
                want = _call(module, inputs, tensors).numpy()
        except (RuntimeError, ValueError, IndexError):
            if n > 1:
                raise
            continue
        got = next(iter(engine.rows(some, n).values()))
        worst = max(worst, difference(want.reshape(got.shape), got))
    return worst


def _call(module: nn.Module, inputs: Sequence[Input], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The module called as capture calls it."""
    from burnish.capture.calling import forms

    args, kwargs = forms(module, inputs)[0].arguments(list(tensors))
    out = module(*args, **kwargs)
    return out if isinstance(out, torch.Tensor) else out[0]


def rows(only: Sequence[str] = (), seconds: float = 0.1) -> Iterator[Row | str]:
    """A Row for each model, or, once for each library that is not installed, the line that says so."""
    absent: set[str] = set()
    for entry in entries():
        if entry.library in absent or (only and not any(text in f"{entry.library}: {entry.name}" for text in only)):
            continue
        try:
            yield cover(entry, seconds)
        except Absent as error:
            absent.add(entry.library)
            yield f"{entry.library} is not installed here: {error}"


def table(found: Sequence[Row]) -> list[str]:
    """Markdown, library by library, then what is refused with its sentence."""
    lines = []
    built = [row for row in found if not row.refused]
    for library in dict.fromkeys(row.library for row in found):
        lines += ["", f"## {library}", ""]
        lines += ["| model | nodes | MACs | off | native fp32, µs | native int8, µs | best peer, µs | peer / native |"]
        lines += ["|---|---:|---:|---:|---:|---:|---|---:|"]
        for row in (row for row in built if row.library == library):
            peer, own = row.best(peer=True), row.best(peer=False)
            assert own is not None
            told = f"{peer[1]:.0f} ({peer[0]})" if peer else "none runs it"
            ratio = f"{peer[1] / own[1]:.1f}" if peer else ""
            times = f"{row.us['native fp32']:.0f} | {row.us['native int8']:.0f}"
            lines.append(f"| {row.name} | {row.nodes} | {row.macs:,} | {row.off:.0e} | {times} | {told} | {ratio} |")
        lines += [f"\n{row.name} is refused: {row.refused}" for row in found if row.refused and row.library == library]
    refusing = [f"- {row.library} {row.name}, {why}" for row in built for why in row.peers_refuse]
    if refusing:
        lines += ["", "Peers that cannot run a model:", "", *refusing]
    return lines


def summary(found: Sequence[Row]) -> str:
    built = [row for row in found if not row.refused]
    ratios = [peer[1] / own[1] for row in built for peer, own in [(row.best(peer=True), row.best(peer=False))] if peer and own]
    faster = (
        f", faster than the best peer on {sum(r > 1 for r in ratios)}, geometric mean of the ratio {np.exp(np.mean(np.log(ratios))):.1f}"
    )
    return f"{len(built)} of {len(found)} models are built and equal{faster if ratios else ''}."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="models whose 'library: name' has one of these texts in it")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each engine of each model")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found: list[Row] = []
    absent: list[str] = []
    for row in rows(options.only, options.seconds):
        if isinstance(row, str):
            absent.append(row)
            print(row, flush=True)
            continue
        found.append(row)
        best = row.best(peer=True)
        times = f"{row.us['native fp32']:.0f} {row.us['native int8']:.0f}, best peer {best}" if row.us else row.refused
        print(f"{row.library} {row.name}: {times}", flush=True)
    print(summary(found))
    if options.out:
        command = f"python benchmarks/coverage.py --seconds {options.seconds:g}"
        opening, _, rest = (__doc__ or "").partition("\n\n")
        text = [
            "# Coverage", "", opening, "", rest.partition("\n\n")[2].strip(), "", summary(found), *table(found), "", *absent,
            footer(command, *PIP),
        ]  # fmt: skip
        options.out.write_text("\n".join(text) + "\n")
        print(options.out)


if __name__ == "__main__":
    print(Host.here().cpu)
    main()
