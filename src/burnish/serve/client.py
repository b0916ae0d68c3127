"""A running server as calls of (request, candidates), which is what load tests take: the scores come over the wire.

Each call has a connection of its own and waits for its answer, so as many queries are under way as there are calls; what comes meanwhile
waits at the caller, and its time counts. A server that refuses because it has too much is overloaded, and one that fails ends the run.
"""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from burnish.errors import Overloaded, ServeError
from burnish.inputs import Input
from burnish.serve.wire import DATATYPES

SECONDS = 60.0  # for a connection, and for an answer
TENSORS = {datatype: np.dtype(dtype) for dtype, datatype in DATATYPES.items()}


def calls_of(address: str, inputs: tuple[Input, ...], connections: int = 8) -> list[HttpCall | GrpcCall]:
    """So many connections to the model at `address`: http://host:port/v2/models/NAME or grpc://host:port/NAME. ServeError when the address
    is not one, or nothing answers there."""
    parts = urlsplit(address)
    name = parts.path.rstrip("/").rpartition("/")[2]
    if parts.scheme not in ("http", "grpc") or not parts.hostname or not parts.port or not name:
        raise ServeError(f"{address} is no address of a model. Give http://host:port/v2/models/NAME or grpc://host:port/NAME")
    kind = HttpCall if parts.scheme == "http" else GrpcCall
    return [kind(parts.hostname, parts.port, name, inputs) for _ in range(connections)]


class HttpCall:
    """One connection of REST with binary tensors."""

    remote = True  # scores are computed elsewhere: threads that wait for them need no core

    def __init__(self, host: str, port: int, name: str, inputs: tuple[Input, ...]) -> None:
        self.where, self.path, self.inputs = (host, port), f"/v2/models/{name}/infer", inputs
        self.rest = b""
        try:
            self.socket = socket.create_connection(self.where, SECONDS)
        except OSError as error:
            raise ServeError(f"nothing answers at http://{host}:{port}: {error}") from None
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __call__(self, request: dict[str, np.ndarray], candidates: dict[str, np.ndarray]) -> np.ndarray | dict[str, np.ndarray]:
        tensors = _tensors(self.inputs, request, candidates)
        told = [
            {"name": name, "shape": array.shape, "datatype": DATATYPES[array.dtype.name], "parameters": {"binary_data_size": array.nbytes}}
            for name, array in tensors
        ]
        text = json.dumps({"inputs": told, "parameters": {"binary_data_output": True}}).encode()
        body = b"".join([text, *(array.tobytes() for _, array in tensors)])
        lengths = f"Content-Length: {len(body)}\r\nInference-Header-Content-Length: {len(text)}"
        head = f"POST {self.path} HTTP/1.1\r\nHost: {self.where[0]}\r\n{lengths}\r\n\r\n"
        self.socket.sendall(head.encode() + body)
        status, headers, answer = self._answer()
        if status != 200:
            kind = Overloaded if status == 503 else ServeError
            raise kind(f"the server answered {status}: {answer[:500].decode(errors='replace')}")
        cut = int(headers.get("inference-header-content-length", len(answer)))
        found, at = {}, cut
        for output in json.loads(answer[:cut])["outputs"]:
            array = np.frombuffer(answer, TENSORS[output["datatype"]], int(np.prod(output["shape"])), at)
            found[output["name"]], at = array.reshape(output["shape"]), at + array.nbytes
        return found if len(found) > 1 else next(iter(found.values()))

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        got = self.rest
        while b"\r\n\r\n" not in got:
            got += self._more()
        head, _, got = got.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        while len(got) < length:
            got += self._more()
        self.rest = got[length:]
        return int(first.split()[1]), headers, got[:length]

    def _more(self) -> bytes:
        if not (part := self.socket.recv(1 << 18)):
            raise ServeError("the server closed the connection")
        return part


class GrpcCall:
    """One channel of gRPC with raw tensors."""

    remote = True

    def __init__(self, host: str, port: int, name: str, inputs: tuple[Input, ...]) -> None:
        try:
            import grpc
        except ImportError:
            raise ServeError("gRPC needs grpcio, which is not installed: pip install 'burnish[grpc]'") from None
        from burnish.serve.messages import SERVICE, protocol

        self.name, self.inputs, self.failed = name, inputs, grpc.RpcError
        self.busy = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.message, answer = (protocol()[kind] for kind in protocol().methods["ModelInfer"])
        # a channel of its own, not one shared with those of the same address
        channel = grpc.insecure_channel(f"{host}:{port}", [("grpc.use_local_subchannel_pool", 1)])
        try:
            grpc.channel_ready_future(channel).result(SECONDS / 6)
        except grpc.FutureTimeoutError:
            raise ServeError(f"nothing answers at grpc://{host}:{port}") from None
        self.infer: Any = channel.unary_unary(
            f"/{SERVICE}/ModelInfer", request_serializer=self.message.SerializeToString, response_deserializer=answer.FromString
        )

    def __call__(self, request: dict[str, np.ndarray], candidates: dict[str, np.ndarray]) -> np.ndarray | dict[str, np.ndarray]:
        message = self.message(model_name=self.name)
        for name, array in _tensors(self.inputs, request, candidates):
            message.inputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
            message.raw_input_contents.append(array.tobytes())
        try:
            answer = self.infer(message)  # without a time of ours: the server would take it for the request's
        except self.failed as error:
            kind = Overloaded if error.code() in self.busy else ServeError
            raise kind(f"the server answered {error.code().name}: {error.details()}") from None
        found = {
            output.name: np.frombuffer(raw, TENSORS[output.datatype]).reshape(output.shape)
            for output, raw in zip(answer.outputs, answer.raw_output_contents)
        }
        return found if len(found) > 1 else next(iter(found.values()))


def _tensors(inputs: tuple[Input, ...], request: dict[str, np.ndarray], candidates: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """Every half by its name on the wire; a request's has one row."""
    found = []
    for spec in inputs:
        for half in spec.halves:
            array = request[spec.name][None] if half.side == "request" else candidates[spec.name]
            found.append((spec.name if half.columns is None else f"{spec.name}.{half.side}", np.ascontiguousarray(array, half.dtype)))
    return found
