"""The Open Inference Protocol v2 over gRPC, on the event loop of a worker, so that both protocols share its turns and its scorer.

Messages become the same layouts and calls as bodies of REST, and mistakes get the same sentences. Scores go back as raw bytes where the
request came as raw bytes, else as typed contents.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from burnish.errors import InputError, ServeError
from burnish.host import versions
from burnish.runtime.scorer import Scores
from burnish.serve import protocol
from burnish.serve.access import Access
from burnish.serve.admission import OVERLOADED
from burnish.serve.messages import SERVICE, Protocol
from burnish.serve.messages import protocol as messages_of
from burnish.serve.metrics import Board
from burnish.serve.protocol import Layout, OutputParameters, OutputTensor, Request, RequestParameters, Signature
from burnish.serve.wire import DATATYPES, InputParameters, InputTensor, Limits, Refused, Slot, Wire, check
from burnish.serve.worker import LoadParameters, Served, Worker

if TYPE_CHECKING:
    import grpc

CONTENTS = {"BOOL": "bool_contents", "INT32": "int_contents", "INT64": "int64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents"}


def missing() -> str | None:
    """None, or the sentence that says what is not installed."""
    for module, package in (("grpc", "grpcio"), ("google", "protobuf")):
        if find_spec(module) is None:
            return f"serving gRPC needs {package}, which is not installed. Install it: pip install 'burnish[grpc]'"
    return None


def outline(signature: Signature, message: Any, limits: Limits) -> tuple[Layout, bytes]:
    """The layout of a ModelInferRequest, and the bytes of its raw tensors one after another. Refused for anything malformed."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise Refused(
            f"the request has {len(message.inputs)} inputs and {len(raw)} raw_input_contents. Send the contents of each, in order"
        )
    given = iter(zip(message.inputs, raw if raw else [None] * len(message.inputs)))

    def slot(tensor: InputTensor, wire: Wire) -> Slot:
        sent, data = next(given)  # asked for in order
        shape = check(tensor, wire, limits)
        if data is None:
            return Slot(tensor.name, wire, shape, 0, _from_contents(sent, wire, shape))
        needed = math.prod(shape) * wire.dtype.itemsize
        if sent.HasField("contents"):
            raise Refused(f"input {tensor.name!r} has both contents and raw_input_contents. Send its data once")
        if len(data) != needed:
            told = f"{wire.datatype} of shape {tensor.shape} takes {needed}"
            raise Refused(f"input {tensor.name!r} has {len(data)} bytes in raw_input_contents; {told}")
        return Slot(tensor.name, wire, shape, needed)

    return protocol.arrange(signature, _request(message), slot, limits), b"".join(raw)


class Listen(msgspec.Struct, frozen=True):
    """Where gRPC is answered. `cert` and `key` (PEM): over TLS; `client_ca`: to clients whose certificates it signed."""

    address: str
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None


def answer(classes: Protocol, model: Served, message: Any, asked: Layout, scores: Scores) -> Any:
    """The ModelInferResponse to a request."""
    if not isinstance(scores, dict):
        scores = {next(iter(model.signature.outputs)): scores}
    response = classes["ModelInferResponse"](model_name=model.name, model_version=model.version, id=message.id)
    for wanted in asked.wanted:
        array = scores[wanted.name]
        datatype = DATATYPES[array.dtype.name]
        output = response.outputs.add(name=wanted.name, datatype=datatype, shape=array.shape)
        if message.raw_input_contents or datatype not in CONTENTS:
            response.raw_output_contents.append(array.tobytes())
        else:
            getattr(output.contents, CONTENTS[datatype]).extend(array.ravel().tolist())
    return response


def _request(message: Any) -> Request:
    """What the message says beside its values, as REST says it."""
    inputs = [
        InputTensor(t.name, list(t.shape), t.datatype, InputParameters(shared_memory_region=_text(t.parameters, "shared_memory_region")))
        for t in message.inputs
    ]
    outputs = [
        OutputTensor(
            t.name,
            OutputParameters(
                classification=_number(t.parameters, "classification"), shared_memory_region=_text(t.parameters, "shared_memory_region")
            ),
        )
        for t in message.outputs
    ]
    return Request(inputs, message.id, RequestParameters(timeout=_number(message.parameters, "timeout")), outputs)


def _number(parameters: Any, name: str) -> int | None:
    if name not in parameters:  # asking for it would make it
        return None
    chosen = parameters[name].WhichOneof("parameter_choice")
    if chosen not in ("int64_param", "uint64_param"):
        raise Refused(f"the parameter {name} is a {chosen}. Give an int64_param")
    return int(getattr(parameters[name], chosen))


