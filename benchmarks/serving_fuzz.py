"""Damaged requests of both protocols, put to a worker's application: every answer is a sentence, none a 500, a crash or a hang.

A case is a good request (JSON, binary, several requests, a gRPC message) with bytes flipped, cut, doubled, moved, or numbers in its JSON
replaced by ones that hurt. Seeds are fixed. `tests/unit/test_serve_protocol.py` has what hypothesis looks for in the same place.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from burnish.errors import InputError, ServeError
from burnish.inputs import Input
from burnish.runtime.artifact import Output
from burnish.serve import protocol
from burnish.serve.app import Application
from burnish.serve.metrics import Board
from burnish.serve.wire import DATATYPES, Limits
from burnish.serve.worker import Served, Worker

INPUTS = (
    Input("dense", "float32", (3,), side="request"),
    Input("cat", "int64", (4,), side=("request", "candidate", "candidate", "request"), cardinality=50),
    Input("flag", "bool", (), side="candidate"),
)
HURT = ("-1", "0", "1e999", "9223372036854775808", "-9223372036854775809", "65537", "null", '""', "[]", "{}", "0.5", "true", "1e-320")
SLOW_SECONDS = 1.0


class Sum:
    """A scorer without an engine."""

    inputs, outputs = INPUTS, (Output("score", "float32"),)

    def rows(self, table: dict[str, np.ndarray]) -> np.ndarray:
        if (table["cat"] < 0).any() or (table["cat"] >= 50).any():
            raise InputError("an id is beyond its bound")
        with np.errstate(all="ignore"):
            found: np.ndarray = table["dense"].sum(axis=1) + table["cat"].sum(axis=1).astype(np.float32)
        return found

    def __call__(self, request: dict[str, np.ndarray], candidates: dict[str, np.ndarray]) -> np.ndarray:
        n = len(candidates["flag"])
        cat = np.empty((n, 4), np.int64)
        cat[:, [0, 3]], cat[:, [1, 2]] = request["cat"], candidates["cat"]
        return self.rows({"dense": np.broadcast_to(request["dense"], (n, 3)), "cat": cat})

    def bind(self, request: dict[str, np.ndarray], candidates: dict[str, np.ndarray]) -> Any:
        return lambda: self(request, candidates)


class Http:
    """What granian gives an application."""

    def __init__(self, body: bytes) -> None:
        self.body, self.status, self.text = body, 0, b""

    async def __call__(self) -> bytes:
        return self.body

    def response_bytes(self, status: int, headers: Any, text: bytes) -> None:
        self.status, self.text = status, text


class Scope:
    method = "POST"

    def __init__(self, path: str, headers: dict[str, str]) -> None:
        self.path, self.headers = path, headers


def good(rng: np.random.Generator) -> tuple[bytes, str | None]:
    """A good body, and the length of its JSON where bytes follow."""
    n, kind = int(rng.integers(0, 5)), rng.integers(0, 4)
    requests = 2 if kind == 3 else 1
    arrays = {
        "dense": rng.standard_normal((requests, 3)).astype(np.float32),
        "cat.request": rng.integers(0, 50, (requests, 2)),
        "cat.candidate": rng.integers(0, 50, (n, 2)),
        "flag": rng.integers(0, 2, n).astype(bool),
    }
    if kind == 2:
        arrays = {"dense": np.zeros((n, 3), np.float32), "cat": rng.integers(0, 50, (n, 4)), "flag": np.zeros(n, bool)}
    if kind == 3:
        arrays["offsets"] = np.array([0, n // 2, n])
    binary = bool(rng.integers(0, 2))
    told, raw = [], b""
    for name, array in arrays.items():
        tensor: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": DATATYPES[array.dtype.name]}
        if binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            raw += array.tobytes()
        else:
            tensor["data"] = array.tolist()
        told.append(tensor)
    text = json.dumps({"id": "x", "inputs": told, "parameters": {"binary_data_output": binary, "timeout": 5000000}}).encode()
    return text + raw, str(len(text)) if binary else None


def damaged(body: bytes, rng: np.random.Generator) -> bytes:
    """The body with one to three injuries."""
    for _ in range(int(rng.integers(1, 4))):
        at, to = sorted(int(i) for i in rng.integers(0, len(body) + 1, 2))
        match int(rng.integers(0, 6)):
            case 0 if body:
                text = bytearray(body)
                text[min(at, len(text) - 1)] ^= 1 << int(rng.integers(0, 8))
                body = bytes(text)
            case 1:
                body = body[:at]
            case 2:
                body = body[:at] + body[to:]
            case 3:
                body = body[:to] + body[at:]
            case 4:
                body = body[:at] + rng.bytes(int(rng.integers(1, 9))) + body[at:]
            case _:
                found = list(re.finditer(rb"-?\d+\.?\d*|true|false", body))
                if found:
                    one = found[int(rng.integers(0, len(found)))]
                    body = body[: one.start()] + HURT[int(rng.integers(0, len(HURT)))].encode() + body[one.end() :]
    return body


def run(seconds: float, most: int, seed: int = 0) -> dict[str, Any]:
    """So many cases, or as many as fit into the time. SystemExit with the case when one is answered badly."""
    from burnish.serve.grpc_server import missing, outline
    from burnish.serve.messages import protocol as messages

    board = Board.create(1, {"model": "m"})
    worker = Worker({"m": Served("m", Sum())}, board.claim(), Limits(rows=64, tensors=8))  # type: ignore[arg-type]  # a scorer is what scores
    application = Application(worker, board)
    answers: Counter[str] = Counter()
    rng = np.random.default_rng(seed)

    async def rest(count: int) -> None:
        for _ in range(count):
            body, header = good(rng)
            if rng.integers(0, 20):
                body = damaged(body, rng)
            headers = {"content-length": str(len(body)), **({protocol.HEADER_LENGTH: header} if header else {})}
            if not rng.integers(0, 8):
                headers[protocol.HEADER_LENGTH] = HURT[int(rng.integers(0, len(HURT)))]
            http = Http(body)
            began = time.perf_counter()
            await application.__rsgi__(Scope("/v2/models/m/infer", headers), http)
            if time.perf_counter() - began > SLOW_SECONDS or http.status not in (200, 400, 413, 503):
                raise SystemExit(f"answered {http.status} {http.text!r}: {body!r} {headers}")
            answers[f"REST {http.status}"] += 1

    def grpc(count: int) -> None:
        from google.protobuf.message import DecodeError

        classes = messages()
        model = worker.models["m"]
        for _ in range(count):
            body, header = good(rng)
            cut = int(header) if header else len(body)
            try:
                message = _message(classes, json.loads(body[:cut]), body[cut:], header is not None)
                text = message.SerializeToString()
                sent = classes["ModelInferRequest"].FromString(damaged(text, rng) if rng.integers(0, 20) else text)
                asked, raw = outline(model.signature, sent, worker.limits)
                protocol.scores_of(model.scorer, asked, raw, 0)
                answers["gRPC scored"] += 1
            except DecodeError:
                answers["gRPC no message"] += 1
            except (ServeError, InputError):
                answers["gRPC refused"] += 1

    until, done, step = time.monotonic() + seconds, 0, 500
    with contextlib.redirect_stderr(io.StringIO()):
        while time.monotonic() < until and done < most:
            asyncio.run(rest(step))
            done += step
            if missing() is None:
                grpc(step)
                done += step
    board.remove()
    return {"cases": done, "seconds": seconds - max(0.0, until - time.monotonic()), "answers": dict(sorted(answers.items()))}


def _message(classes: Any, told: dict[str, Any], raw: bytes, binary: bool) -> Any:
    """A REST body as a gRPC message."""
    fields = {"FP32": "fp32_contents", "INT64": "int64_contents", "BOOL": "bool_contents"}
    made = classes["ModelInferRequest"](model_name="m", id=told["id"])
    made.parameters["timeout"].int64_param = told["parameters"]["timeout"]
    at = 0
    for tensor in told["inputs"]:
        sent = made.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        if binary:
            size = tensor["parameters"]["binary_data_size"]
            made.raw_input_contents.append(raw[at : at + size])
            at += size
        else:
            getattr(sent.contents, fields[tensor["datatype"]]).extend(np.array(tensor["data"]).ravel().tolist())
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(Path(__file__).name, run(given.seconds, given.cases, given.seed))
