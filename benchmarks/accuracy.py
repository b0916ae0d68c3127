"""What each way of making a trained ranker cheaper loses on rows it was not calibrated on, over rankers of many families: docs/accuracy.md.

    make accuracy                                                        # all; trains what is missing; goes on where it was stopped
    python benchmarks/accuracy.py --only "DCN-v2" "MovieLens-100K: DCN-v2"
    python benchmarks/accuracy.py --short                                # the two DCN-v2, printed

Scores are those of built artifacts, and of other tools' own engines, on the same rows; nothing is set by hand for a model. The scores of
each way are kept under data/accuracy/, named by what decides them, so a second run measures only what changed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import functools
import hashlib
import importlib
import json
import logging
import multiprocessing
import os
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import burnish
import models
import rankers
from burnish import recipe as recipes
from burnish.graph.node import Graph
from burnish.graph.show import cost
from burnish.host import versions
from burnish.measure import quality
from burnish.passes import evidence
from models import ROOT, Subject
from pages import footer

KEPT = ROOT / "data" / "accuracy"
CHUNK = 4096
ORIGINAL = "eager"
PEERS = ("onnxruntime_int8", "nncf_int8", "nncf_int8_expert", "torchao_int8", "neural_compressor_int8")
RECIPES = (
    "bf16",
    "bf16-tables",
    "fp16",
    "fp16-tables",
    "int8-tables",
    "int8-mixed-tables",
    "int8-int4-tables",
    "lean",
    "leaner",
    "int8-naive",
)
OURS = "int8-tables"
ALLOWED = {
    "fp16": 0.01,
    "fp16-tables": 0.01,
    "bf16": 0.05,
    "bf16-tables": 0.05,
    OURS: 0.02,
    "int8-int4-tables": 0.1,
    "lean": 0.1,
}  # % of AUC
DCN, DCN_FILMS = "Complete Journey: DCN-v2", "MovieLens-100K: DCN-v2"

MADE_HARD, HARD_ALLOWED = ", made hard", 0.1
HARD = (f"{rankers.JOURNEY}: Wide & Deep{MADE_HARD}", DCN + MADE_HARD)


@dataclass(frozen=True)
class Scored:
    """What one way gives: scores (N,) or (N, outputs), and what it costs, or `failed`, the sentence why it gives none."""

    scores: np.ndarray
    facts: dict[str, Any]
    failed: str = ""


def subject(name: str) -> Subject:
    """A trained ranker by its name; the two DCN-v2 are those of the demo and of the other benchmarks, on the same rows as the rest."""
    if name.endswith(MADE_HARD):
        easy = subject(name.removesuffix(MADE_HARD))
        module = hardened(easy.module)
        return replace(easy, name=name, module=module, graph=burnish.capture(module, list(easy.graph.inputs)))
    if name in (DCN, DCN_FILMS):
        made = models.complete_journey() if name == DCN else models.movielens()
        return made.take(made.requests % 2 == 0) if name == DCN else made
    return rankers.subject(name)


def hardened(module: torch.nn.Module, channels: int = 8, times: float = 100.0) -> torch.nn.Module:
    """The same function with the `channels` largest neurons of its deep net's first layer `times` as large; what reads them is divided."""
    module = copy.deepcopy(module)
    first, second = [layer for layer in module.deep if isinstance(layer, torch.nn.Linear)][:2]  # type: ignore[union-attr]
    at = first.weight.norm(dim=1).topk(channels).indices
    with torch.no_grad():
        first.weight[at] *= times
        first.bias[at] *= times
        second.weight[:, at] /= times
    return module


def names() -> list[str]:
    return [DCN, *rankers.names(), DCN_FILMS, *HARD]


