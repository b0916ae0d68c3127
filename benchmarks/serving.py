"""What serving costs beyond scoring, and what is left of it under twice the load that it can carry.

First table: CPU time of a request to `burnish serve` less the scorer's, beside a granian echo of equal sizes.

CPU time is of all threads of the server and its workers; other work on the machine disturbs it less than wall time, and both servers are
measured in short turns. The client sends one request after another over one connection: binary tensors, one request and its candidates.
The model is small, so that little is subtracted; its inputs are Criteo's 13 numbers and 26 ids, half of them of the request.

Second table: a larger model with 128 candidates a request, Poisson arrivals at shares of its capacity, which is what 16 connections get
that ask one request after another. Latencies are of what was admitted, from the intended start of each request. The generator is a Python
process on the same machine and needs a core of its own: where it does not get one, or where others use the machine, p99 is theirs.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import burnish
from burnish import testing
from burnish.host import Host, versions
from burnish.serve.process import Server, free_port
from burnish.serve.versions import Versions
from burnish.serve.wire import DATATYPES
from burnish.testing.http_load import post, saturate, send

SIZES = (16, 128)
ECHO = """
import sys
from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
ANSWERS = {}
async def echo(scope, protocol):
    size = len(await protocol())
    protocol.response_bytes(200, [("content-type", "application/octet-stream")], ANSWERS.setdefault(scope.path, bytes(int(scope.path[1:]))))
options = dict(interface=Interfaces.RSGI, loop=Loops.asyncio, http=HTTPModes.http1, websockets=False, log_enabled=False)
Granian("echo", port=int(sys.argv[1]), **options).serve(target_loader=lambda: echo, wrap_loader=False)
"""


def body_of(scorer: burnish.Scorer, n: int) -> tuple[bytes, int, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A binary request for n candidates, the length of its JSON, and the same as the scorer takes it."""
    rng = np.random.default_rng(0)
    sides: dict[str, dict[str, np.ndarray]] = {"request": {}, "candidate": {}}
    told, raw = [], b""
    for spec in scorer.inputs:
        for half in spec.halves:
            shape = half.shape if half.side == "request" else (n, *half.shape)
            array = rng.integers(0, 1000, shape) if half.dtype == "int64" else rng.standard_normal(shape).astype(half.dtype)
            sides[half.side][spec.name] = array
            name = spec.name if half.columns is None else f"{spec.name}.{half.side}"
            on_wire = [1, *shape] if half.side == "request" else list(shape)
            told.append(
                {"name": name, "shape": on_wire, "datatype": DATATYPES[half.dtype], "parameters": {"binary_data_size": array.nbytes}}
            )
            raw += array.tobytes()
    header = json.dumps({"inputs": told, "parameters": {"binary_data_output": True}}).encode()
    return header + raw, len(header), sides["request"], sides["candidate"]


