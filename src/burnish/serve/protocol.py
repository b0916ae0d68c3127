"""The Open Inference Protocol v2 over REST, as functions from bytes to arrays and back. No server here, so that a test is two lines.

A body is JSON, or JSON followed by the bytes of the tensors (the binary tensor extension; the header `Inference-Header-Content-Length`
says where the JSON ends). A model is called in one of two forms, told apart by names and rows:

- *request form*: the request half of the inputs has one row, the candidate half N rows. An input with columns on both sides appears as
  `<name>.request` and `<name>.candidate`. With an INT64 tensor `offsets` (R + 1 entries, from 0 to N) one call carries R requests: the
  request half has R rows, and request r owns the candidates offsets[r] to offsets[r + 1].
- *plain rows*: every input under its own name with N rows.

Everything a client may get wrong is a `Refused` with one sentence and a status; the scorer's own InputError joins them in `app`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from burnish.errors import ServeError
from burnish.inputs import Input, Side
from burnish.runtime.artifact import Output
from burnish.runtime.scorer import Scorer, Scores

DATATYPES = {"bool": "BOOL", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64"}
OFFSETS = "offsets"
HEADER_LENGTH = "inference-header-content-length"


class Refused(ServeError):
    """A request that is answered with `status` and this sentence."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


class Limits(msgspec.Struct, frozen=True):
    """What one request may ask for. Larger ones are refused before anything is computed or, for the body, read."""

    body_bytes: int = 64 << 20
    rows: int = 1 << 16
    tensors: int = 1024


LIMITS = Limits()


class Wire(msgspec.Struct, frozen=True):
    """A tensor as it appears in a body: its name there, and the input (and the columns of its first axis, None for all) that it feeds."""

    name: str
    input: str
    side: Side
    dtype: np.dtype
    datatype: str
    shape: tuple[int, ...]
    columns: tuple[int, ...] | None


class Signature(msgspec.Struct, frozen=True):
    """The tensors that a model takes in each form, by their names on the wire, and those it gives."""

    inputs: tuple[Input, ...]
    rows: dict[str, Wire]
    request: dict[str, Wire]
    outputs: dict[str, Output]
    offsets: bool  # whether the name `offsets` is free for the tensor that separates requests

    @classmethod
    def of(cls, inputs: Sequence[Input], outputs: Sequence[Output]) -> Signature:
        """The signature of a model. ServeError when two tensors would have the same name on the wire."""
        rows, request = {}, {}
        for spec in inputs:
            dtype = np.dtype(spec.dtype)
            datatype = DATATYPES[spec.dtype]
            rows[spec.name] = Wire(spec.name, spec.name, "candidate", dtype, datatype, spec.shape, None)
            for half in spec.halves:
                name = spec.name if half.columns is None else f"{spec.name}.{half.side}"
                if name in request or (half.columns is not None and any(name == other.name for other in inputs)):
                    raise ServeError(f"the half {name!r} of input {spec.name!r} has the name of another input. Rename one of them")
                request[name] = Wire(name, spec.name, half.side, dtype, datatype, half.shape, half.columns)
        return cls(tuple(inputs), rows, request, {o.name: o for o in outputs}, OFFSETS not in rows)

    @property
    def has_request_side(self) -> bool:
        return any(wire.side == "request" for wire in self.request.values())


class Wanted(msgspec.Struct, frozen=True):
    """An output that the client asked for, and whether as bytes behind the JSON."""

    name: str
    binary: bool


class Call(msgspec.Struct, frozen=True):
    """One decoded request. `table` is set in the plain form; else `request` has R rows, and `candidates` N, separated by `offsets`."""

    id: str
    rows: int
    wanted: tuple[Wanted, ...]
    table: dict[str, np.ndarray] | None = None
    request: dict[str, np.ndarray] = {}
    candidates: dict[str, np.ndarray] = {}
    offsets: tuple[int, ...] = ()

    @property
    def requests(self) -> int:
        """How many requests it carries; a plain table counts as one."""
        return 1 if self.table is not None else len(self.offsets) - 1


