"""What pruning, low rank and narrow tables save and lose, step by step, on the two DCN-v2: docs/smaller.md.

python benchmarks/smaller.py            # all validation rows, written to docs/smaller.md
python benchmarks/smaller.py --short    # the demo on 50,000 rows, printed
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import burnish
from burnish.build import build
from burnish.decided import Kept, decide
from burnish.graph.interpret import constant
from burnish.graph.node import Graph, weight
from burnish.graph.ops import Op
from burnish.graph.show import cost
from burnish.measure import latency, quality
from burnish.measure.traffic import Traffic
from burnish.passes.evidence import Judge, macs, split
from burnish.recipe import RECIPES, Int4Tables, Int8, Int8Tables, LowRank, MixedTables, Prune, Recipe, Step, apply
from models import Subject, complete_journey, movielens
from pages import footer

CLEAN, FACTOR = RECIPES["fp32"][:-1], RECIPES["fp32"][-1]
LEAN, LEANER = ([step for step in RECIPES[name] if isinstance(step, Prune | LowRank)] for name in ("lean", "leaner"))
STEPS: dict[str, tuple[Step, ...]] = {
    "as it came": (),
    "`Prune()`": (Prune(),),
    "`Prune(keep=0.5)`": (Prune(keep=0.5),),
    "`LowRank()`": (LowRank(),),
    "`LowRank(rank=32)`": (LowRank(rank=32),),
    "`Prune()`, `LowRank()`": (*LEAN,),
    "`lean`: both, int8, int8 tables": (*LEAN, Int8(), Int8Tables()),
    "`leaner`": (*LEANER, Int8(), Int8Tables()),
}
SHORT = ("as it came", "`Prune()`", "`Prune()`, `LowRank()`", "`lean`: both, int8, int8 tables")
TABLES: dict[str, Step] = {"Int8Tables": Int8Tables(), "MixedTables": MixedTables(), "Int4Tables": Int4Tables()}
SIZES = (1, 16, 128)
CHUNK = 8192
PAGE = 4096
DOUBTS = """# Smaller models without retraining

Reasons to doubt these figures: two models on two data sets are not yours; the machine was shared, so read ratios within one table; and a
model that was trained long on much data has less to spare than the demo's. No step sees validation rows: sizes are chosen on calibration
rows, `expected` is the loss on the quarter of them that nothing was fitted to, and the change of AUC is that of the native artifact on
later rows, paired, with its 95 % interval."""


class Ways:
    """Graphs and artifacts of a subject by steps; what several begin with is made once."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject, self.folder = subject, folder
        self.kept: Kept = {}
        self.judge: Judge | None = None
        self.original = self.scores(())

    def recipe(self, steps: Sequence[Step]) -> Recipe:
        return Recipe((*CLEAN, *steps, FACTOR))

    def graph(self, steps: Sequence[Step]) -> Graph:
        """Before factoring."""
        return decide(self.subject.graph, Recipe((*CLEAN, *steps)), self.subject.calibration, kept=self.kept)[0]

    def artifact(self, steps: Sequence[Step]) -> Any:
        made = functools.partial(decide, kept=self.kept)
        return build(self.subject.graph, self.recipe(steps), self.subject.calibration, apply=made)

    def scores(self, steps: Sequence[Step]) -> np.ndarray:
        rows, n = self.subject.validation, len(self.subject.labels)
        with burnish.load(self.artifact(steps).save(self.folder / str(abs(hash(tuple(steps))))).path) as scorer:
            parts = [scorer.rows({k: v[at : at + CHUNK] for k, v in rows.items()}) for at in range(0, n, CHUNK)]
        return np.concatenate(parts)

    def change(self, steps: Sequence[Step]) -> str:
        found = quality.compare(self.subject.labels, self.original, self.scores(steps), requests=self.subject.requests)["auc"]
        assert found.relative is not None and found.relative_low is not None and found.relative_high is not None
        return f"{100 * found.relative:+.4f} % [{100 * found.relative_low:+.4f}, {100 * found.relative_high:+.4f}]"

    def expected(self, steps: Sequence[Step]) -> float:
        plain = self.graph(())
        self.judge = self.judge or Judge(plain, split(plain, self.subject.calibration)[1])
        return self.judge.loss(self.graph(steps))