def cpu_us(pid: int) -> float:
    """Time that a process, its living children and all their threads ran, by the scheduler's own clock (nanoseconds in schedstat)."""
    pids = [str(pid), *Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return sum(int(task.read_text().split()[0]) for each in pids for task in Path(f"/proc/{each}/task").glob("*/schedstat")) / 1000


class Client:
    """One connection to a server, that sends the same request again and again."""

    def __init__(self, pid: int, port: int, path: str, body: bytes, headers: dict[str, str]) -> None:
        self.pid, self.request = pid, ("POST", path, body, headers)
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for _ in range(200):
            self.answer_bytes = self.ask()

    def ask(self) -> int:
        self.connection.request(*self.request)
        answer = self.connection.getresponse()
        told = answer.read()
        if answer.status != 200:
            raise SystemExit(told.decode())
        return len(told)

    def cost_us(self, seconds: float) -> float:
        """CPU time of the server a request."""
        before, until, n = cpu_us(self.pid), time.monotonic() + seconds, 0
        while time.monotonic() < until:
            self.ask()
            n += 1
        return (cpu_us(self.pid) - before) / n


def scoring(scorer: burnish.Scorer, request: dict[str, np.ndarray], candidates: dict[str, np.ndarray], seconds: float) -> float:
    """CPU microseconds of one call of the scorer."""
    for _ in range(200):
        scorer(request, candidates)
    before, until, n = time.process_time(), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        for _ in range(20):
            scorer(request, candidates)
        n += 20
    return 1e6 * (time.process_time() - before) / n


def measure(backend: str, seconds: float, rounds: int = 15) -> list[dict[str, Any]]:
    """A row for each number of candidates; each number is the median of `rounds` taken in turns."""
    turn = seconds / rounds
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        graph = testing.dcn_v2(width=4, cross=1, deep=(32, 16), mixed=True)
        path = burnish.compile(graph, "fp32", backend=backend).save(Path(folder) / "ranker").path
        port = free_port()
        with burnish.load(path) as scorer, Server(path) as server:
            echo = subprocess.Popen([sys.executable, "-c", ECHO, str(port)])
            try:
                while True:
                    try:
                        http.client.HTTPConnection("127.0.0.1", port, timeout=1).connect()
                        break
                    except OSError:
                        time.sleep(0.05)
                for n in SIZES:
                    body, cut, request, candidates = body_of(scorer, n)
                    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(cut)}
                    ours = Client(server.process.pid, server.port, "/v2/models/ranker/infer", body, headers)
                    bare = Client(echo.pid, port, f"/{ours.answer_bytes}", body, headers)
                    turns = [(scoring(scorer, request, candidates, turn), ours.cost_us(turn), bare.cost_us(turn)) for _ in range(rounds)]
                    scorer_us, ours_us, echo_us = np.median(turns, axis=0)
                    over = float(np.median([(served - scored) / echoed for scored, served, echoed in turns]))
                    row = {"candidates": n, "request_bytes": len(body), "answer_bytes": ours.answer_bytes, "scorer_us": scorer_us}
                    rows.append(row | {"burnish_us": ours_us, "echo_us": echo_us, "beyond_scorer_over_echo": over})
            finally:
                echo.terminate()
                echo.wait()
    return rows


def told_by(server: Server, name: str) -> float:
    """A number of the server's metrics."""
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        found = re.search(rf"^{re.escape(name)} (\S+)$", answer.read().decode(), re.M)
    assert found
    return float(found[1])