_ABSENT = msgspec.Raw()


class _InputParameters(msgspec.Struct):
    binary_data_size: int | None = None
    shared_memory_region: str | None = None


class _OutputParameters(msgspec.Struct):
    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: str | None = None


class _RequestParameters(msgspec.Struct):
    binary_data_output: bool = False


class _InputTensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: _InputParameters | None = None
    data: msgspec.Raw = _ABSENT


class _OutputTensor(msgspec.Struct):
    name: str
    parameters: _OutputParameters | None = None


class _Request(msgspec.Struct):
    inputs: list[_InputTensor]
    id: str = ""
    parameters: _RequestParameters | None = None
    outputs: list[_OutputTensor] | None = None


_REQUEST = msgspec.json.Decoder(_Request)
_VALUES: dict[tuple[str, int], msgspec.json.Decoder[Any]] = {}


def decode(signature: Signature, body: bytes, header_length: str | None = None, limits: Limits = LIMITS) -> Call:
    """The call that `body` asks for; arrays are views of it where alignment allows, read-only. Refused for anything malformed."""
    cut = _cut(body, header_length)
    message = _message(memoryview(body)[:cut])
    if len(message.inputs) > limits.tensors:
        raise Refused(f"the request has {len(message.inputs)} input tensors; at most {limits.tensors} are allowed", 413)
    arrays: dict[str, tuple[_InputTensor, np.ndarray]] = {}
    known = _form(signature, message.inputs)
    at = cut
    for tensor in message.inputs:
        wire = known.get(tensor.name)
        if wire is None:
            if tensor.name != OFFSETS or not signature.offsets:
                raise Refused(f"input {tensor.name!r} is not one of the model's, which are {_names(known)}")
            wire = _OFFSETS_WIRE
        if tensor.name in arrays:
            raise Refused(f"input {tensor.name!r} appears twice. Send each input once")
        _check_tensor(tensor, wire, limits)
        size = tensor.parameters.binary_data_size if tensor.parameters else None
        if size is None:
            arrays[tensor.name] = tensor, _from_json(tensor, wire)
        else:
            if header_length is None:
                raise Refused(f"input {tensor.name!r} has binary_data_size, but the request has no Inference-Header-Content-Length header")
            arrays[tensor.name] = tensor, _from_bytes(tensor, wire, body, at, size)
            at += size
    if at != len(body):
        raise Refused(f"the binary part has {len(body) - cut} bytes, but the inputs' binary_data_size add up to {at - cut}")
    for name in known:
        if name not in arrays:
            raise Refused(f"input {name!r} is missing. The model takes {_names(known)}")
    return _call(signature, known, {name: array for name, (_, array) in arrays.items()}, message)


def score(scorer: Scorer, call: Call) -> Scores:
    """The scorer's answer to a call: (rows, *shape) for each output; requests that came together are scored one by one."""
    if call.table is not None:
        return scorer.rows(call.table)
    parts = []
    for i in range(len(call.offsets) - 1):
        low, high = call.offsets[i], call.offsets[i + 1]
        parts.append(
            scorer({name: a[i : i + 1].reshape(a.shape[1:]) for name, a in call.request.items()},
                   {name: a[low:high] for name, a in call.candidates.items()})
        )  # fmt: skip
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if isinstance(first, dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in first}
    return np.concatenate(parts)  # type: ignore[arg-type]  # all are arrays