def shapes(ways: Ways, names: Sequence[str]) -> list[str]:
    lines = ["| steps | MACs a row | a candidate, factored | expected | change of AUC |", "|---|---:|---:|---:|---:|"]
    for name in names:
        steps = STEPS[name]
        graph = ways.graph(steps)
        told = f"{100 * ways.expected(steps):.4f} % | {ways.change(steps)}" if steps else "|"
        whole = cost(graph)
        lines.append(f"| {name} | {whole.candidate.macs + whole.request.macs:,.0f} | {macs(graph):,.0f} | {told} |")
    return lines


def times(ways: Ways, names: Sequence[str], seconds: float) -> list[str]:
    lines = ["| steps | " + " | ".join(f"{n} candidate{'s' * (n > 1)}" for n in SIZES) + " |", "|---|" + "---:|" * len(SIZES)]
    folder = ways.folder / "times"
    scorers = {}
    for i, name in enumerate(names):
        scorers[name] = burnish.load(ways.artifact(STEPS[name]).save(folder / str(i)).path)
    found = {}
    for n in SIZES:
        traffic = Traffic.from_rows(ways.subject.graph.inputs, ways.subject.validation, ways.subject.requests, n, calls=64)
        found[n] = latency.measure(scorers, traffic, seconds, 5)
    for name in names:
        lines.append(f"| {name} | " + " | ".join(f"{found[n][name].percentile(50):.1f}" for n in SIZES) + " |")
    return lines


def tables(ways: Ways) -> list[str]:
    whole = ways.artifact(()).weight_bytes
    lines = ["| steps | bytes | change of AUC |", "|---|---:|---:|"]
    for before, first in (("Int8", (Int8(),)), ("lean", (*LEAN, Int8()))):
        for name, step in TABLES.items():
            size = ways.artifact((*first, step)).weight_bytes
            lines.append(f"| {before} > {name} | 1/{whole / size:.1f} | {ways.change((*first, step))} |")
    return lines


def splits(ways: Ways) -> list[str]:
    """What `lean`'s whole expected loss buys when neurons and ranks share it in other parts: on calibration rows alone."""
    whole = sum(step.loss for step in LEAN)
    lines = ["| part for `Prune` | MACs a candidate, factored | expected |", "|---:|---:|---:|"]
    for part in (0.1, 0.2, 0.5, 0.8):
        steps = (Prune(loss=part * whole), LowRank(loss=(1 - part) * whole))
        lines.append(f"| {part:g} | {macs(ways.graph(steps)):,.0f} | {100 * ways.expected(steps):.4f} % |")
    return lines


def masked(graph: Graph, two_of_four: bool) -> Graph:
    """Half of each linear's weights set to 0: the smaller half, or two of each four in a row."""

    def half(w: np.ndarray) -> np.ndarray:
        size = np.abs(w)
        if not two_of_four or w.shape[1] % 4:
            return np.where(size >= np.median(size), w, 0).astype(np.float32)
        fours = size.reshape(len(w), -1, 4)
        stays = np.argsort(np.argsort(fours, axis=2), axis=2) >= 2
        return np.where(stays.reshape(w.shape), w, 0).astype(np.float32)

    linears = {node.inputs[1] for node in graph.order if node.op is Op.LINEAR}
    new = {node: weight(node["weight"].name, half(constant(node))) for node in linears if node.op is Op.WEIGHT}
    return graph.map(lambda node, operands: new.get(node) or (node.with_inputs(operands) if operands else node))