def resident_mb(pid: int) -> float:
    """Resident memory of a server's worker."""
    (worker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{worker}/status").read_text(), re.M)
    assert found
    return int(found[1]) / 1024


def overload(backend: str, seconds: float, slo_ms: float) -> list[dict[str, Any]]:
    """A row for each share of the capacity that is offered."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        graph = testing.dcn_v2(width=16, cross=2, deep=(512, 256), mixed=True)
        path = burnish.compile(graph, "fp32", backend=backend).save(Path(folder) / "ranker").path
        with burnish.load(path) as scorer, Server(path, deadline_ms=slo_ms) as server:
            body, cut, request, candidates = body_of(scorer, 128)
            scorer_us = scoring(scorer, request, candidates, 1.0)
            where, address = "/v2/models/ranker/infer", (server.host, server.port)
            patient = post(where, body, Inference_Header_Content_Length=str(cut), X_Request_Timeout_Ms="60000")
            asked = post(where, body, Inference_Header_Content_Length=str(cut))
            saturate(*address, patient, 16, 1.0)
            pid = server.process.pid
            before, full = cpu_us(pid), saturate(*address, patient, 16, 3.0)
            capacity, a_second = full.goodput, 1e6 * len(full.latencies) / (cpu_us(pid) - before)
            for share in (0.5, 0.8, 1.0, 2.0, 4.0):
                before, late = cpu_us(pid), told_by(server, "burnish_late_total")
                sent = send(*address, asked, share * capacity, seconds)
                by_cpu = 1e6 * len(sent.latencies) / (cpu_us(pid) - before) / a_second
                late = told_by(server, "burnish_late_total") - late
                told = {"share": share, "capacity": capacity, "scorer_us": scorer_us, "goodput": sent.goodput, "statuses": sent.statuses}
                p50, p99 = sent.percentile(50) * 1e3, sent.percentile(99) * 1e3
                rows.append(told | {"p50_ms": p50, "p99_ms": p99, "late": late, "by_cpu": by_cpu, "resident_mb": resident_mb(pid)})
    return rows


def swaps(backend: str, number: int) -> dict[str, Any]:
    """Two versions exchanged again and again at 60 % of the capacity, and as long without."""
    with tempfile.TemporaryDirectory() as folder:
        versions = Versions(Path(folder) / "ranker")
        for cross in (1, 2):
            graph = testing.dcn_v2(width=16, cross=cross, deep=(512, 256), mixed=True)
            versions.add(burnish.compile(graph, "fp32", backend=backend).save(Path(folder) / "made").path)
        versions.point("2")
        with burnish.load(versions.where("2")) as scorer:
            body, cut, *_ = body_of(scorer, 128)
        with Server(versions.path, admin=True) as server:
            address = (server.host, server.port)
            asked = post("/v2/models/ranker/infer", body, Inference_Header_Content_Length=str(cut), X_Request_Timeout_Ms="60000")
            qps = 0.6 * saturate(*address, asked, 16, 3.0).goodput
            done: list[float] = []

            def change() -> None:
                for i in range(number):
                    began = time.perf_counter()
                    told = json.dumps({"parameters": {"version": "12"[i % 2]}}).encode()
                    urllib.request.urlopen(f"{server.url}/v2/repository/models/ranker/load", told, timeout=60).close()
                    done.append(time.perf_counter() - began)

            quiet = send(*address, asked, qps, 10.0)
            thread = threading.Thread(target=change)
            thread.start()
            loaded = []
            while thread.is_alive():
                loaded.append(send(*address, asked, qps, 5.0))
            latencies = [each for sent in loaded for each in sent.latencies]
            statuses = sum((Counter(sent.statuses) for sent in loaded), Counter())
            told = {"swaps": len(done), "swap_s": float(np.median(done)), "qps": qps, "statuses": dict(statuses), "quiet": quiet.statuses}
            p99 = {"p99_ms": float(np.percentile(latencies, 99)) * 1e3, "quiet_p99_ms": quiet.percentile(99) * 1e3}
            return told | p99 | {"resident_mb": resident_mb(server.process.pid)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="native")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each server and number of candidates")
    parser.add_argument("--overload-seconds", type=float, default=10.0, help="for each share of the capacity")
    parser.add_argument("--slo-ms", type=float, default=10.0)
    parser.add_argument("--swaps", type=int, default=0, help="exchange two versions so many times under load")
    options = parser.parse_args()
    rows = measure(options.backend, options.seconds)
    print("| candidates | request, bytes | scorer, µs | `burnish serve`, µs | bare echo, µs | beyond the scorer, over the echo |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        told = f"{row['scorer_us']:.0f} | {row['burnish_us']:.0f} | {row['echo_us']:.0f} | {row['beyond_scorer_over_echo']:.2f}"
        print(f"| {row['candidates']} | {row['request_bytes']:,} | {told} |")
    rows = overload(options.backend, options.overload_seconds, options.slo_ms)
    print(
        f"\nCapacity {rows[0]['capacity']:.0f} requests/s (the scorer alone: {1e6 / rows[0]['scorer_us']:.0f}); SLO {options.slo_ms:g} ms\n"
    )
    columns = ["offered, of capacity", "answered, of capacity", "answered a CPU second, of that at capacity", "refused"]
    columns += ["p50, ms", "p99, ms", "late by the server's clock", "resident, MB"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        answered, refused = row["goodput"] / row["capacity"], row["statuses"].get(503, 0) / sum(row["statuses"].values())
        rest = f"{row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {row['late']:.0f} | {row['resident_mb']:.0f}"
        print(f"| {row['share']:.0%} | {answered:.0%} | {row['by_cpu']:.0%} | {refused:.0%} | {rest} |")
        others = {status: n for status, n in row["statuses"].items() if status not in (200, 503)}
        if others:
            print(f"\nOther answers: {others}\n")
    if options.swaps:
        row = swaps(options.backend, options.swaps)
        print(f"\n{row['swaps']} swaps, {row['swap_s']:.2f} s each from the call to its answer, at {row['qps']:.0f} requests/s:")
        print(f"answers {row['statuses']}, p99 {row['p99_ms']:.1f} ms, {row['resident_mb']:.0f} MB resident after;")
        print(f"without swaps {row['quiet']}, p99 {row['quiet_p99_ms']:.1f} ms")
    host, found = Host.here(), versions("granian", "msgspec", "numpy")
    told = ", ".join(f"{name} {version}" for name, version in found.items())
    print(f"\n{host.cpu}, {host.cores} cores; Python {sys.version.split()[0]}, {told}")


if __name__ == "__main__":
    main()
