"""A worker's application and its counters, without a server: what is answered, and what is counted, when things go wrong inside."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from burnish.errors import InputError, ServeError
from burnish.inputs import Input
from burnish.runtime.artifact import Output
from burnish.serve.app import Application
from burnish.serve.metrics import Board
from burnish.serve.process import Server
from burnish.serve.worker import Served, Worker


class Broken:
    """A scorer that raises."""

    inputs = (Input("x"),)
    outputs = (Output("score", "float32"),)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, request: Any, candidates: Any) -> np.ndarray:
        raise self.error


class Http:
    """What granian gives an application: the body, and where the answer goes."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.answer: tuple[int, list[tuple[str, str]], bytes] | None = None

    async def __call__(self) -> bytes:
        return self.body

    def response_bytes(self, *answer: Any) -> None:
        self.answer = answer  # type: ignore[assignment]


class Scope:
    def __init__(self, method: str, path: str, body: bytes = b"") -> None:
        self.method, self.path, self.headers = method, path, {"content-length": str(len(body))}


@pytest.fixture
def board():
    made = Board.create(3, {"model": "m"})
    yield made
    made.remove()


def ask(application: Application, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    http = Http(body)
    asyncio.run(application.__rsgi__(Scope(method, path, body), http))
    assert http.answer is not None
    return http.answer[0], http.answer[2]


BODY = json.dumps({"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}]}).encode()


def test_a_fault_of_the_scorer_is_a_500_with_its_reason_in_the_log(board, capsys):
    application = Application(Worker({"m": Served("m", Broken(RuntimeError("engine burnt")))}, board.claim()), board)
    status, body = ask(application, "POST", "/v2/models/m/infer", BODY)
    assert (status, json.loads(body)) == (500, {"error": "the server failed on this request; its log has the reason"})
    assert "RuntimeError: engine burnt" in capsys.readouterr().err
    assert b'burnish_requests_total{status="500"} 1.0' in ask(application, "GET", "/metrics")[1]


def test_what_the_scorer_refuses_is_a_400_with_its_sentence(board):
    application = Application(Worker({"m": Served("m", Broken(InputError("no such id")))}, board.claim()), board)
    status, body = ask(application, "POST", "/v2/models/m/infer", BODY)
    assert (status, json.loads(body)) == (400, {"error": "no such id"})


def test_metrics_are_not_told_where_they_have_a_port_of_their_own(board):
    application = Application(Worker({}, board.claim()), board, metrics=False)
    assert ask(application, "GET", "/metrics")[0] == 404


def test_each_process_counts_in_a_row_of_its_own_and_all_are_summed(board):
    mine = board.claim()
    mine.scored(16, 0.0002, 0.001, 0.0015)
    mine.answered(400)
    code = """
import sys
from pathlib import Path
from burnish.serve.metrics import Board
from burnish.serve.worker import Served, Worker
row = Board(Path(sys.argv[1]), {}).claim()
row.scored(200, 0.1, 0.25, 0.5, late=True)
print(row.index)
"""
    for _ in range(2):  # the second takes the row that the first left, and goes on in it
        told = subprocess.run([sys.executable, "-c", code, str(board.path)], capture_output=True, text=True, check=True)
        assert (mine.index, told.stdout.strip()) == (0, "1")
    text = board.text().decode()
    for line in (
        'burnish_info{model="m"} 1.0',
        'burnish_requests_total{status="200"} 3.0',
        'burnish_requests_total{status="400"} 1.0',
        'burnish_candidates_bucket{le="16.0"} 1.0',
        'burnish_candidates_bucket{le="+Inf"} 3.0',
        "burnish_candidates_sum 416.0",
        "burnish_late_total 2.0",
        'burnish_queue_seconds_bucket{le="0.0002"} 1.0',
        'burnish_compute_seconds_bucket{le="0.001"} 1.0',
        'burnish_request_seconds_bucket{le="0.5"} 3.0',
    ):
        assert line in text, line
    assert float(text.split("burnish_request_seconds_sum ")[1].split()[0]) == pytest.approx(1.0015)


def test_a_value_beyond_the_last_bound_is_in_the_last_bucket(board):
    board.claim().scored(10**6, 0.5, 60.0, 61.0)
    text = board.text().decode()
    assert 'burnish_request_seconds_bucket{le="10.0"} 0.0' in text
    assert 'burnish_request_seconds_bucket{le="+Inf"} 1.0' in text


def test_a_board_is_gone_when_its_server_is(board):
    board.remove()
    assert not os.path.exists(board.path)


def test_a_server_that_was_not_started_says_so():
    with pytest.raises(ServeError, match=r"the server was not started\. Use it in a with statement"):
        _ = Server("nowhere").process
