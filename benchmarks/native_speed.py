"""The native backend on DCN-v2, DLRM and DLRM-v2 beside its peers: one pinned core, engines in turns, other rows each call.

    python benchmarks/native_speed.py [--short] [--seconds S] [--model NAME ...] [--peers NAME ...]

Random weights: for speed only. `burnish` and its peers get a plain table; `burnish, half of the request` gets the same model with half of
its columns on the request's side, as a request beside its candidates, and its ratio is to the peers' time for the plain table. Peers of a
precision: ONNX Runtime and OpenVINO on the graph that burnish exports (int8: the same quantization as QDQ), NNCF's own quantization in
OpenVINO, and Inductor in float32. A cell is the median in microseconds and, in brackets, how much of the floor was reached: the least
time for all products of the model at the core's measured peak for the row's precision, or for its weights read once from the cache or
memory that holds them, whichever is longer, over the fastest call (`burnish bench --floor`). Each engine's call from Python is counted.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import burnish
from burnish.backends.native import NativeEngine, address
from burnish.backends.table import backend
from burnish.errors import BuildError
from burnish.graph.node import Graph, Node, input_node
from burnish.graph.ops import Op
from burnish.graph.show import cost
from burnish.host import Host
from burnish.measure.latency import pinned
from burnish.native import floor
from burnish.recipe import FactorRequest, apply, recipe
from burnish.testing.builders import Weights, as_request, concat, embeddings, inputs, linear, mlp, one_request, reshape, rows, sigmoid
from burnish.testing.models import dcn_v2, dlrm

SIZES = (1, 16, 128)
CALLS = 32
RECIPES = {"int8": "int8-tables", "bf16": "bf16", "fp32": "fp32"}
PEERS = {"int8": ("onnxruntime", "openvino", "nncf"), "bf16": ("openvino",), "fp32": ("onnxruntime", "openvino", "inductor")}
ALL_PEERS = {peer for peers in PEERS.values() for peer in peers}
Calls = dict[str, list[Callable[[], object]]]


def dlrm_v2(request: float = 0.0) -> Graph:
    """MLPerf's DLRM-DCNv2: 26 vectors of 128 and the dense one, three cross layers of rank 512, top 1024-1024-512-256-1; small tables."""
    w, specs = Weights(0), inputs(13, 26, 1000, request)
    dense, ids = (input_node(spec) for spec in specs)
    x0 = concat([mlp(dense, (512, 256, 128), w), *embeddings(ids, specs[1], 128, w)])
    x, k = x0, x0.shape[0]
    for _ in range(3):
        inner = linear(linear(x, 512, w, bias=False), k, w)
        x = Node(Op.ADD, (Node(Op.MUL, (x0, inner)), x))
    return Graph(specs, {"score": sigmoid(reshape(mlp(x, (1024, 1024, 512, 256, 1), w, last=True)))})


MODELS: dict[str, Callable[[float], Graph]] = {
    "DCN-v2": lambda request: dcn_v2(13, 26, 16, 3, (1024, 512, 256), 10_000, request, parallel=True),
    "DLRM": lambda request: dlrm(13, 26, 128, (512, 256), (1024, 1024, 512, 256), 1000, request),
    "DLRM-v2": dlrm_v2,
}


def opened(graph: Graph, name: str, folder: Path, **options: Any) -> Any:
    made = backend(name)
    for key, value in options.items():
        setattr(made, key, value)
    program = made.build(graph, Host.here(), folder)
    return made.open(folder, program, graph.inputs, 1)


def calls(graph: Graph, n: int, plain: dict[str, Any], factored: dict[str, Any]) -> Calls:
    """Engine -> calls of n rows each: a plain table for some engines, the request beside its candidates for the others."""
    tables = [one_request(graph, rows(graph, n, seed=seed)) for seed in range(CALLS)]
    found: Calls = {}
    for name, engine in plain.items():
        found[name] = [functools.partial(engine.rows, table, n) for table in tables]
    for name, engine in factored.items():
        halves = [[{k: np.ascontiguousarray(v) for k, v in part.items()} for part in as_request(graph, table)] for table in tables]
        found[name] = [functools.partial(engine.request, *pair, n) for pair in halves]
    return found


