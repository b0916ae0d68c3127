"""A server that is asked for more than it can do: it refuses at once, answers what it admitted in time, and slow clients hold nothing."""

from __future__ import annotations

import http.client
import json
import resource
import socket
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import burnish
from burnish import testing
from burnish.errors import ServeError
from burnish.runtime.artifact import Artifact
from burnish.serve.process import Server
from burnish.serve.server import Options, serve
from burnish.serve.wire import DATATYPES
from burnish.testing.http_load import post, send

pytest.importorskip("onnxruntime")
ROWS = 1024


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    artifact = burnish.compile(testing.dcn_v2(dense=5, ids=6, width=8, cross=2, deep=(64, 32)), recipe="fp32", backend="onnxruntime")
    return artifact.save(tmp_path_factory.mktemp("overload") / "ranker").path


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A model whose requests take so long that to send twice as many as it can answer is little work."""
    artifact = burnish.compile(testing.dcn_v2(dense=5, ids=6, width=8, cross=2, deep=(1024, 512)), recipe="fp32", backend="onnxruntime")
    return artifact.save(tmp_path_factory.mktemp("slow") / "ranker").path


def body(path: Path, rows: int, **parameters: object) -> tuple[bytes, str]:
    """A binary request for so many rows, and the length of its JSON."""
    inputs, raw = [], b""
    for spec in Artifact.read(path).manifest.inputs:
        array = np.zeros((rows, *spec.shape), spec.dtype)
        size = {"binary_data_size": array.nbytes}
        inputs.append({"name": spec.name, "shape": list(array.shape), "datatype": DATATYPES[spec.dtype], "parameters": size})
        raw += array.tobytes()
    header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True, **parameters}}).encode()
    return header + raw, str(len(header))


def ask(server: Server, body: tuple[bytes, str], **headers: str) -> tuple[int, str, dict[str, str]]:
    """Status, what was refused, and the headers."""
    told = {"Inference-Header-Content-Length": body[1]} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection(server.address, timeout=30)
    connection.request("POST", "/v2/models/ranker/infer", body[0], told)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text)["error"] if answer.status != 200 else "", dict(answer.getheaders())


def test_twice_the_capacity_is_refused_in_part_and_what_is_admitted_is_answered_in_time(slow):
    deadline = 0.25
    with Server(slow, deadline_ms=1000 * deadline) as server:
        whole = body(slow, ROWS)
        began, n = time.monotonic(), 0
        while time.monotonic() < began + 1.0:
            assert ask(server, whole)[0] == 200
            n += 1
        request = post("/v2/models/ranker/infer", whole[0], inference_header_content_length=whole[1])
        # one request after another is less than the capacity, so this is at least twice
        sent = send(server.host, server.port, request, 4 * n, 4.0)
        assert set(sent.statuses) <= {200, 503}, sent.broken
        assert sent.statuses[503] > 0
        assert sent.statuses[200] > 0.1 * n * 4  # of a machine that others may share
        assert max(sent.latencies) < 10 * deadline
        assert ask(server, whole)[0] == 200
        assert "Traceback" not in server.log
        text = urllib.request.urlopen(f"{server.url}/metrics").read().decode()
        assert "burnish_waiting 0.0" in text and 'burnish_requests_total{status="503"}' in text and "burnish_late_total" in text


def test_a_request_may_say_its_own_time(path):
    with Server(path) as server:
        large, small = body(path, 1 << 16), body(path, 1)
        assert ask(server, large)[0] == 200  # and so it is known what it takes
        for refused in (ask(server, large, X_Request_Timeout_Ms="0.1"), ask(server, body(path, 1 << 16, timeout=100))):
            status, sentence, headers = refused
            assert status == 503 and headers["retry-after"] == "1"
            assert "65536 rows take about" in sentence and "the request's time is 0.1 ms" in sentence
        assert ask(server, small, X_Request_Timeout_Ms="30000")[0] == 200
        assert ask(server, body(path, 1, timeout=0))[0] == 200  # as Triton has it: none of its own
        for wrong in ("soon", "-1", "nan", "inf"):
            status, sentence, _ = ask(server, small, X_Request_Timeout_Ms=wrong)
            assert (status, sentence) == (400, f"the header X-Request-Timeout-Ms is {wrong!r}. Give milliseconds above 0")
        assert ask(server, body(path, 1, timeout=-1))[:2] == (400, "the parameter timeout is -1. Give microseconds")
        assert ask(server, body(path, 1, timeout="1"))[0] == 400


def test_the_default_is_the_objective_that_the_artifact_was_chosen_for(path, tmp_path):
    artifact = Artifact.read(path).save(tmp_path / "ranker")
    artifact.measured(objective={"p99_ms": 0.05})
    with Server(artifact.path) as server:
        large = body(path, 1 << 16)
        assert ask(server, large, X_Request_Timeout_Ms="30000")[0] == 200
        status, sentence, _ = ask(server, large)
        assert status == 503 and "the request's time is 0.05 ms" in sentence
    with pytest.raises(ServeError, match=r"a deadline of 0 ms cannot be met\. Give milliseconds above 0"):
        serve(path, Options(deadline_ms=0))


@pytest.mark.parametrize("announced", [b"Content-Length: 5000\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"])
def test_a_body_that_does_not_come_is_given_up(path, announced):
    with (
        Server(path, limits={"body_seconds": 0.3, "held_bytes": 6000}) as server,
        socket.create_connection((server.host, server.port), timeout=10) as slow,
    ):
        slow.sendall(b"POST /v2/models/ranker/infer HTTP/1.1\r\nHost: x\r\n" + announced)
        assert ask(server, body(path, 1))[0] == 200  # others do not wait for it
        answer = b""
        while part := slow.recv(1000):
            answer += part
            if answer.endswith(b"}"):
                break
        assert answer.startswith(b"HTTP/1.1 408") and b"the body did not arrive within 0.3 seconds" in answer
        # and what it would have taken is free again
        assert ask(server, body(path, 50))[0] == 200


def test_the_bodies_that_a_worker_holds_are_bounded(path):
    with Server(path, limits={"held_bytes": 6000}) as server, socket.create_connection((server.host, server.port), timeout=10) as slow:
        slow.sendall(b"POST /v2/models/ranker/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{")
        time.sleep(0.2)
        status, sentence, headers = ask(server, body(path, 50))
        assert (status, sentence) == (503, "overloaded: the requests here have 5000 bytes already. Try again later, or elsewhere")
        assert headers["retry-after"] == "1"
    with Server(path, limits={"held_bytes": 6000}) as server:
        for _ in range(5):  # each gives back what it took
            assert ask(server, body(path, 50))[0] == 200


def test_idle_connections_leave_room_for_requests(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4000:
        pytest.skip("needs the right to open 4000 files")
    try:
        with Server(path) as server:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
            idle = [socket.create_connection((server.host, server.port), timeout=10) for _ in range(1500)]
            assert ask(server, body(path, 1))[0] == 200
            for connection in idle:
                connection.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