def encode(signature: Signature, call: Call, scores: Scores, name: str, version: str) -> tuple[bytes, int | None]:
    """The body that answers a call, and the length of its JSON part when tensors follow as bytes (None when all is JSON)."""
    if not isinstance(scores, dict):
        scores = {next(iter(signature.outputs)): scores}
    outputs, parts = [], []
    for wanted in call.wanted:
        array = scores[wanted.name]
        told: dict[str, Any] = {"name": wanted.name, "datatype": DATATYPES[array.dtype.name], "shape": array.shape}
        if wanted.binary:
            raw = array.tobytes()
            told["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            told["data"] = array.ravel().tolist()
        outputs.append(told)
    answer: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": outputs}
    if call.id:
        answer["id"] = call.id
    header = msgspec.json.encode(answer)
    if not parts:
        return header, None
    header += b" " * (-len(header) % 8)  # so that a client's view of the tensors is aligned
    return b"".join((header, *parts)), len(header)


def server_metadata(version: str) -> dict[str, Any]:
    """GET /v2"""
    return {"name": "burnish", "version": version, "extensions": ["binary_tensor_data"]}


def model_metadata(signature: Signature, name: str, version: str) -> dict[str, Any]:
    """GET /v2/models/M: the protocol's fields (the plain form), and `forms`, which documents both ways to call the model."""
    outputs = [
        {"name": o.name, "datatype": DATATYPES[o.dtype], "shape": [-1, *(() if o.shape == (1,) else o.shape)]}
        for o in signature.outputs.values()
    ]
    rows: list[dict[str, Any]] = [{"name": w.name, "datatype": w.datatype, "shape": [-1, *w.shape]} for w in signature.rows.values()]
    for told, spec in zip(rows, signature.inputs):
        if spec.cardinality is not None:
            told["cardinality"] = spec.cardinality
    forms: dict[str, Any] = {"rows": {"about": "Every input has one row a candidate.", "inputs": rows}}
    if signature.has_request_side:
        request = []
        for wire in signature.request.values():
            rows_there = 1 if wire.side == "request" else -1
            told = {"name": wire.name, "datatype": wire.datatype, "shape": [rows_there, *wire.shape], "side": wire.side}
            if wire.columns is not None:
                told |= {"of": wire.input, "columns": wire.columns}
            request.append(told)
        about = "Request-side inputs have one row, candidate-side inputs one row a candidate."
        forms["request"] = {"about": about, "inputs": request}
        if signature.offsets:
            forms["request"]["offsets"] = {
                "name": OFFSETS,
                "datatype": "INT64",
                "shape": [-1],
                "about": "Optional: R requests in one call. R + 1 numbers from 0 to N; request-side inputs have R rows.",
            }
    plain = [{key: told[key] for key in ("name", "datatype", "shape")} for told in rows]
    return {"name": name, "versions": [version], "platform": "burnish", "inputs": plain, "outputs": outputs, "forms": forms}


_OFFSETS_WIRE = Wire(OFFSETS, OFFSETS, "request", np.dtype("int64"), "INT64", (), None)


def _cut(body: bytes, header_length: str | None) -> int:
    """Where the JSON part of the body ends."""
    if header_length is None:
        return len(body)
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 16):
        raise Refused(f"the header Inference-Header-Content-Length is {header_length!r}. Give the number of bytes of the JSON part")
    cut = int(header_length)
    if cut > len(body):
        raise Refused(f"the header Inference-Header-Content-Length says {cut} bytes of JSON, but the body has {len(body)}")
    return cut


