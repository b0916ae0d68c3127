"""What devices and browsers get of the demo's model: latency beside their own engines on this CPU, sizes, and whether bits are the same.

    python benchmarks/edge.py                       into docs/edge_benchmarks.md
    python benchmarks/edge.py --short               fewer rounds, printed

Latency is this machine's, on one core, in turns; other architectures run under emulation, which tells what they compute and not how fast.
Engines that are not installed are left out: pip install executorch; pip install litert-torch; node and wasmtime for WebAssembly.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
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

import burnish
from burnish.export import export
from burnish.native import toolchain
from burnish.runtime.artifact import Artifact
from models import Subject, complete_journey
from pages import footer

SIZES = (1, 16, 128)
CALLS = 200  # different ones of each size
QUANTILE = 10  # of the calls of a round: a shared machine takes the core away in the others
OURS = ("int8", "int8-int4-tables")
PEERS = {
    "executorch_fp32": "executorch",
    "executorch_int8": "executorch",
    "litert_fp32": "litert_torch",
    "onnxruntime_fp32": "onnxruntime",
    "onnxruntime_int8": "onnxruntime",
}
# target -> qemu and its CPU, where its libraries are
MACHINES = {
    "x86_64-linux": ([], ""),
    "aarch64-linux": (["qemu-aarch64-static", "-cpu", "neoverse-n1"], "/usr/aarch64-linux-gnu"),
    "armv7-linux": (["qemu-arm-static", "-cpu", "cortex-a7"], "/usr/arm-linux-gnueabihf"),
    "riscv64-linux": (["qemu-riscv64-static"], "/usr/riscv64-linux-gnu"),
}
NODE = """
import { load } from "./ranker.mjs";
import { readFileSync } from "node:fs";
const ranker = await load();
const calls = JSON.parse(readFileSync("./calls.json", "utf8"));
for (const call of calls)
  for (const half of ranker.halves) {
    const part = half.side === "request" ? call.request : call.candidates;
    part[half.name] = half.dtype === "int64" ? BigInt64Array.from(part[half.name], BigInt) : Float32Array.from(part[half.name]);
  }
const times = [];
const until = performance.now() + 1000 * Number(process.argv[2]);
for (let i = 0; performance.now() < until || times.length < 20; i++) {
  const call = calls[i % calls.length], at = performance.now();
  ranker.score(call.request, call.candidates);
  if (i >= calls.length) times.push(1000 * (performance.now() - at));
}
times.sort((a, b) => a - b);
console.log(times[Math.floor(times.length / 10)]);
"""
Call = tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]  # plain table, request, candidates


def calls_of(subject: Subject, n: int, count: int = CALLS) -> list[Call]:
    """Requests of n candidates each: validation rows beside each other, all with the first one's request."""
    found = []
    for i in range(count):
        at = (i * 9973) % (len(subject.labels) - n)
        table = {name: np.ascontiguousarray(array[at : at + n]) for name, array in subject.validation.items()}
        request, candidates = {}, {}
        for spec in subject.graph.inputs:
            for half in spec.halves:
                columns = slice(None) if half.columns is None else list(half.columns)
                if half.side == "request":
                    table[spec.name][:, columns] = table[spec.name][:1][:, columns]
                    request[half.name] = np.ascontiguousarray(table[spec.name][0][columns])
                else:
                    candidates[half.name] = np.ascontiguousarray(table[spec.name][:, columns])
        found.append((table, request, candidates))
    return found


def engines(subject: Subject, artifacts: dict[str, Artifact], folder: Path) -> dict[str, Callable[[Call], Any]]:
    """Name -> what scores one call."""
    found: dict[str, Callable[[Call], Any]] = {}
    for name, artifact in artifacts.items():
        scorer = burnish.load(artifact.path)
        found[f"burnish {name}"] = lambda call, scorer=scorer: scorer(call[1], call[2])
    for name, package in PEERS.items():
        if importlib.util.find_spec(package) is None:
            continue
        peer = importlib.import_module(f"peers.{name}")
        (folder / name).mkdir()
        score = peer.caller(peer.prepare(subject.module, subject.validation, subject.calibration, folder / name))
        found[peer.NAME] = lambda call, score=score: score(call[0])
    return found


def node_us(folder: Path, calls: list[Call], seconds: float) -> float:
    """Microseconds of a call in Node, in a process of its own."""
    told = [{"request": _plain(request), "candidates": _plain(candidates)} for _, request, candidates in calls[:50]]
    (folder / "calls.json").write_text(json.dumps(told))
    (folder / "bench.mjs").write_text(NODE)
    done = subprocess.run(["node", "bench.mjs", str(seconds)], cwd=folder, capture_output=True, text=True, check=True)
    return float(done.stdout)


def c_us(folder: Path, sizes: tuple[int, ...], seconds: float) -> list[float]:
    """Microseconds of a call from C, by the export's own bench."""
    flags = ["-O2", "bench.c", "-L.", "-lranker", "-Wl,-rpath,$ORIGIN", "-o", "bench"]
    subprocess.run([sys.executable, "-m", "ziglang", "cc", *flags], cwd=folder, check=True, capture_output=True)
    words = ["./bench", ",".join(map(str, sizes)), str(seconds)]
    rows = json.loads(subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout)["rows"]
    return [dict(row["latency_us"]["curve"])[QUANTILE] for row in rows]