class Ways:
    """Every way of computing one model, each measured once and kept."""

    def __init__(self, name: str) -> None:
        self.subject = subject(name)
        state = self.subject.module.state_dict()
        self.weights = _digest(*(value.numpy().tobytes() for value in state.values()))
        self.graphs: dict[tuple[recipes.Step, ...], Graph] = {}
        self.folder = KEPT / rankers.path(name).stem
        self.folder.mkdir(parents=True, exist_ok=True)

    def original(self) -> np.ndarray:
        return self.peer(ORIGINAL).scores

    def peer(self, name: str) -> Scored:
        peer = importlib.import_module(f"peers.{name}")
        tools = versions("torch", "onnxruntime", "openvino", "nncf", "torchao", "neural-compressor")

        def make() -> Scored:
            with tempfile.TemporaryDirectory() as folder, _quiet():
                example = self.subject.validation
                call = peer.caller(peer.prepare(self.subject.module, example, self.subject.calibration, Path(folder)))
                return Scored(self._scores(call), {})

        source = Path(peer.__file__ or "").read_bytes()
        return replace(self._kept(name, make, source, json.dumps(tools).encode(), may_fail=True), facts={"name": peer.NAME})

    def recipe(self, name: str) -> Scored:
        chosen = recipes.recipe(name)

        def make() -> Scored:
            changed = self._applied(chosen.steps)
            with tempfile.TemporaryDirectory() as folder:
                artifact = burnish.compile(changed, "original", self.subject.calibration)
                artifact.save(Path(folder) / "artifact")
                with burnish.load(Path(folder) / "artifact") as scorer:
                    scores = self._scores(scorer.rows)
            bytes_, table_bytes = artifact.manifest.programs[0].weight_bytes, cost(changed).table_bytes
            return Scored(scores, {"macs": evidence.macs(changed), "bytes": bytes_, "table_bytes": table_bytes})

        return self._kept(name, make, chosen.to_json().encode(), _sources())

    def _applied(self, steps: tuple[recipes.Step, ...]) -> Graph:
        """The graph after these steps; recipes that begin alike share what they share."""
        if steps and steps not in self.graphs:
            self.graphs[steps] = recipes.apply(self._applied(steps[:-1]), recipes.Recipe(steps[-1:]), self.subject.calibration)
        return self.graphs[steps] if steps else self.subject.graph

    def _scores(self, call: Callable[[dict[str, np.ndarray]], Any]) -> np.ndarray:
        rows = self.subject.validation
        n = len(next(iter(rows.values())))
        parts = []
        for i in range(0, n, CHUNK):
            got = call({k: v[i : i + CHUNK] for k, v in rows.items()})
            got = next(iter(got.values())) if isinstance(got, dict) else got
            parts.append(np.array(got).reshape(min(CHUNK, n - i), -1))
        whole = np.concatenate(parts)
        return whole[:, 0] if whole.shape[1] == 1 else whole

    def _kept(self, name: str, make: Callable[[], Scored], *decides: bytes, may_fail: bool = False) -> Scored:
        """What `make` gives, from the file if it was made before from the same weights, rows and `decides`."""
        rows = (array[:: max(1, len(array) // 64)].tobytes() for array in self.subject.validation.values())
        path = self.folder / f"{name}-{_digest(self.weights.encode(), *rows, *decides)}.npz"
        if not path.exists():
            try:
                made = make()
            except Exception as error:  # other tools raise what they like; that one cannot do a model is a finding, not the end
                if not may_fail:
                    raise
                told = next(iter(str(error).strip().splitlines()), "no message")
                made = Scored(np.zeros(0, np.float32), {}, f"{type(error).__name__}: {told}"[:200])
            for old in self.folder.glob(f"{name}-*.npz"):
                old.unlink()
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.savez(file, scores=made.scores, told=json.dumps([made.facts, made.failed]))
            os.replace(part, path)
        held = np.load(path)
        return Scored(held["scores"], *json.loads(str(held["told"])))


def _digest(*parts: bytes) -> str:
    seen = hashlib.sha256()
    for part in parts:
        seen.update(part)
    return seen.hexdigest()[:16]


@functools.cache
def _sources() -> bytes:
    """All that decides what a recipe computes."""
    folder = ROOT / "src" / "burnish"
    parts = ("capture", "graph", "passes", "quantize", "native")
    return _digest(*(path.read_bytes() for part in parts for path in sorted((folder / part).rglob("*.py")))).encode()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Other tools' progress and warnings are not ours to print."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    logging.disable(logging.NOTSET)


@dataclass(frozen=True)
class Loss:
    """Of the output that may lose most: relative change of AUC in %, its interval, and the change to be expected if labels were drawn
    with the original's own probabilities."""

    change: float
    low: float
    high: float
    expected: float

    def __str__(self) -> str:
        return f"{self.change:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def loss(subject: Subject, original: np.ndarray, scores: np.ndarray) -> Loss:
    """Of scores (N,) or (N, outputs) against the original's."""
    found = []
    for label, before, after in zip(*(array.reshape(len(array), -1).T for array in (subject.labels, original, scores))):
        auc = quality.compare(label, before, after, requests=subject.requests)["auc"]
        p = before.astype(np.float64)
        expected = evidence.expected_auc(p, after) / evidence.expected_auc(p, before) - 1
        found.append(Loss(*(100 * (value or 0.0) for value in (auc.relative, auc.relative_low, auc.relative_high)), 100 * expected))
    return min(found, key=lambda one: one.low)


def measure(name: str) -> dict[str, Any]:
    """Everything the page says of one model, as JSON types."""
    torch.set_num_threads(1)
    began = datetime.datetime.now(datetime.UTC)
    ways = Ways(name)
    original = ways.original()
    whole = ways.recipe("fp32")
    found: dict[str, Any] = {"name": name, "rows": len(original), "macs": whole.facts["macs"], "bytes": whole.facts["bytes"]}
    labels, scores = (array.reshape(len(array), -1)[:, 0] for array in (ways.subject.labels, original))
    found |= {"auc": rankers.auc(labels, scores), "table_bytes": whole.facts["table_bytes"], "ways": {}}
    for way in (*PEERS, *(("int8-naive", OURS) if name in HARD else RECIPES)):
        got = ways.peer(way) if way in PEERS else ways.recipe(way)
        told: dict[str, Any] = dict(got.facts)
        if got.failed:
            told["failed"] = got.failed
        else:
            told |= {"loss": vars(loss(ways.subject, original, got.scores))}
            told |= {"int8": vars(loss(ways.subject, got.scores, ways.recipe(OURS).scores))} if way in PEERS else {}
        found["ways"][way] = told
    seconds = (datetime.datetime.now(datetime.UTC) - began).total_seconds()
    print(f"{name}: AUC {found['auc']:.4f}, {OURS} {Loss(**found['ways'][OURS]['loss'])}, {seconds:.0f} s", flush=True)
    return found


Row = dict[str, Any]
DOUBTS = """# Accuracy

Made by `make accuracy`. Reasons to doubt these figures: Complete Journey is, by its package's own account, simulated from real shopping
patterns; MovieLens-100K is authentic but small, so its intervals are wide; the rankers are trained for about a minute each, and one that
is trained for long has less to spare. All losses are relative changes of AUC in %, paired on the same rows, with a 95 % interval clustered
by request; of several outputs the worst counts. Validation rows are never calibrated on. Nothing is set by hand for a model.

*Expected* is the change of AUC when labels are drawn with the original's own probabilities. It has no noise of labels, so it resolves what
few rows cannot, and it cannot be a gain: so no made-up data were needed beside the real."""


def page(found: list[Row], footer: str) -> str:
    easy, hard = [row for row in found if row["name"] not in HARD], [row for row in found if row["name"] in HARD]
    parts = [DOUBTS]
    if easy:
        parts += [*_models(easy), *_targets(easy), *_half(easy), *_int8(easy), *_tables(easy), *_lean(easy)]
    if hard:
        parts += _hard(hard)
    return "\n".join([*parts, "", footer, ""])


def _lost(row: Row, way: str) -> Loss:
    return Loss(**row["ways"][way]["loss"])


def _models(found: list[Row]) -> list[str]:
    lines = [
        "",
        "## The models",
        "",
        "| model | AUC | validation rows | products a candidate | MB | of them tables |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in found:
        mb = [f"{row[key] / 1e6:.2f}" for key in ("bytes", "table_bytes")]
        lines.append(f"| {row['name']} | {row['auc']:.4f} | {row['rows']:,} | {row['macs']:,.0f} | {mb[0]} | {mb[1]} |")
    return lines


def _targets(found: list[Row]) -> list[str]:
    lines = ["", "## In short", "", "| recipe | the interval's bad end is within | on | the farthest |", "|---|---:|---:|---|"]
    for way, allowed in ALLOWED.items():
        far = min(found, key=lambda row: _lost(row, way).low)
        held = sum(_lost(row, way).low >= -allowed for row in found)
        lines.append(f"| {way} | {allowed:g} % | {held} of {len(found)} models | {far['name']}: {_lost(far, way)} |")
    beaten = [row["name"] for row in found if any(_beats(row, way) for way in PEERS)]
    fewer = sum(row["ways"]["lean"]["macs"] <= 0.7 * row["macs"] and _lost(row, "lean").low >= -ALLOWED["lean"] for row in found)
    ratios = sorted(row["bytes"] / row["ways"]["int8-int4-tables"]["bytes"] for row in found)
    lines += ["", f"- Another tool's int8 is significantly better than `{OURS}` on {', '.join(beaten) or 'none'}."]
    lines += [f"- `lean` computes at least 30 % fewer products within {ALLOWED['lean']:g} % on {fewer} of {len(found)} models."]
    lines += [f"- With int4 rows a model takes 1/{ratios[0]:.1f} to 1/{ratios[-1]:.1f} of its bytes in float32."]
    return lines


def _beats(row: Row, way: str) -> bool:
    """Whether another tool's scores are significantly better than ours."""
    told = row["ways"][way]
    return not told.get("failed") and Loss(**told["int8"]).high < 0


def _half(found: list[Row]) -> list[str]:
    ways = [way for way in RECIPES if way.startswith(("bf16", "fp16"))]
    lines = ["", "## Half floats", "", f"| model | {' | '.join(ways)} |", "|---|" + "---|" * len(ways)]
    return lines + [f"| {row['name']} | {' | '.join(str(_lost(row, way)) for way in ways)} |" for row in found]


def _int8(found: list[Row]) -> list[str]:
    names = [found[0]["ways"][way]["name"] for way in PEERS]
    lines = [
        "",
        f"## Int8: `{OURS}` beside other tools",
        "",
        "The others leave tables in float32. Bold: significantly better than ours, on the same rows.",
        "",
    ]
    lines += [f"| model | {OURS} | expected | int8-naive | {' | '.join(names)} |", "|---|---|---:|---|" + "---|" * len(PEERS)]
    for row in found:
        cells = []
        for way in PEERS:
            told = row["ways"][way]
            if told.get("failed"):
                cells.append(f"cannot: {told['failed']}")
                continue
            cells.append(f"**{_lost(row, way)}**" if _beats(row, way) else str(_lost(row, way)))
        ours = _lost(row, OURS)
        lines.append(f"| {row['name']} | {ours} | {ours.expected:+.4f} | {_lost(row, 'int8-naive')} | {' | '.join(cells)} |")
    return lines


def _tables(found: list[Row]) -> list[str]:
    ways = (OURS, "int8-mixed-tables", "int8-int4-tables")
    lines = ["", "## Tables", "", "Bytes of tables and of the whole model are parts of what they are in float32.", ""]
    lines += [f"| model | {' | '.join(f'{way} | tables | model' for way in ways)} |", "|---|" + "---|---:|---:|" * len(ways)]
    for row in found:
        cells = []
        for way in ways:
            told = row["ways"][way]
            cells.append(f"{_lost(row, way)} | {_part(row['table_bytes'], told['table_bytes'])} | {_part(row['bytes'], told['bytes'])}")
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return lines


def _part(whole: float, part: float) -> str:
    return f"1/{whole / part:.1f}"


def _lean(found: list[Row]) -> list[str]:
    ways = ("lean", "leaner")
    lines = [
        "",
        "## Smaller shapes, without retraining",
        "",
        "Products a candidate that are left, and what that costs with int8 and int8 tables.",
        "",
    ]
    lines += [f"| model | {' | '.join(f'{way}: products left | change' for way in ways)} |", "|---|" + "---:|---|" * len(ways)]
    for row in found:
        cells = [f"{100 * row['ways'][way]['macs'] / row['macs']:.0f} % | {_lost(row, way)}" for way in ways]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return lines


def _hard(found: list[Row]) -> list[str]:
    ways = ("int8-naive", OURS, *PEERS)
    lines = ["", "## Made hard on purpose", ""]
    lines += [
        "The eight largest neurons of the first deep layer are made 100 times as large; scores stay the same. The gate allows 0.1 %.",
        "",
    ]
    lines += ["| model | way | change | the gate |", "|---|---|---|---|"]
    for row in found:
        for way in ways:
            told = row["ways"][way]
            if told.get("failed"):
                lines.append(f"| {row['name']} | {told.get('name', way)} | cannot: {told['failed']} | |")
                continue
            lost = _lost(row, way)
            verdict = "passes" if lost.low >= -HARD_ALLOWED else "fails" if lost.high < -HARD_ALLOWED else "cannot tell: not accepted"
            lines.append(f"| {row['name']} | {told.get('name', way)} | {lost} | {verdict} |")
    return lines


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--only", nargs="+", choices=names(), metavar="MODEL", help="of " + ", ".join(names()))
    asked.add_argument("--short", action="store_true", help="the two DCN-v2 alone")
    asked.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="models at a time, each on one core")
    asked.add_argument("--out", type=Path, help="the page; left out: docs/accuracy.md for all models, printed for some")
    options = asked.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that measure
    wanted = [DCN, DCN_FILMS] if options.short else options.only or names()
    for made in (models.make_movielens, rankers.purchases):  # what several models read
        made()
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        text = page(list(pool.map(measure, wanted)), footer(shlex.join(["python", *sys.argv]), "torchao", "neural-compressor"))
    out = options.out or (ROOT / "docs" / "accuracy.md" if wanted == names() else None)
    if out is None:
        print(text)
    else:
        out.write_text(text)
        print(out)


if __name__ == "__main__":
    main()
