"""What serving costs beyond scoring: CPU time of a request to `burnish serve` less the scorer's, beside a granian echo of equal sizes.

CPU time is of all threads of the server and its workers; other work on the machine disturbs it less than wall time, and both servers are
measured in short turns. The client sends one request after another over one connection: binary tensors, one request and its candidates.
The model is small, so that little is subtracted; its inputs are Criteo's 13 numbers and 26 ids, half of them of the request.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import burnish
from burnish import testing
from burnish.host import Host, versions
from burnish.serve.app import Server, free_port
from burnish.serve.wire import DATATYPES

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="native")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each server and number of candidates")
    options = parser.parse_args()
    rows = measure(options.backend, options.seconds)
    print("| candidates | request, bytes | scorer, µs | `burnish serve`, µs | bare echo, µs | beyond the scorer, over the echo |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        told = f"{row['scorer_us']:.0f} | {row['burnish_us']:.0f} | {row['echo_us']:.0f} | {row['beyond_scorer_over_echo']:.2f}"
        print(f"| {row['candidates']} | {row['request_bytes']:,} | {told} |")
    host, found = Host.here(), versions("granian", "msgspec", "numpy")
    told = ", ".join(f"{name} {version}" for name, version in found.items())
    print(f"\n{host.cpu}, {host.cores} cores; Python {sys.version.split()[0]}, {told}; CPU time, one connection")


if __name__ == "__main__":
    main()
