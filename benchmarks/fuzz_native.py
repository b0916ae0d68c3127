"""Fuzzing of generated programs: random graphs under the address and undefined-behaviour sanitizers, held against the interpreter.

    python benchmarks/fuzz_native.py --minutes 60

Each graph is taken through a recipe, compiled by g++ with sanitizers for one of this machine's instruction sets and called through a
Scorer: valid rows and requests (compared with the interpreter), floats that are NaN, infinite or huge (the other rows must keep their
bits), ids out of range, arrays of wrong dtype, shape, order or alignment, damaged weights. A case is one call. A finding is a report of a
sanitizer, a crash, a wrong number, or an exception that is not one of burnish's; it is printed with the seed that repeats it
(`--seed S --graphs 1`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from burnish.backends.native import SOURCE, outputs_of
from burnish.backends.table import Program
from burnish.errors import BurnishError, RecipeError
from burnish.graph.interpret import interpret
from burnish.graph.ops import Op
from burnish.host import ISAS, Host
from burnish.native import emit, pack, plan, toolchain
from burnish.recipe import FactorRequest, Int8, Recipe, Tidy, apply, recipe
from burnish.runtime.artifact import Artifact, Golden, Manifest, Output, difference
from burnish.runtime.scorer import Scorer
from burnish.testing.builders import as_request, one_request, rows
from burnish.testing.random_graphs import random_graph

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O1")
SMALL = Int8(ranges="min-max", migration=0.5, narrowest=2)
# each with the bound on the largest difference to the interpreter; beyond 1e-4 a rounding tie may have moved a value by a step
RECIPES: tuple[tuple[str, Recipe, float], ...] = (
    ("fp32", Recipe(()), 1e-4),
    ("tidy", Recipe((Tidy(),)), 1e-4),
    ("factored", Recipe((Tidy(), FactorRequest())), 1e-4),
    ("int8", Recipe((SMALL,)), 5e-2),
    ("factored int8", Recipe((SMALL, FactorRequest())), 5e-2),
    ("bf16", recipe("bf16"), 5e-2),
)
STRANGE = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-42, -0.0, 2.0**31, 8193.0)


class Finding(Exception):
    """What a case showed."""


class Run:
    """One graph, compiled; `cases` counts the calls."""

    def __init__(self, seed: int, work: Path) -> None:
        self.random = np.random.default_rng(seed)
        self.cases = 0
        graph = random_graph(seed, 2 + seed % 22)
        name, chosen, self.bound = RECIPES[seed % len(RECIPES)]
        isas = [isa for isa in ISAS if Host.here().runs(isa)]
        self.isa = isas[seed // len(RECIPES) % len(isas)]
        try:
            self.graph = apply(graph, chosen, rows(graph, 100, seed=seed))
        except RecipeError:
            self.graph, name = graph, "fp32"
        read = [node["half"] for node in self.graph.order if node.op is Op.INPUT]
        self.read = {spec.name for spec in self.graph.inputs if all(half in read for half in spec.halves)}  # as a whole
        self.told = f"seed {seed}, {name}, {self.isa}"
        planned = plan.make(self.graph, Host.here(), self.isa, rows=int(self.random.choice([1, 5, 6, 24, 48])))
        source = emit.emit(planned)
        library = toolchain.build(source.text, self.isa, "g++", SANITIZERS)
        self.path = work / f"artifact{seed}"
        (self.path / "program" / "native").mkdir(parents=True)
        shutil.move(library, self.path / "program/native/ranker.so")
        weight_bytes = pack.write(source.entries, self.path / "weights.bin")
        self.arrays = len(source.entries)
        facts = {"tables": {}, "block_rows": planned.rows, "outputs": outputs_of(self.graph)}
        files = ("program/native/ranker.so", SOURCE, "weights.bin")
        program = Program("native", files, self.isa, planned.flags, weight_bytes, source.arena_bytes, facts)
        outputs = tuple(Output(o["name"], o["dtype"], tuple(o["shape"])) for o in facts["outputs"])
        golden = Golden(0, "interpreter", 0.0, 0.0, False)
        self.manifest = Manifest(self.graph.inputs, outputs, {}, (program,), Host.here(), golden, {})
        self.scorer = self.open(int(self.random.integers(1, 3)))

    def open(self, threads: int = 1) -> Scorer:
        return Scorer(Artifact(self.path, self.manifest), threads)

    def table(self) -> dict[str, np.ndarray]:
        n = int(self.random.choice([1, 2, 3, 5, 6, 7, 13, 24, 25, 48, 49, 97, 150]))
        return rows(self.graph, n, seed=int(self.random.integers(1 << 30)))

    def agree(self, got: dict[str, np.ndarray], want: dict[str, np.ndarray], what: str) -> None:
        for name, value in want.items():
            worst, mean = difference(got[name].reshape(value.shape), value)
            if not (worst <= self.bound and mean <= max(1e-5, self.bound / 5)):
                raise Finding(f"{what}: output {name} of {len(value)} rows differs by {worst:.3g}, {mean:.3g} on average")

    def valid(self) -> None:
        table = self.table()
        self.agree(self.scorer.outputs_of(table), interpret(self.graph, table), "rows")

    def request(self) -> None:
        table = one_request(self.graph, self.table())
        request, candidates = as_request(self.graph, table)
        found = self.scorer(request, candidates)
        got = found if isinstance(found, dict) else {self.graph.outputs[0][0]: found}
        want = interpret(self.graph, table)
        if candidates:
            self.agree(got, want, "request")

    def strange(self) -> None:
        """Values far outside what was seen, in some rows; the others keep their bits."""
        table = self.table()
        n = len(table["dense"])
        hit = self.random.random(n) < 0.3
        before = self.scorer.outputs_of(table)
        spoiled = {**table, "dense": table["dense"].copy()}
        mask = hit[:, None] & (self.random.random(table["dense"].shape) < 0.4)
        spoiled["dense"][mask] = self.random.choice(np.array(STRANGE, np.float32), int(mask.sum()))
        after = self.scorer.outputs_of(spoiled)
        for name, value in before.items():
            if not np.array_equal(value[~hit], after[name][~hit], equal_nan=True):
                raise Finding(f"a strange row changed another row of {name}")

    def bad_id(self) -> None:
        table = self.table()
        name = ("cat", "past")[int(self.random.integers(2))]
        wrong = table[name].copy()
        info = np.iinfo(wrong.dtype)
        wrong.ravel()[self.random.integers(wrong.size)] = self.random.choice([-1, info.max, info.min, 7 + 30, 1 << 30])
        if name in self.read:
            self.refused(lambda: self.scorer.outputs_of({**table, name: wrong}), f"a bad id of {name}")
        self.agree(self.scorer.outputs_of(table), interpret(self.graph, table), "the rows after a bad id")

    def awkward(self) -> None:
        """Layouts that mean the same: strides, Fortran order, read-only, addresses that are not multiples of the item's size."""
        table = self.table()
        name = list(table)[int(self.random.integers(len(table)))]
        array = table[name]
        wide = np.repeat(array, 2, axis=0)
        lying = np.frombuffer(b"x" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)
        frozen = array.copy()
        frozen.setflags(write=False)
        odd = [wide[::2], array[::-1][::-1], np.asfortranarray(array), lying, frozen][int(self.random.integers(5))]
        got, want = self.scorer.outputs_of({**table, name: odd}), self.scorer.outputs_of(table)
        for key in want:
            if not np.array_equal(got[key], want[key], equal_nan=True):
                raise Finding(f"{name} in another layout scores otherwise")

    def wrong(self) -> None:
        """Arguments that fit no input."""
        table = self.table()
        name = list(table)[int(self.random.integers(len(table)))]
        array = table[name]
        other = {"float32": "float64", "int64": "int32", "int32": "int64"}[str(array.dtype)]
        choices: list[Any] = [
            array.astype(other),
            array.astype(array.dtype.newbyteorder()),
            array[:, :-1],
            array[..., None],
            array[0],
            np.concatenate([array, array]),
            array.astype(object),
            None,
            "rows",
            array.view(np.uint8),
        ]
        pick = int(self.random.integers(len(choices) + 2))
        if pick == len(choices):
            given = {key: value for key, value in table.items() if key != name}
        elif pick > len(choices):
            given = {**table, "another": array}
        else:
            given = {**table, name: choices[pick]}
        self.refused(lambda: self.scorer.outputs_of(given), f"{name} replaced by choice {pick}")

    def empty(self) -> None:
        table = {name: array[:0] for name, array in self.table().items()}
        got = self.scorer.outputs_of(table)
        if any(len(value) for value in got.values()):
            raise Finding("no rows have scores")

    def damaged(self) -> None:
        """A weights file cut short, longer, or with bytes of its head changed: refused, or (a row count that still fits) harmless."""
        path = self.path / "weights.bin"
        held = path.read_bytes()
        spoiled = bytearray(held)
        kind = int(self.random.integers(4))
        if kind == 0:
            del spoiled[int(self.random.integers(len(held))) :]
        elif kind == 1:
            spoiled += bytes(int(self.random.integers(1, 300)))
        else:
            for _ in range(int(self.random.integers(1, 4))):
                spoiled[int(self.random.integers(40 + 16 * self.arrays))] = int(self.random.integers(256))
        new = path.with_suffix(".new")
        new.write_bytes(spoiled)
        os.replace(new, path)
        try:
            scorer = self.open()
        except BurnishError:
            return
        finally:
            new.write_bytes(held)
            os.replace(new, path)
        try:
            scorer.outputs_of(self.table())
        except BurnishError:
            pass
        finally:
            scorer.close()

    def refused(self, call: Callable[[], object], what: str) -> None:
        try:
            call()
        except BurnishError:
            return
        except Exception as error:  # any other type is the finding
            raise Finding(f"{what}: {type(error).__name__}: {error}") from error
        raise Finding(f"{what} was taken")


