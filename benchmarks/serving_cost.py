"""CPU time of a request to `burnish serve` beyond the scorer's, beside a bare granian echo of the same sizes.

CPU time is of all threads of the server and its workers, which other work on the machine disturbs less than wall time, and both servers
are measured in short turns, of which the least counts. The client sends one request after another over one connection: binary tensors, one
request and its candidates. The model is small, so that little is subtracted; its inputs are Criteo's 13 numbers and 26 ids, half of them of
the request.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import burnish
from burnish import testing
from burnish.serve.process import Server, free_port
from serving_model import body, cpu_us, scorer_us

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
            raise SystemExit(f"{answer.status}: {told.decode(errors='replace')}")
        return len(told)

    def cost_us(self, seconds: float) -> float:
        """CPU time of the server a request."""
        before, until, n = cpu_us(self.pid), time.monotonic() + seconds, 0
        while time.monotonic() < until:
            self.ask()
            n += 1
        return (cpu_us(self.pid) - before) / n


def measure(seconds: float, rounds: int = 15) -> list[dict[str, Any]]:
    """A row for each number of candidates; each number is the least of `rounds` taken in turns."""
    turn = seconds / rounds
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        graph = testing.dcn_v2(width=4, cross=1, deep=(32, 16), mixed=True)
        path = burnish.compile(graph, "fp32", backend="native").save(Path(folder) / "ranker").path
        port = free_port()
        with Server(path) as server:
            echo = subprocess.Popen([sys.executable, "-c", ECHO, str(port)])
            try:
                while True:
                    try:
                        http.client.HTTPConnection("127.0.0.1", port, timeout=1).connect()
                        break
                    except OSError:
                        time.sleep(0.05)
                for n in SIZES:
                    sent, cut = body(path, n)
                    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(cut)}
                    ours = Client(server.process.pid, server.port, "/v2/models/ranker/infer", sent, headers)
                    bare = Client(echo.pid, port, f"/{ours.answer_bytes}", sent, headers)
                    turns = [(scorer_us(path, n, turn), ours.cost_us(turn), bare.cost_us(turn)) for _ in range(rounds)]
                    scored, served, echoed = np.min(turns, axis=0)
                    over = float((served - scored) / echoed)
                    row = {"candidates": n, "request_bytes": len(sent), "answer_bytes": ours.answer_bytes, "scorer_us": scored}
                    rows.append(row | {"burnish_us": served, "echo_us": echoed, "over": over})
            finally:
                echo.terminate()
                echo.wait()
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| candidates | request, bytes | scorer, µs | `burnish serve`, µs | bare echo, µs | beyond the scorer, over the echo |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        told = f"{row['scorer_us']:.0f} | {row['burnish_us']:.0f} | {row['echo_us']:.0f} | {row['over']:.2f}"
        lines.append(f"| {row['candidates']} | {row['request_bytes']:,} | {told} |")
    return lines
