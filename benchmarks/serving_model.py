"""What the serving benchmarks serve, and how they look at a server's processes."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path

import numpy as np

import burnish
from burnish import testing
from burnish.runtime.artifact import Artifact
from burnish.serve.process import Server
from burnish.serve.wire import DATATYPES

DEMO = Path(__file__).resolve().parent.parent / "data" / "complete_journey" / "dcn_v2.pt"
Halves = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


def name() -> str:
    return (
        "the demo's DCN-v2 on Complete Journey" if DEMO.exists() else "a DCN-v2 of Criteo's shape with random weights (no demo data here)"
    )


def build(backend: str, recipe: str, to: Path) -> Path:
    """An artifact of the demo's model, or of a stand-in where `make demo` has not made it."""
    if DEMO.exists():
        from models import complete_journey

        subject = complete_journey(1000)
        return burnish.compile(subject.graph, recipe, subject.calibration, backend=backend).save(to).path
    graph = testing.dcn_v2(width=16, cross=2, deep=(512, 256), mixed=True)
    rng = np.random.default_rng(0)
    rows = {
        spec.name: rng.integers(0, 1000, (512, *spec.shape))
        if spec.dtype == "int64"
        else rng.standard_normal((512, *spec.shape)).astype(np.float32)
        for spec in graph.inputs
    }
    return burnish.compile(graph, recipe, rows, backend=backend).save(to).path


def table(path: Path, n: int) -> dict[str, np.ndarray]:
    """n rows as a plain table: the artifact's golden rows, again and again."""
    rows, _ = Artifact.read(path).golden()
    return {name: np.ascontiguousarray(array[np.arange(n) % len(array)]) for name, array in rows.items()}


def halves(path: Path, n: int) -> Halves:
    """A request with the values of the first golden row, and n candidates."""
    rows = table(path, n)
    request, candidates = {}, {}
    for spec in Artifact.read(path).manifest.inputs:
        for half in spec.halves:
            whole = rows[spec.name]
            mine = whole if half.columns is None else np.ascontiguousarray(whole[:, list(half.columns)])
            (request if half.side == "request" else candidates)[spec.name] = mine[0] if half.side == "request" else mine
    return request, candidates


def body(path: Path, n: int) -> tuple[bytes, int]:
    """The binary request for `halves`, and the length of its JSON."""
    request, candidates = halves(path, n)
    told, raw = [], b""
    for spec in Artifact.read(path).manifest.inputs:
        for half in spec.halves:
            array = request[spec.name][None] if half.side == "request" else candidates[spec.name]
            named = spec.name if half.columns is None else f"{spec.name}.{half.side}"
            size = {"binary_data_size": array.nbytes}
            told.append({"name": named, "shape": list(array.shape), "datatype": DATATYPES[half.dtype], "parameters": size})
            raw += array.tobytes()
    header = json.dumps({"inputs": told, "parameters": {"binary_data_output": True}}).encode()
    return header + raw, len(header)


def scorer_us(path: Path, n: int, seconds: float) -> float:
    """CPU microseconds of one call of the scorer."""
    request, candidates = halves(path, n)
    with burnish.load(path) as scorer:
        for _ in range(200):
            scorer(request, candidates)
        before, until, calls = time.process_time(), time.monotonic() + seconds, 0
        while time.monotonic() < until:
            for _ in range(20):
                scorer(request, candidates)
            calls += 20
        return 1e6 * (time.process_time() - before) / calls


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:  # it has ended
                continue
    return found


def cpu_us(pid: int) -> float:
    """Time that a process, its living descendants and all their threads ran, by the scheduler's own clock (ns in schedstat)."""
    total = 0
    for each in family(pid):
        for task in Path(f"/proc/{each}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0])
            except OSError:
                continue
    return total / 1000


def resident_mb(pid: int) -> float:
    """Resident memory of a server's worker."""
    worker = family(pid)[1]
    found = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{worker}/status").read_text(), re.M)
    assert found
    return int(found[1]) / 1024


def told_by(server: Server, name: str) -> float:
    """A number of the server's metrics."""
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        found = re.search(rf"^{re.escape(name)} (\S+)$", answer.read().decode(), re.M)
    assert found
    return float(found[1])