CASES: tuple[tuple[Callable[[Run], None], int], ...] = (
    (Run.valid, 20),
    (Run.request, 20),
    (Run.strange, 20),
    (Run.bad_id, 20),
    (Run.awkward, 20),
    (Run.wrong, 20),
    (Run.empty, 1),
    (Run.damaged, 30),
)


def fuzz(seed: int, work: Path, say: Callable[[str, int], None]) -> int:
    """All cases of one seed; how many. `say` is told what is about to be done, so that a crash can be placed. Raises Finding."""
    say("compile", 0)
    run = Run(seed, work)
    try:
        for case, times in CASES:
            for i in range(times):
                say(f"{run.told}: {case.__name__} {i}", run.cases)
                try:
                    case(run)
                except Finding as found:
                    raise Finding(f"{run.told}: {case.__name__} {i}: {found}") from found
                run.cases += 1
    finally:
        run.scorer.close()
        shutil.rmtree(run.path, ignore_errors=True)
    return run.cases


def child(first: int, graphs: int, until: float, status: Path) -> None:
    """In a process that the sanitizer's library was loaded into: graph after graph until the time is over."""
    os.environ.pop("LD_PRELOAD", None)  # not for the compiler
    work = status.parent
    told: dict[str, Any] = {"seed": first, "doing": "", "cases": 0, "findings": []}

    def say(doing: str, cases: int) -> None:
        told["doing"], told["now"] = doing, cases
        status.write_text(json.dumps(told))

    for seed in range(first, first + graphs):
        if time.time() > until:
            break
        told["seed"] = seed
        try:
            told["cases"] += fuzz(seed, work, say)
        except Finding as found:
            told["findings"].append(str(found))
            told["cases"] += told["now"]
        except Exception as error:  # nothing but Finding may come out of a case
            told["findings"].append(f"seed {seed}, {told['doing']}: {type(error).__name__}: {error}")
            told["cases"] += told["now"]
        told["seed"], told["now"] = seed + 1, 0
        status.write_text(json.dumps(told))