def taken_us(engines: Calls, seconds: float) -> dict[str, np.ndarray]:
    """Engine -> microseconds of its calls, taken in turns of a few milliseconds, for `seconds` an engine and each call at least once."""
    taken: dict[str, list[int]] = {name: [] for name in engines}
    for group in engines.values():
        for call in group:
            call()
    end = time.perf_counter() + seconds * len(engines)
    while not all(taken.values()) or time.perf_counter() < end:
        for name, group in engines.items():
            for call in group:
                begin = time.perf_counter_ns()
                call()
                taken[name].append(time.perf_counter_ns() - begin)
    return {name: np.array(ns) / 1e3 for name, ns in taken.items()}


def median_us(engines: Calls, seconds: float) -> dict[str, float]:
    """Engine -> the median of `taken_us`."""
    return {name: float(np.median(us)) for name, us in taken_us(engines, seconds).items()}


class Nncf:
    """NNCF's post-training quantization with its defaults, run by OpenVINO with one thread."""

    def __init__(self, graph: Graph, calibration: dict[str, np.ndarray], folder: Path) -> None:
        import nncf
        import openvino

        from burnish.backends.to_onnx import to_onnx

        folder.mkdir()
        model = openvino.Core().read_model(to_onnx(graph, folder / "model.onnx")[0])
        chunks = [{k: v[i : i + 32] for k, v in calibration.items()} for i in range(0, 64, 32)]
        config = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        made = nncf.quantize(model, nncf.Dataset(chunks), subset_size=len(chunks))
        self.request = openvino.Core().compile_model(made, "CPU", {**config, "INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
        self.tensor = openvino.Tensor

    def rows(self, table: dict[str, np.ndarray], n: int) -> object:
        for name, array in table.items():
            self.request.set_tensor(name, self.tensor(array, shared_memory=True))
        self.request.infer()
        return self.request.get_output_tensor(0).data


def engines(name: str, folder: Path, peers: set[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """(engines of a plain table, engines of a request, precision of each); which engine cannot be built is told."""
    plain: dict[str, Any] = {}
    precision: dict[str, str] = {}
    graph, half = MODELS[name](0.0), MODELS[name](0.5)
    calibration = rows(graph, 64, seed=99)
    factored = {}
    for kind, recipe_name in RECIPES.items():
        made = apply(graph, recipe(recipe_name).without(FactorRequest), calibration)
        plain[f"burnish {kind}"] = opened(made, "native", folder / kind)
        for peer in PEERS[kind]:
            if peer not in peers:
                continue
            try:
                if peer == "nncf":
                    plain["NNCF + OpenVINO int8"] = Nncf(apply(graph, recipe("fp32").without(FactorRequest)), calibration, folder / peer)
                else:
                    plain[f"{peer} {kind}"] = opened(made, peer, folder / f"{peer}-{kind}")
            except (BuildError, ImportError) as error:
                print(f"{name}: {peer} {kind} was not measured: {error}", file=sys.stderr)
        told = f"burnish {kind}, half of the request"
        factored[told] = opened(apply(half, recipe(recipe_name), calibration), "native", folder / f"{kind}-half")
    precision = {engine: next(kind for kind in RECIPES if kind in engine) for engine in (*plain, *factored)}
    return plain, factored, precision


def measure(name: str, peak: floor.Floor, seconds: float, peers: set[str]) -> list[str]:
    """The table of one model, in Markdown."""
    meter, whole = floor.Meter(), cost(MODELS[name](0.0))
    split = cost(apply(MODELS[name](0.5), recipe("fp32")))
    with tempfile.TemporaryDirectory() as folder:
        plain, factored, precision = engines(name, Path(folder), peers)
        cells: dict[str, list[str]] = {engine: [] for engine in precision}
        medians: dict[int, dict[str, float]] = {}
        for n in SIZES:
            turns = calls(MODELS[name](0.0), n, plain, {}) | calls(MODELS[name](0.5), n, {}, factored)
            peaks: dict[str, list[float]] = {}
            for kind in RECIPES:  # in turns too: the clock is not the same all the time
                turns[f"peak {kind}"] = [functools.partial(_add_peak, meter, kind, peaks.setdefault(f"{kind}_macs", []))]
            taken = taken_us(turns, seconds)
            here = msgspec.structs.replace(peak, **{field: max(found) for field, found in peaks.items()})
            medians[n] = {engine: float(np.median(taken[engine])) for engine in precision}
            for engine, kind in precision.items():
                macs = split.request.macs + n * split.candidate.macs if engine in factored else n * whole.macs
                nbytes = (
                    whole.macs * {"int8": 1, "bf16": 2, "fp32": 4}[kind]
                )  # a weight for each product of a row, all but the interaction's
                share = here.us(macs, nbytes, kind) / taken[engine].min()
                cells[engine].append(f"{medians[n][engine]:.1f} ({share:.0%})")
    lines = [
        f"### {name}",
        "",
        f"{whole.macs:,} multiply-adds a candidate.",
        "",
        "| engine | " + " | ".join(f"{n} rows" for n in SIZES) + " |",
    ]
    lines += ["|---|" + "---:|" * len(SIZES)]
    lines += [f"| {engine} | {' | '.join(row)} |" for engine, row in cells.items()]
    for kind in RECIPES:
        rivals = [engine for engine in plain if precision[engine] == kind and not engine.startswith("burnish")]
        for ours in (f"burnish {kind}", f"burnish {kind}, half of the request"):
            if rivals:
                ratios = [min(medians[n][rival] for rival in rivals) / medians[n][ours] for n in SIZES]
                lines.append(f"| **best {kind} peer over {ours}** | " + " | ".join(f"**{ratio:.2f}**" for ratio in ratios) + " |")
    return [*lines, ""]


def _add_peak(meter: floor.Meter, kind: str, found: list[float]) -> None:
    found.append(meter.products(kind))


def overhead(seconds: float) -> list[str]:
    """What a call from Python costs beyond the native function, by fastest calls: `scorer(...)` beside many requests in one native call."""
    graph, times = dcn_v2(5, 21, 16, 1, (32,), 10_000), 20
    lines = ["| DCN-v2 with one cross layer and 32 units | whole call, µs | native function, µs | Python, µs |", "|---|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        burnish.compile(graph, "int8-tables", rows(graph, 1000, seed=99)).save(Path(folder) / "ranker")
        scorer = burnish.load(Path(folder) / "ranker")
        engine = scorer._engine
        assert isinstance(engine, NativeEngine)
        for n in (1, 128):
            parts = as_request(graph, one_request(graph, rows(graph, n, seed=1)))
            request, candidates = ({k: np.ascontiguousarray(v) for k, v in part.items()} for part in parts)
            call, out = engine._open(), np.empty((times * n, 1), np.float32)
            offsets = np.arange(times + 1) * n
            given = [
                np.stack([request[h.name]] * times) if h.side == "request" else np.concatenate([candidates[h.name]] * times)
                for h in engine.halves
            ]
            for i, array in enumerate(given):
                call.inputs[i] = address(array)
            call.outputs[0] = address(out)
            arguments = (call.handle, times, address(offsets), call.inputs_at, call.outputs_at)
            alone = functools.partial(engine.library.ranker_requests, *arguments)
            taken = taken_us({"whole": [functools.partial(scorer, request, candidates)] * times, "native": [alone]}, seconds)
            whole, native = float(taken["whole"].min()), float(taken["native"].min()) / times
            lines.append(f"| {n} candidate{'s' * (n > 1)} | {whole:.1f} | {native:.1f} | {whole - native:.1f} |")
    return lines


def scaling(seconds: float) -> list[str]:
    """Calls a second on two cores over those on one: DCN-v2 int8, 128 candidates, two threads that share a scorer, and two processes."""
    cores = sorted(os.sched_getaffinity(0))[-2:]
    lines = ["| two of | calls a second over one's |", "|---|---:|"]
    if len(cores) < 2:
        return [*lines, "| (this machine has one core) | |"]
    graph = MODELS["DCN-v2"](0.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ranker"
        burnish.compile(graph, "int8-tables", rows(graph, 1000, seed=99)).save(path)
        for kind, crew in (("threads", _threads), ("processes", _processes)):
            with crew(path, rows(graph, 128, seed=1), cores) as run:
                found = [(run(cores[:1], seconds / 8), run(cores, seconds / 8)) for _ in range(8)]
            lines.append(f"| {kind} | {np.median([two / one for one, two in found]):.2f} |")
    return lines


Run = Callable[[list[int], float], float]  # on these cores for so many seconds -> calls a second


def _count(scorer: burnish.Scorer, table: dict[str, np.ndarray], core: int, seconds: float) -> float:
    os.sched_setaffinity(0, {core})  # of the calling thread
    done, begin = 0, time.perf_counter()
    while (now := time.perf_counter()) < begin + seconds:
        scorer.rows(table)
        done += 1
    return done / (now - begin)


@contextmanager
def _threads(path: Path, table: dict[str, np.ndarray], cores: list[int]) -> Iterator[Run]:
    with burnish.load(path) as scorer, ThreadPoolExecutor(len(cores)) as crew:
        yield lambda used, seconds: sum(crew.map(lambda core: _count(scorer, table, core, seconds), used))


def _serve(path: Path, table: dict[str, np.ndarray], core: int, asked: Connection) -> None:
    with burnish.load(path) as scorer:
        while seconds := asked.recv():
            asked.send(_count(scorer, table, core, seconds))


@contextmanager
def _processes(path: Path, table: dict[str, np.ndarray], cores: list[int]) -> Iterator[Run]:
    context = multiprocessing.get_context("spawn")
    ends = {core: context.Pipe() for core in cores}
    crew = [context.Process(target=_serve, args=(path, table, core, theirs)) for core, (_, theirs) in ends.items()]
    for process in crew:
        process.start()

    def run(used: list[int], seconds: float) -> float:
        for core in used:
            ends[core][0].send(seconds)
        return sum(ends[core][0].recv() for core in used)

    yield run
    for ours, _ in ends.values():
        ours.send(0.0)
    for process in crew:
        process.join()


def pages(seconds: float, models: Sequence[str], peers: set[str]) -> Iterator[list[str]]:
    """Sections of docs/benchmarks.md, one after another as they are measured."""
    with pinned():
        peak = floor.measure()
        told = peak.facts()
        peaks = ", ".join(f"{kind} {rate:.0f}" for kind, rate in told["gmacs"].items())
        reads = ", ".join(f"{level} {rate:.0f}" for level, rate in told["gbytes"].items())
        yield [f"The floor of one core ({told['isa']}): {peaks} GMAC/s; read from {reads} GB/s.", ""]
        for name in models:
            yield measure(name, peak, seconds, peers)
        yield ["### A call from Python", "", *overhead(seconds), ""]
    yield ["### Two cores", "", *scaling(8 * seconds), ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each engine and number of rows")
    parser.add_argument("--model", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--peers", nargs="*", default=sorted(ALL_PEERS), choices=sorted(ALL_PEERS), help="none: burnish alone")
    parser.add_argument("--short", action="store_true", help="two minutes: DCN-v2 and DLRM, 0.1 seconds each, no Inductor")
    options = parser.parse_args()
    if options.short:
        options.seconds, options.model, options.peers = 0.1, ["DCN-v2", "DLRM"], ["nncf", "onnxruntime", "openvino"]
    for section in pages(options.seconds, options.model, set(options.peers)):
        print("\n".join(section), flush=True)


if __name__ == "__main__":
    main()
