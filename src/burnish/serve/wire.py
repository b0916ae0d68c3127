"""Tensors as they cross the wire: what a body says of one, checked, and its values as an array. `protocol` puts them together."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

from burnish.errors import ServeError
from burnish.inputs import Side

DATATYPES = {"bool": "BOOL", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64"}


class Refused(ServeError):
    """A request that is answered with `status` and this sentence."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


class Limits(msgspec.Struct, frozen=True):
    """What one request may ask for, and a worker may hold. What goes beyond is refused before anything is computed or, for a body, read."""

    body_bytes: int = 64 << 20
    rows: int = 1 << 16
    tensors: int = 1024
    body_seconds: float = 10.0  # in which a body must have arrived
    seconds: float = 60.0  # the longest time that a request can ask for
    connections: int = 4096  # of one worker, idle ones included
    waiting: int = 1024  # requests of one worker that wait for their turn
    held_bytes: int = 256 << 20  # bodies of one worker's requests, those that are still arriving included


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


OFFSETS = "offsets"  # the name of the tensor that separates requests of one call
OFFSETS_WIRE = Wire(OFFSETS, OFFSETS, "request", np.dtype("int64"), "INT64", (), None)


class Slot(msgspec.Struct, frozen=True):
    """One tensor of a body: its shape, and its values where they came as JSON, or where its bytes lie behind the JSON."""

    name: str
    wire: Wire
    shape: tuple[int, ...]
    size: int = 0
    array: np.ndarray | None = None


_ABSENT = msgspec.Raw()  # a field that was not sent


class InputParameters(msgspec.Struct):
    binary_data_size: int | None = None
    shared_memory_region: str | None = None


class InputTensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: InputParameters | None = None
    data: msgspec.Raw = _ABSENT


_VALUES: dict[tuple[str, int], msgspec.json.Decoder[Any]] = {}


def check(tensor: InputTensor, wire: Wire, limits: Limits) -> tuple[int, ...]:
    """The shape of a tensor whose name is known; Refused when its description does not fit."""
    if tensor.datatype != wire.datatype:
        raise Refused(f"input {tensor.name!r} has datatype {tensor.datatype!r}; it must be {wire.datatype}")
    if not tensor.shape or tuple(tensor.shape[1:]) != wire.shape or tensor.shape[0] < 0:
        raise Refused(f"input {tensor.name!r} has shape {tensor.shape}; it must be {_shape(wire)}")
    if tensor.shape[0] > limits.rows:
        raise Refused(f"input {tensor.name!r} has {tensor.shape[0]} rows; at most {limits.rows} are allowed", 413)
    if tensor.parameters is not None and tensor.parameters.shared_memory_region is not None:
        raise Refused(f"input {tensor.name!r} is in shared memory, which is not supported. Send its data in the body")
    return tuple(tensor.shape)


def slot_of(tensor: InputTensor, wire: Wire, binary: bool, limits: Limits) -> Slot:
    """The place of a tensor whose name is known; Refused when its description, or its values in JSON, do not fit."""
    shape = check(tensor, wire, limits)
    size = tensor.parameters.binary_data_size if tensor.parameters is not None else None
    if size is None:
        if tensor.data is _ABSENT:
            raise Refused(
                f"input {tensor.name!r} has no data. Send a list in the field data, or bytes behind the JSON and binary_data_size"
            )
        return Slot(tensor.name, wire, shape, 0, _from_json(tensor, wire))
    if tensor.data is not _ABSENT:
        raise Refused(f"input {tensor.name!r} has both data and binary_data_size. Send its data once")
    if not binary:
        raise Refused(f"input {tensor.name!r} has binary_data_size, but the request has no Inference-Header-Content-Length header")
    needed = math.prod(shape) * wire.dtype.itemsize
    if size != needed:
        raise Refused(f"input {tensor.name!r} has binary_data_size {size}; {wire.datatype} of shape {tensor.shape} takes {needed} bytes")
    return Slot(tensor.name, wire, shape, size)


def view(slot: Slot, body: bytes | memoryview, at: int) -> np.ndarray:
    """The tensor whose bytes begin at `at`: a view of the body, or a copy where that would not be aligned."""
    array: np.ndarray = np.ndarray(slot.shape, slot.wire.dtype, body, at)
    if slot.wire.dtype.kind == "b":
        raw = array.view(np.uint8)
        if raw.size and raw.max() > 1:
            raise Refused(f"input {slot.name!r} has a byte {raw.max()}; BOOL takes 0 and 1")
    return array if array.flags.aligned else array.copy()


def _from_json(tensor: InputTensor, wire: Wire) -> np.ndarray:
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


def _shape(wire: Wire) -> str:
    rows = "requests + 1" if wire is OFFSETS_WIRE else "rows"
    return "[" + ", ".join([rows, *map(str, wire.shape)]) + "]"