def supervise(first: int, graphs: int, minutes: float) -> dict[str, Any]:
    """Children one after another; what killed one is a finding, and the next goes on with the next seed."""
    began, seed = time.time(), first
    until = began + 60 * minutes
    told: dict[str, Any] = {"cases": 0, "graphs": 0, "findings": []}
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    with tempfile.TemporaryDirectory(prefix="burnish-fuzz-") as work:
        status = Path(work) / "status.json"
        env = {
            **os.environ,
            "LD_PRELOAD": " ".join(runtimes),
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "PYTHONMALLOC": "malloc",
            "OMP_NUM_THREADS": "1",
            "BURNISH_CACHE": str(Path(work) / "cache"),
        }
        while time.time() < until and seed < first + graphs:
            words = [sys.executable, __file__, "--child", str(status), "--seed", str(seed), "--graphs", str(first + graphs - seed)]
            done = subprocess.run([*words, "--until", str(until)], env=env, capture_output=True, text=True, errors="replace")
            if not status.exists():
                raise SystemExit(f"the child did not start:\n{done.stderr}")
            said = json.loads(status.read_text())
            told["graphs"] += said["seed"] - seed
            told["cases"] += said["cases"]
            told["findings"] += said["findings"]
            seed = said["seed"]
            if done.returncode != 0:
                lines = [line.strip() for line in done.stderr.splitlines() if "ERROR" in line or "runtime error" in line or "#0" in line]
                why = " | ".join(lines[:3]) or done.stderr[-300:]
                told["findings"].append(f"{said['doing']} ended with {done.returncode}: {why}")
                told["cases"] += said.get("now", 0)
                told["graphs"] += 1
                seed += 1
            elif seed < first + graphs and time.time() < until:
                break
            status.unlink()
            print(
                f"{(time.time() - began) / 60:.1f} minutes, {told['graphs']} graphs, {told['cases']} cases, {told['findings'][-1:]}",
                flush=True,
            )
    told["minutes"] = round((time.time() - began) / 60, 1)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first graph")
    parser.add_argument("--graphs", type=int, default=1_000_000)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.seed, options.graphs, options.until, options.child)
        return
    told = supervise(options.seed, options.graphs, options.minutes)
    print(json.dumps(told, indent=1))
    sys.exit(1 if told["findings"] else 0)


if __name__ == "__main__":
    main()