def _message(text: memoryview) -> _Request:
    try:
        return _REQUEST.decode(text)
    except msgspec.ValidationError as error:
        raise Refused(f"the JSON is not an inference request: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise Refused("the JSON is nested too deeply") from None


def _form(signature: Signature, tensors: Sequence[_InputTensor]) -> dict[str, Wire]:
    """The table of tensors that this request has to bring: of the request form, or of the plain one."""
    if not signature.has_request_side:
        # without a request side both forms have the same tensors; offsets separate requests, which then changes nothing
        return signature.request
    sent = {tensor.name for tensor in tensors}
    halves = [name for name in signature.request if name not in signature.rows and name in sent]
    whole = [name for name in signature.rows if name not in signature.request and name in sent]
    if halves and whole:
        raise Refused(f"the request has {halves[0]!r} and {whole[0]!r}. Send the halves of an input, or plain rows, not both")
    if halves or (OFFSETS in sent and signature.offsets):
        return signature.request
    if whole:
        return signature.rows
    rows = {tensor.name: tensor.shape[0] for tensor in tensors if tensor.shape}
    one = all(rows.get(wire.name, 1) == 1 for wire in signature.request.values() if wire.side == "request")
    candidates = any(wire.side == "candidate" for wire in signature.request.values())
    return signature.request if one and candidates else signature.rows


def _check_tensor(tensor: _InputTensor, wire: Wire, limits: Limits) -> None:
    """Refuse what can be refused before the data is looked at."""
    if tensor.datatype != wire.datatype:
        raise Refused(f"input {tensor.name!r} has datatype {tensor.datatype!r}; it must be {wire.datatype}")
    if not tensor.shape or tuple(tensor.shape[1:]) != wire.shape or tensor.shape[0] < 0:
        raise Refused(f"input {tensor.name!r} has shape {tensor.shape}; it must be {_shape(wire)}")
    if tensor.shape[0] > limits.rows + (wire is _OFFSETS_WIRE):
        raise Refused(f"input {tensor.name!r} has {tensor.shape[0]} rows; at most {limits.rows} are allowed", 413)
    parameters = tensor.parameters
    if parameters is not None and parameters.shared_memory_region is not None:
        raise Refused(f"input {tensor.name!r} is in shared memory, which is not supported. Send its data in the body")
    has_binary = parameters is not None and parameters.binary_data_size is not None
    if has_binary and tensor.data is not _ABSENT:
        raise Refused(f"input {tensor.name!r} has both data and binary_data_size. Send its data once")
    if not has_binary and tensor.data is _ABSENT:
        raise Refused(f"input {tensor.name!r} has no data. Send a list in the field data, or bytes behind the JSON and binary_data_size")


def _from_bytes(tensor: _InputTensor, wire: Wire, body: bytes, at: int, size: int) -> np.ndarray:
    """The tensor whose bytes begin at `at`: a view of the body, or a copy where that would not be aligned."""
    count = tensor.shape[0]
    for n in wire.shape:
        count *= n
    needed = count * wire.dtype.itemsize
    if size != needed:
        raise Refused(f"input {tensor.name!r} has binary_data_size {size}; {wire.datatype} of shape {tensor.shape} takes {needed} bytes")
    if at + size > len(body):
        raise Refused(f"the binary part ends inside input {tensor.name!r}: {size} bytes were announced and {max(0, len(body) - at)} came")
    if wire.dtype == bool:
        raw = np.frombuffer(body, np.uint8, count, at)
        if count and raw.max() > 1:
            raise Refused(f"input {tensor.name!r} has a byte {raw.max()}; BOOL takes 0 and 1")
    array = np.frombuffer(body, wire.dtype, count, at).reshape(tensor.shape)
    return array if array.flags.aligned else array.copy()


def _from_json(tensor: _InputTensor, wire: Wire) -> np.ndarray:
    """The tensor of a JSON list, which may be flat or nested like its shape."""
    raw = bytes(tensor.data)
    depth = _depth(raw)
    if depth not in (1, len(tensor.shape)):
        told = "a flat list" if len(tensor.shape) == 1 else f"a flat list or one nested {len(tensor.shape)} deep, like its shape"
        raise Refused(f"input {tensor.name!r} has data nested {depth} deep. Send {told}")
    try:
        values = _values(wire.dtype.kind, depth).decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(f"input {tensor.name!r} has data that does not fit {wire.datatype}: {error}") from None
    wide = {"f": np.float64, "i": np.int64, "b": np.bool_}[wire.dtype.kind]
    try:
        full: np.ndarray = np.array(values, wide)
    except OverflowError:
        raise Refused(f"input {tensor.name!r} has a value that is beyond {wire.datatype}") from None
    except ValueError:
        raise Refused(f"input {tensor.name!r} has data that is not rectangular; it must be {tensor.shape}") from None
    with np.errstate(over="ignore"):  # what overflows is refused below
        array = full.astype(wire.dtype, copy=False)
    beyond = np.isinf(array) if wire.dtype.kind == "f" else array != full
    if beyond.any():
        raise Refused(f"input {tensor.name!r} has the value {full[beyond].flat[0]}, which is beyond {wire.datatype}")
    given, shape = array.shape, tuple(tensor.shape)
    if (depth > 1 and given != shape and array.size) or array.size != np.prod(shape, dtype=np.int64):
        raise Refused(f"input {tensor.name!r} has {array.size} values in its data (shape {list(given)}), but says shape {tensor.shape}")
    return array.reshape(shape)


def _depth(raw: bytes) -> int:
    """How many brackets a JSON text begins with."""
    depth = 0
    for byte in raw:
        if byte == 0x5B:  # [
            depth += 1
        elif byte not in b" \t\r\n":
            break
    return depth


def _values(kind: str, depth: int) -> msgspec.json.Decoder[Any]:
    key = kind, depth
    if key not in _VALUES:
        type_: Any = {"f": float, "i": int, "b": bool}[kind]
        for _ in range(depth):
            type_ = list[type_]
        _VALUES[key] = msgspec.json.Decoder(type_)
    return _VALUES[key]


def _call(signature: Signature, known: Mapping[str, Wire], arrays: dict[str, np.ndarray], message: _Request) -> Call:
    """The call of checked tensors, once their numbers of rows agree."""
    wanted = _wanted(signature, message)
    if known is signature.rows:
        rows = _same_rows(known.values(), arrays, "plain rows")
        return Call(message.id, rows, wanted, table=arrays)
    offsets = arrays.pop(OFFSETS, None) if OFFSETS not in known else None
    sides: dict[str, dict[str, np.ndarray]] = {"request": {}, "candidate": {}}
    for name, array in arrays.items():
        wire = known[name]
        sides[wire.side][wire.input] = array
    rows = _same_rows([w for w in known.values() if w.side == "candidate"], arrays, "the candidates")
    requests = [w for w in known.values() if w.side == "request"]
    if offsets is None:
        bounds: tuple[int, ...] = (0, rows)
    else:
        bounds = tuple(offsets.tolist())
        if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != rows or any(a > b for a, b in itertools.pairwise(bounds)):
            raise Refused(f"offsets must rise from 0 to the number of candidates, {rows}, with one more entry than requests")
    for wire in requests:
        if len(arrays[wire.name]) != len(bounds) - 1:
            hint = "one row" if offsets is None else f"{len(bounds) - 1} rows, one a request"
            raise Refused(f"input {wire.name!r} is on the request side and has {len(arrays[wire.name])} rows. Give it {hint}")
    return Call(message.id, rows, wanted, None, sides["request"], sides["candidate"], bounds)


def _wanted(signature: Signature, message: _Request) -> tuple[Wanted, ...]:
    default = message.parameters is not None and message.parameters.binary_data_output
    if not message.outputs:
        return tuple(Wanted(name, default) for name in signature.outputs)
    wanted = []
    for output in message.outputs:
        if output.name not in signature.outputs:
            raise Refused(f"output {output.name!r} is not one of the model's, which are {_names(signature.outputs)}")
        parameters = output.parameters or _OutputParameters()
        if parameters.classification or parameters.shared_memory_region:
            raise Refused(f"output {output.name!r} asks for classification or shared memory, which are not supported")
        wanted.append(Wanted(output.name, default if parameters.binary_data is None else parameters.binary_data))
    return tuple(wanted)


def _same_rows(wires: Sequence[Wire] | Any, arrays: Mapping[str, np.ndarray], where: str) -> int:
    rows: int | None = None
    for wire in wires:
        n = len(arrays[wire.name])
        if rows is not None and n != rows:
            told = ", ".join(f"{w.name!r} {len(arrays[w.name])}" for w in wires)
            raise Refused(f"{where} have different numbers of rows: {told}. Give every tensor there the same number")
        rows = n
    return rows or 0


def _shape(wire: Wire) -> str:
    rows = "requests + 1" if wire is _OFFSETS_WIRE else "rows"
    return "[" + ", ".join([rows, *map(str, wire.shape)]) + "]"


def _names(names: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, names))