def masks(ways: Ways, seconds: float) -> list[str]:
    """How much faster each backend is when half of the weights are 0."""
    lines = ["| backend | half of the weights 0 | two of each four 0 |", "|---|---:|---:|"]
    plain = apply(ways.subject.graph, Recipe(CLEAN))
    traffic = Traffic.from_rows(ways.subject.graph.inputs, ways.subject.validation, ways.subject.requests, 128, calls=64)
    for backend in ("native", "onnxruntime", "openvino"):
        graphs = {"dense": plain, "half": masked(plain, False), "2:4": masked(plain, True)}
        scorers = {}
        for name, graph in graphs.items():
            made = burnish.compile(graph, Recipe((FACTOR,) if backend == "native" else (), backend=backend), ways.subject.calibration)
            scorers[name] = burnish.load(made.save(ways.folder / f"{backend}-{name[:4].replace(':', '-')}").path)
        found = latency.measure(scorers, traffic, seconds, 5)
        ratios = [latency.faster(found[name], than=found["dense"]) for name in ("half", "2:4")]
        lines.append(f"| {backend} | " + " | ".join(f"{r.value:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in ratios) + " |")
    return lines


def pages() -> list[str]:
    """What sorting a table by how often its rows are read saves in memory, and what the map from ids to rows costs: on a made table, whose
    ids stand in random order. 20 bytes a row (int8, width 16), ids by a power law, a million lookups."""
    lines = ["| rows | exponent | resident as they come | hot rows first | and the map of 4 bytes an id |", "|---:|---:|---:|---:|---:|"]
    random = np.random.default_rng(0)
    for rows in (1_000_000, 10_000_000):
        for exponent in (0.8, 1.05, 1.3):
            chance = np.arange(1, rows + 1) ** -exponent
            read = np.searchsorted(np.cumsum(chance) / chance.sum(), random.random(1_000_000))  # the rank of each row that is read
            at = random.permutation(rows)[read]
            came, hot, lookup = (len(np.unique(of * size // PAGE)) * PAGE / 1e6 for of, size in ((at, 20), (read, 20), (at, 4)))
            lines.append(f"| {rows:,} | {exponent} | {came:.0f} MB | {hot:.0f} MB | {hot + lookup:.0f} MB |")
    return lines


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--short", action="store_true")
    asked.add_argument("--seconds", type=float, default=1.0, help="for each engine and number of candidates")
    asked.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "smaller.md")
    options = asked.parse_args()
    names = SHORT if options.short else tuple(STEPS)
    lines = [DOUBTS]
    line = footer(" ".join(["python", *sys.argv]))
    for subject in (complete_journey(50_000),) if options.short else (complete_journey(), movielens()):
        with tempfile.TemporaryDirectory() as folder:
            ways = Ways(subject, Path(folder))
            counts = f"{len(subject.labels):,} validation rows, {len(subject.calibration['ids']):,} calibration rows."
            lines += [
                "",
                f"## {subject.name}",
                "",
                counts,
                "",
                *shapes(ways, names),
                "",
                "Median microseconds a call of the native artifact:",
                "",
            ]
            lines += times(ways, names, options.seconds)
            if not options.short:
                lines += ["", "Bytes of the artifact's weights, the float32 model being 1:", "", *tables(ways)]
                lines += ["", (splits.__doc__ or ""), "", *splits(ways)]
            if subject.name.endswith("Journey"):
                lines += [
                    "",
                    "## Masks",
                    "",
                    "Throughput with zeros over throughput without, 128 candidates, float32, lowest and highest round:",
                    "",
                ]
                lines += masks(ways, options.seconds)
    lines += ["", "## Hot rows first", "", (pages.__doc__ or "").replace("\n    ", "\n"), "", *pages(), "", line]
    text = "\n".join(lines) + "\n"
    if options.short:
        print(text)
    else:
        options.out.write_text(text)
        print(options.out)


if __name__ == "__main__":
    main()
