"""Workers that are killed, and servers that are told to end, under load."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import burnish
from burnish import testing
from burnish.serve.process import Server

pytest.importorskip("onnxruntime")
BODY = json.dumps(
    {
        "inputs": [
            {"name": "dense", "shape": [3, 5], "datatype": "FP32", "data": np.ones((3, 5)).tolist()},
            {"name": "cat", "shape": [3, 6], "datatype": "INT64", "data": np.ones((3, 6), int).tolist()},
        ]
    }
).encode()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    made = burnish.compile(testing.dcn_v2(dense=5, ids=6, width=4, cross=1, deep=(16, 8)), "fp32", backend="onnxruntime")
    return made.save(tmp_path_factory.mktemp("faults") / "ranker").path


class Clients:
    """Threads that ask without a pause, each on one connection that it makes again when it breaks."""

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.found: Counter[str] = Counter()
        self.last = time.monotonic()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(number)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection = None
        while not self._ended.is_set():
            try:
                connection = connection or http.client.HTTPConnection(self.server.address, timeout=10)
                connection.request("POST", "/v2/models/ranker/infer", BODY)
                answer = connection.getresponse()
                answer.read()
                self.found[str(answer.status)] += 1
                self.last = time.monotonic()
            except (OSError, http.client.HTTPException):
                self.found["broken"] += 1
                connection = None


def workers(server: Server) -> list[int]:
    task = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    if not task.exists():
        pytest.skip("finds processes in /proc")
    return [int(pid) for pid in task.read_text().split()]


def test_a_worker_that_is_killed_again_and_again_is_replaced_and_only_its_own_requests_fail(path):
    kills, clients = 4, 4
    with Server(path, name="ranker", workers=2) as server, Clients(server, clients) as asking:
        for i in range(kills):
            before = asking.found["200"]
            os.kill(workers(server)[i % 2], signal.SIGKILL)
            until = time.monotonic() + 15
            while len(workers(server)) < 2 or asking.found["200"] < before + 50:
                assert time.monotonic() < until and server.process.poll() is None, server.log
                time.sleep(0.05)
        time.sleep(0.5)
        assert set(asking.found) <= {"200", "broken"}
        assert 1 <= asking.found["broken"] <= kills * clients
        assert server.process.poll() is None
        assert "Traceback" not in server.log


def test_a_server_that_is_told_to_end_answers_what_it_has_and_leaves_nobody_behind(path):
    with Server(path, name="ranker", workers=2) as server, Clients(server, 4) as asking:
        while asking.found["200"] < 50:
            time.sleep(0.02)
        left = workers(server)
        assert server.stop(timeout=20) == 0
        assert set(asking.found) - {"200", "broken"} == set()
    for pid in left:
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