def _text(parameters: Any, name: str) -> str | None:
    return parameters[name].string_param if name in parameters else None


def _from_contents(sent: Any, wire: Wire, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of typed contents."""
    field = CONTENTS.get(wire.datatype)
    if field is None:
        raise Refused(f"input {sent.name!r} is {wire.datatype}, which has no typed contents. Send it in raw_input_contents")
    filled = [descriptor.name for descriptor, _ in sent.contents.ListFields()]
    if filled not in ([], [field]):
        raise Refused(f"input {sent.name!r} has its data in {', '.join(filled)}; {wire.datatype} goes into {field}")
    array: np.ndarray = np.array(getattr(sent.contents, field), wire.dtype)
    if array.size != math.prod(shape):
        raise Refused(f"input {sent.name!r} has {array.size} values in {field}, but says shape {list(shape)}")
    return array.reshape(shape)


class GrpcServer:
    """The service of one worker; workers share the port. `start` and `stop` run on its event loop."""

    def __init__(self, worker: Worker, board: Board, listen: Listen, access: Access | None = None) -> None:
        import grpc
        import grpc.aio

        self._grpc = grpc
        self.worker = worker
        self.board = board
        self.listen = listen
        self.access = access or Access()
        self._classes = messages_of()
        codes = grpc.StatusCode
        self._codes = {
            401: codes.UNAUTHENTICATED,
            403: codes.PERMISSION_DENIED,
            404: codes.NOT_FOUND,
            OVERLOADED: codes.RESOURCE_EXHAUSTED,
            500: codes.INTERNAL,
        }
        most = [("grpc.max_receive_message_length", worker.limits.body_bytes), ("grpc.max_send_message_length", -1)]
        options = [*most, ("grpc.so_reuseport", 1)]
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=worker.limits.connections)
        handlers = {name: self._handler(name, *types) for name, types in self._classes.methods.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def start(self) -> None:
        """ServeError when the port cannot be had."""
        try:
            if self.listen.cert is None or self.listen.key is None:
                self._server.add_insecure_port(self.listen.address)
            else:
                ca = self.listen.client_ca
                pair = [(self.listen.key.read_bytes(), self.listen.cert.read_bytes())]
                told = self._grpc.ssl_server_credentials(pair, ca.read_bytes() if ca else None, require_client_auth=ca is not None)
                self._server.add_secure_port(self.listen.address, told)
        except RuntimeError:
            raise ServeError(f"cannot listen at {self.listen.address}. Choose another with --grpc") from None
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """Take no new calls, and give those in flight so long to finish."""
        await self._server.stop(seconds)

    def _handler(self, name: str, request: str, response: str) -> grpc.RpcMethodHandler:
        method, parse = getattr(self, f"_{name}"), self._classes[request].FromString
        told = {
            "request_deserializer": None,  # it would be answered UNKNOWN where the bytes are no message
            "response_serializer": self._classes[response].SerializeToString,
        }

        async def call(data: bytes, context: Any) -> Any:
            try:
                self._let_in(name, context)
                return await method(parse(data), context)
            except Exception as error:  # ends one call, not the worker
                status, sentence = self._refused(error, request)
            await context.abort(self._codes.get(status, self._grpc.StatusCode.INVALID_ARGUMENT), sentence)

        async def stream(arriving: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
            try:
                self._let_in(name, context)
            except Refused as refused:
                self.worker.counters.answered(refused.status)
                await context.abort(self._codes[refused.status], str(refused))
            async for data in arriving:
                try:
                    answer = self._classes[response](infer_response=await method(parse(data), context))
                except Exception as error:  # ends one request of the stream
                    answer = self._classes[response](error_message=self._refused(error, request)[1])
                yield answer

        if name in self._classes.streams:
            return self._grpc.stream_stream_rpc_method_handler(stream, **told)
        return self._grpc.unary_unary_rpc_method_handler(call, **told)

    def _let_in(self, name: str, context: Any) -> None:
        """Refused when the caller's token does not allow it this method."""
        if not self.access.tokens or name in ("ServerLive", "ServerReady"):
            return
        self.access.check(_metadata(context, "authorization"))

    def _refused(self, error: Exception, request: str) -> tuple[int, str]:
        """Status and sentence of whatever a call ended with, counted."""
        from google.protobuf.message import DecodeError

        match error:
            case DecodeError():
                status, sentence = 400, f"the message is not a {request}"
            case Refused():
                status, sentence = error.status, str(error)
            case InputError() | ServeError():
                status, sentence = 400, str(error)
            case _:  # a fault of ours
                traceback.print_exception(error)
                status, sentence = 500, "the server failed on this request; its log has the reason"
        self.worker.counters.answered(status)
        return status, sentence

    async def _ServerLive(self, message: Any, context: Any) -> Any:
        return self._classes["ServerLiveResponse"](live=True)

    async def _ServerReady(self, message: Any, context: Any) -> Any:
        return self._classes["ServerReadyResponse"](ready=True)

    async def _ModelReady(self, message: Any, context: Any) -> Any:
        self.worker.model(message.name, message.version)
        return self._classes["ModelReadyResponse"](ready=True)

    async def _ServerMetadata(self, message: Any, context: Any) -> Any:
        return self._classes["ServerMetadataResponse"](**protocol.server_metadata(versions("burnish").get("burnish", "")))

    async def _ModelMetadata(self, message: Any, context: Any) -> Any:
        told = msgspec.json.decode(self.worker.model(message.name, message.version).metadata)
        del told["forms"]  # which the message has no place for
        return self._classes["ModelMetadataResponse"](**told)

    async def _ModelConfig(self, message: Any, context: Any) -> Any:
        told = protocol.model_config(self.worker.model(message.name, message.version))
        for tensor in (*told["input"], *told["output"]):
            tensor["data_type"] = _TYPES[tensor["data_type"]]
        return self._classes["ModelConfigResponse"](config=told)

    async def _ModelInfer(self, message: Any, context: Any) -> Any:
        arrived = time.perf_counter()
        worker = self.worker
        model = worker.model(message.model_name, message.model_version)
        size = message.ByteSize()
        worker.hold(size)
        try:
            left = context.time_remaining()
            if left is not None and left <= 0:
                raise Refused("the call's deadline was over when it arrived", OVERLOADED)
            key = message.id
            model = worker.answers(model, key)
            asked, body = outline(model.signature, message, worker.limits)
            parent = _metadata(context, "traceparent") if worker.spans is not None else None
            seconds = worker.seconds(model, asked, left)
            sentence = worker.turns.refusal(asked.rows, arrived, seconds)
            if sentence is not None:
                raise Refused(sentence, OVERLOADED)
            return await worker.score(
                model,
                asked,
                body,
                0,
                arrived,
                seconds,
                lambda asked, scores: answer(self._classes, model, message, asked, scores),
                key,
                parent,
            )
        finally:
            worker.release(size)

    async def _ModelStreamInfer(self, message: Any, context: Any) -> Any:
        """One request of a stream; the next one is read when this one is answered."""
        return await self._ModelInfer(message, context)

    async def _RepositoryIndex(self, message: Any, context: Any) -> Any:
        return self._classes["RepositoryIndexResponse"](models=self.worker.index())

    async def _RepositoryModelLoad(self, message: Any, context: Any) -> Any:
        self.access.check_admin(_metadata(context, "authorization"))
        await self.worker.load(message.model_name, _load_parameters(message))
        return self._classes["RepositoryModelLoadResponse"]()

    async def _RepositoryModelUnload(self, message: Any, context: Any) -> Any:
        self.access.check_admin(_metadata(context, "authorization"))
        await self.worker.unload(message.model_name, _load_parameters(message).version)
        return self._classes["RepositoryModelUnloadResponse"]()

    async def _ModelStatistics(self, message: Any, context: Any) -> Any:
        return self._classes["ModelStatisticsResponse"](**self.worker.statistics(self.board, message.name, message.version))


_TYPES = {"TYPE_BOOL": 1, "TYPE_INT32": 8, "TYPE_INT64": 9, "TYPE_FP16": 10, "TYPE_FP32": 11, "TYPE_FP64": 12}


def _metadata(context: Any, name: str) -> str | None:
    return next((value for key, value in context.invocation_metadata() or () if key == name), None)


def _load_parameters(message: Any) -> LoadParameters:
    told = {name: getattr(value, value.WhichOneof("parameter_choice") or "string_param") for name, value in message.parameters.items()}
    try:
        return msgspec.convert(told, type=LoadParameters, strict=False)  # share comes as text: the protocol has no fractions here
    except msgspec.ValidationError as error:
        raise Refused(f"the parameters are not those of a load call: {error}") from None