def _plain(arrays: dict[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: array.ravel().tolist() for name, array in arrays.items()}


def latency(subject: Subject, artifacts: dict[str, Artifact], folder: Path, rounds: int) -> list[str]:
    """The rows of the table: median over rounds of a quick call, and how many times longer than ours."""
    contenders = engines(subject, artifacts, folder)
    modules = {}
    if shutil.which("node"):
        for name, artifact in artifacts.items():
            export(artifact.path, "wasm", out=folder / f"wasm-{name}")
            modules[f"burnish {name}, WebAssembly in Node"] = folder / f"wasm-{name}"
    found: dict[str, list[float]] = {name: [] for name in (*contenders, *modules)}
    for n in SIZES:
        calls = calls_of(subject, n)
        for score in contenders.values():  # the first calls build what is built late
            for call in calls[:3]:
                score(call)
        times: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(rounds):
            for name, score in contenders.items():
                each = []
                for call in calls:
                    begin = time.perf_counter()
                    score(call)
                    each.append(time.perf_counter() - begin)
                times[name].append(1e6 * float(np.percentile(each, QUANTILE)))
            for name, at in modules.items():
                times[name].append(node_us(at, calls, 0.3))
        for name in found:
            found[name].append(float(np.median(times[name])))
    export(artifacts[OURS[0]].path, "c", out=folder / "c")
    found[f"burnish {OURS[0]}, from C"] = c_us(folder / "c", SIZES, 1.0)
    ours = found[f"burnish {OURS[0]}"]
    cells = {name: " | ".join(f"{us:.1f} ({us / base:.1f})" for us, base in zip(times, ours)) for name, times in found.items()}
    return [f"| {name} | {text} |" for name, text in cells.items()]


def sizes(artifact: Artifact, folder: Path, fp32_bytes: int) -> list[str]:
    """A row a target: code, weights, their share of float32's, memory, and the largest difference of the golden scores."""
    lines = []
    for target, (runner, root) in MACHINES.items():
        out = folder / target
        told = export(artifact.path, "c", target, out)
        difference = "not run: no qemu here"
        if not runner or (shutil.which(runner[0]) and Path(root).exists()):
            flags = ["-O2", "example.c", "-L.", "-lranker", "-lm", "-Wl,-rpath,$ORIGIN", "-o", "example"]
            compiler = [sys.executable, "-m", "ziglang", "cc", "-target", toolchain.TARGETS[told["target"]][0]]
            subprocess.run([*compiler, *flags], cwd=out, check=True, capture_output=True)
            words = [*runner, *(["-L", root] if root else []), "./example"]
            said = json.loads(subprocess.run(words, cwd=out, check=True, capture_output=True, text=True).stdout)
            difference = _difference(said["difference"], bool(runner))
        lines.append(_size(target, told["target"], told["library_bytes"], told, fp32_bytes, difference))
    told = export(artifact.path, "wasm", out=folder / "wasm")
    difference = "not run: no node here"
    if shutil.which("node"):
        script = 'import { load } from "./ranker.mjs"; console.log(JSON.stringify(await (await load()).verify()));'
        (folder / "wasm" / "verify.mjs").write_text(script)
        done = subprocess.run(["node", "verify.mjs"], cwd=folder / "wasm", capture_output=True, text=True, check=True)
        difference = _difference(json.loads(done.stdout)["difference"], False)
    lines.append(_size("wasm", told["target"], told["code_bytes"], told, fp32_bytes, difference))
    return lines


def _difference(found: float, emulated: bool) -> str:
    return ("none" if found == 0 else f"{found:.1e}") + (" (emulated)" if emulated else "")


def _size(target: str, isa: str, code: int, told: dict[str, Any], fp32_bytes: int, difference: str) -> str:
    share = fp32_bytes / told["weight_bytes"]
    memory = told["peak_memory_bytes"]
    return f"| {target} | {isa} | {code:,} | {told['weight_bytes']:,} | 1/{share:.1f} | {memory:,} | {difference} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs/edge_benchmarks.md"))
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    subject = complete_journey(20_000)
    with tempfile.TemporaryDirectory(prefix="burnish-edge-") as work:
        folder = Path(work)
        artifacts = {
            name: burnish.compile(subject.graph, name, subject.calibration).save(folder / "artifacts" / name) for name in (*OURS, "fp32")
        }
        fp32_bytes = artifacts.pop("fp32").weight_bytes
        table = sizes(artifacts[OURS[1]], folder, fp32_bytes)
        times = latency(subject, artifacts, folder, 2 if options.short else 10)
    page = f"""# Devices and browsers

{(__doc__ or "").splitlines()[0]}
Latency is this machine's, on one core, contenders in turns; other architectures run under emulation, which tells what they compute and not
how fast.

## Latency

{subject.name}: microseconds a call that {QUANTILE} % of a round's are below, median of the rounds, and how many times ours with the
recipe {OURS[0]}. From Python unless it says otherwise. ExecuTorch, LiteRT and ONNX Runtime get a plain table that is ready.

| engine | {" | ".join(f"{n} candidate{'s' * (n > 1)}" for n in SIZES)} |
|---|---|---|---|
{chr(10).join(times)}

## Sizes and bits

Recipe {OURS[1]}, bytes; float32 has {fp32_bytes:,} of weights. Difference: of the golden scores to those of this machine's
program, relative to the larger of 1 and the largest score.

| target | instructions | code | weights | of float32's | memory when open | difference |
|---|---|---|---|---|---|---|
{chr(10).join(table)}

{footer("python benchmarks/edge.py" + (" --short" if options.short else ""), "executorch", "litert-torch")}
"""
    if options.short:
        print(page)
    else:
        options.out.write_text(page)
        print(options.out)


if __name__ == "__main__":
    main()
