"""What a server does under load: the highest load that it keeps its p99 at, twice its capacity, swaps of versions, killed workers, memory.

The generator is a Python process on the same machine and needs a core of its own: where it does not get one, or where others use the
machine, latencies are theirs. Latency counts from the intended start of each request.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import burnish
from burnish.graph.node import Graph, Node, weight
from burnish.graph.ops import Op
from burnish.inputs import Input
from burnish.serve.process import Server
from burnish.serve.versions import Versions
from burnish.testing.http_load import Sent, post, saturate, send
from serving_model import body, cpu_us, family, resident_mb, scorer_us, told_by

WHERE = "/v2/models/ranker/infer"
CANDIDATES = 128


def asked(path: Path, **headers: str) -> bytes:
    sent, cut = body(path, CANDIDATES)
    return post(WHERE, sent, Inference_Header_Content_Length=str(cut), **headers)


def highest(path: Path, seconds: float, slo_ms: float) -> dict[str, Any]:
    """The highest Poisson load whose p99 is within `slo_ms`, of all requests: one that was refused or failed is late."""
    engine = 1e6 / scorer_us(path, CANDIDATES, min(seconds, 3.0))
    tried = []
    with Server(path, name="ranker", deadline_ms=slo_ms) as server:
        request = asked(path)
        saturate(server.host, server.port, request, 4, 1.0)
        for share in (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4):
            sent = send(server.host, server.port, request, share * engine, seconds)
            late = sum(n for status, n in sent.statuses.items() if status != 200) + sum(s > slo_ms / 1e3 for s in sent.latencies)
            tried.append({"share": share, "late": late / sum(sent.statuses.values()), "p99_ms": 1e3 * sent.percentile(99)})
            if late <= 0.01 * sum(sent.statuses.values()):
                break
    return {"engine": engine, "tried": tried}


def overload(path: Path, seconds: float, slo_ms: float) -> dict[str, Any]:
    """Twice the capacity, which is what 16 connections get that ask one request after another, measured before and after."""
    with Server(path, name="ranker", deadline_ms=slo_ms) as server:
        address, pid = (server.host, server.port), server.process.pid
        patient, request = asked(path, X_Request_Timeout_Ms="60000"), asked(path)
        saturate(*address, patient, 16, 1.0)

        def capacity() -> tuple[float, float]:
            before = cpu_us(pid)
            full = saturate(*address, patient, 16, 3.0)
            return full.goodput, 1e6 * len(full.latencies) / (cpu_us(pid) - before)

        first, memory = capacity(), resident_mb(pid)
        before, late = cpu_us(pid), told_by(server, "burnish_late_total")
        sent = send(*address, request, 2 * first[0], seconds)
        by_cpu = 1e6 * len(sent.latencies) / (cpu_us(pid) - before)
        late = told_by(server, "burnish_late_total") - late
        last = capacity()
        whole, per_cpu = ((a + b) / 2 for a, b in zip(first, last))
        told = {"capacity": whole, "goodput": sent.goodput / whole, "by_cpu": by_cpu / per_cpu, "statuses": sent.statuses, "late": late}
        p50, p99 = (1e3 * sent.percentile(q) for q in (50, 99))
        return told | {"p50_ms": p50, "p99_ms": p99, "memory_mb": (memory, resident_mb(pid)), "seconds": sent.seconds}


def swaps(path: Path, number: int, folder: Path) -> dict[str, Any]:
    """Two versions exchanged again and again at 60 % of the capacity, and as long without."""
    versions = Versions(folder / "ranker")
    for _ in range(2):
        versions.add(path)
    versions.point("2")
    with Server(versions.path, admin=True) as server:
        address = (server.host, server.port)
        request = asked(path, X_Request_Timeout_Ms="60000")
        qps = 0.6 * saturate(*address, request, 16, 3.0).goodput
        done: list[float] = []

        def change() -> None:
            for i in range(number):
                began = time.perf_counter()
                told = json.dumps({"parameters": {"version": "12"[i % 2]}}).encode()
                urllib.request.urlopen(f"{server.url}/v2/repository/models/ranker/load", told, timeout=60).close()
                done.append(time.perf_counter() - began)

        quiet = [send(*address, request, qps, 5.0)]
        thread = threading.Thread(target=change)
        thread.start()
        loaded = []
        while thread.is_alive():
            loaded.append(send(*address, request, qps, 5.0))
        quiet.append(send(*address, request, qps, 5.0))
        found = {"swaps": len(done), "swap_s": float(np.median(done)), "qps": qps, "statuses": statuses(loaded), "quiet": statuses(quiet)}
        p99, quiet_p99 = (1e3 * float(np.percentile([s for sent in runs for s in sent.latencies], 99)) for runs in (loaded, quiet))
        return found | {"p99_ms": p99, "quiet_p99_ms": quiet_p99}


def kills(path: Path, seconds: float) -> dict[str, Any]:
    """A worker of two is killed each second, at a load that one of them carries."""
    with Server(path, name="ranker", workers=2) as server:
        address, request = (server.host, server.port), asked(path, X_Request_Timeout_Ms="60000")
        qps = 0.3 * saturate(*address, request, 16, 2.0).goodput
        ended, killed = threading.Event(), 0

        def kill() -> None:
            nonlocal killed
            while not ended.wait(1.0):
                workers = family(server.process.pid)[1:]
                if workers:
                    os.kill(workers[killed % len(workers)], signal.SIGKILL)
                    killed += 1

        thread = threading.Thread(target=kill)
        thread.start()
        sent = send(*address, request, qps, seconds)
        ended.set()
        thread.join()
        after = send(*address, request, qps, 2.0)
        return {"killed": killed, "qps": qps, "statuses": sent.statuses, "after": after.statuses, "alive": server.process.poll() is None}


def memory(path: Path, seconds: float) -> dict[str, Any]:
    """Resident memory while as many requests as it can do go through one worker: after a fifth of the time, and at the end."""
    with Server(path, name="ranker") as server:
        request = asked(path, X_Request_Timeout_Ms="60000")
        first = saturate(server.host, server.port, request, 16, seconds / 5)
        warm = resident_mb(server.process.pid)
        rest = saturate(server.host, server.port, request, 16, 4 * seconds / 5)
        return {"requests": len(first.latencies) + len(rest.latencies), "warm_mb": warm, "end_mb": resident_mb(server.process.pid)}


def startup(folder: Path, gigabytes: float) -> dict[str, Any]:
    """Seconds from the command to the first answer, for an artifact with a table of that size."""
    spec = Input("id", "int64", (), cardinality=int(gigabytes * 2**30) // 256)
    values = np.lib.format.open_memmap(folder / "table.npy", "w+", np.float32, (spec.cardinality, 64))
    values[:, 0] = np.arange(spec.cardinality)  # no table of equal rows, which would be folded
    row = Node(Op.LOOKUP, (weight("table", values), Node(Op.INPUT, half=spec.halves[0])))
    ones, zero = weight("w", np.ones((1, 64), np.float32)), weight("b", np.zeros(1, np.float32))
    graph = Graph((spec,), {"score": Node(Op.RESHAPE, (Node(Op.LINEAR, (row, ones, zero)),), shape=())})
    big = burnish.compile(graph, "fp32", backend="native").save(folder / "big").path
    times = []
    for _ in range(3):
        began = time.perf_counter()
        with Server(big, name="ranker") as server:
            urllib.request.urlopen(f"{server.url}{WHERE.removesuffix('/infer')}").close()
            times.append(time.perf_counter() - began)
    size = sum(file.stat().st_size for file in big.rglob("*") if file.is_file())
    shutil.rmtree(big)
    (folder / "table.npy").unlink()
    return {"gigabytes": size / 2**30, "seconds": min(times)}


def statuses(runs: list[Sent]) -> dict[int, int]:
    return dict(sum((Counter(sent.statuses) for sent in runs), Counter()))
