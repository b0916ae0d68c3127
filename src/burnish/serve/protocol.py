"""The Open Inference Protocol v2 over REST, as functions from bytes to arrays and back. No server here, so that a test is two lines.

A body is JSON, or JSON followed by the bytes of the tensors (the binary tensor extension; the header `Inference-Header-Content-Length`
says where the JSON ends). A model is called in one of two forms, told apart by names and rows:

- *request form*: the request half of the inputs has one row, the candidate half N rows. An input with columns on both sides appears as
  `<name>.request` and `<name>.candidate`. With an INT64 tensor `offsets` (R + 1 entries, from 0 to N) one call carries R requests: the
  request half has R rows, and request r owns the candidates offsets[r] to offsets[r + 1].
- *plain rows*: every input under its own name with N rows.

Decoding has two halves. The JSON alone gives a `Layout`: which tensors, where their bytes lie, what is wanted back. The layout and the
bytes give a `Call`. Clients send the same JSON again and again, so layouts are kept by its text, and a request costs a few array views.

Everything a client may get wrong is a `Refused` with one sentence and a status; the scorer's own InputError joins them in `app`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from burnish.errors import ServeError
from burnish.inputs import Input
from burnish.runtime.artifact import Output
from burnish.runtime.scorer import Scorer, Scores
from burnish.serve.wire import (
    DATATYPES,
    LIMITS,
    OFFSETS,
    OFFSETS_WIRE,
    InputTensor,
    Limits,
    Refused,
    Slot,
    Wire,
    slot_of,
    view,
)

HEADER_LENGTH = "inference-header-content-length"


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


class Again(msgspec.Struct):
    """What is kept of a layout for the next request that has it: how often it was met, the JSON part of a binary answer but its id, and
    arrays that the scorer is bound to."""

    times: int = 0
    answer: bytes | None = None
    bound: Bound | None = None


class Layout(msgspec.Struct):
    """All that the JSON of a request says."""

    id: str
    wanted: tuple[Wanted, ...]
    slots: tuple[Slot, ...]
    plain: bool  # the form: plain rows, else requests and candidates
    rows: int
    requests: int
    binary_bytes: int
    timeout: float | None = None  # seconds that the request gives itself
    again: Again = msgspec.field(default_factory=Again)


class Bound:
    """Arrays of one layout, which requests of that layout fill one after another, and the scorer bound to them."""

    def __init__(self, layout: Layout, scorer: Scorer) -> None:
        self._bytes = layout.binary_bytes
        self._moves: list[tuple[int, int, int, int]] = []  # from, up to (both behind the JSON), to, up to
        into = memoryview(bytearray(layout.binary_bytes + 8 * len(layout.slots)))
        request: dict[str, np.ndarray] = {}
        candidates: dict[str, np.ndarray] = {}
        come = at = 0
        for slot in layout.slots:
            wire = slot.wire
            at += -at % wire.dtype.itemsize
            array = view(slot, into, at)
            if wire.side == "request":
                request[wire.input] = array.reshape(wire.shape)
            else:
                candidates[wire.input] = array
            if self._moves and self._moves[-1][3] == at:  # goes on where the last one ends, there and here
                self._moves[-1] = (self._moves[-1][0], come + slot.size, self._moves[-1][2], at + slot.size)
            else:
                self._moves.append((come, come + slot.size, at, at + slot.size))
            come, at = come + slot.size, at + slot.size
        self._into = into
        self._scores = scorer.bind(request, candidates)

    @staticmethod
    def fits(layout: Layout) -> bool:
        """Whether it pays (the layout comes again, and is small enough to be kept) and can be: the tensors of one request as bytes, none
        whose values need a look."""
        if layout.again.times < _AGAIN or layout.binary_bytes > _BOUND_BYTES or layout.plain or layout.requests != 1:
            return False
        return all(slot.array is None and slot.wire is not OFFSETS_WIRE and slot.wire.dtype.kind != "b" for slot in layout.slots)

    def score(self, layout: Layout, body: bytes, cut: int) -> Scores:
        """The scores of a request; they are good until the next one."""
        if len(body) - cut != self._bytes:
            raise Refused(_misfit(layout, len(body) - cut))
        came, into = memoryview(body)[cut:], self._into
        for start, stop, to, up_to in self._moves:
            into[to:up_to] = came[start:stop]
        return self._scores()


class Call(msgspec.Struct, frozen=True):
    """One decoded request, as the scorer takes it: `table` in the plain form, else `request` and `candidates`. Where several requests came
    in one call, `request` has a row for each, and `offsets` separates their candidates."""

    layout: Layout
    table: dict[str, np.ndarray] | None = None
    request: dict[str, np.ndarray] = {}
    candidates: dict[str, np.ndarray] = {}
    offsets: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return self.layout.rows

    @property
    def requests(self) -> int:
        """How many requests it carries; a plain table counts as one."""
        return self.layout.requests


class OutputParameters(msgspec.Struct):
    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: str | None = None


class RequestParameters(msgspec.Struct):
    binary_data_output: bool = False
    timeout: int | None = None  # microseconds


class OutputTensor(msgspec.Struct):
    name: str
    parameters: OutputParameters | None = None


class Request(msgspec.Struct):
    inputs: list[InputTensor]
    id: str = ""
    parameters: RequestParameters | None = None
    outputs: list[OutputTensor] | None = None


_REQUEST = msgspec.json.Decoder(Request)


def decode(
    signature: Signature,
    body: bytes,
    header_length: str | None = None,
    limits: Limits = LIMITS,
    kept: dict[bytes, Layout] | None = None,
) -> Call:
    """The call that `body` asks for; arrays are views of it where alignment allows, read-only. Refused for anything malformed."""
    found, cut = outline(signature, body, header_length, limits, kept)
    return fill(found, body, cut)


def outline(
    signature: Signature,
    body: bytes,
    header_length: str | None = None,
    limits: Limits = LIMITS,
    kept: dict[bytes, Layout] | None = None,
) -> tuple[Layout, int]:
    """The layout of a body, and where its JSON ends. `kept` remembers layouts between calls of one signature and one limits."""
    if header_length is None:
        return layout(signature, body, False, limits), len(body)
    cut = _cut(body, header_length)
    text, id_ = _without_id(body[:cut])
    found = kept.get(text) if kept is not None else None
    if found is None:
        found = layout(signature, text, True, limits)
        if kept is not None and cut <= _KEPT_BYTES and all(slot.array is None for slot in found.slots):
            if len(kept) >= _KEPT:  # as many different shapes as this are no traffic that repeats itself
                kept.clear()
            kept[text] = found
    found.again.times += 1
    return (msgspec.structs.replace(found, id=id_) if id_ and not found.id else found), cut


def _without_id(text: bytes) -> tuple[bytes, str]:
    """The JSON of a request without the id that clients put first, and that id: with another id it is the same layout."""
    end = text.find(b'",', len(_ID)) if text.startswith(_ID) else -1
    try:
        found = text[len(_ID) : end].decode() if end > 0 else ""
    except UnicodeDecodeError:
        return text, ""
    if "\\" in found or '"' in found or not found.isprintable():  # not what it seems, or needs a parser
        return text, ""
    return (b"{" + text[end + 2 :], found) if found else (text, "")


def layout(signature: Signature, text: bytes, binary: bool, limits: Limits = LIMITS) -> Layout:
    """What the JSON of a request says; `binary` when bytes may follow it."""
    return arrange(signature, _message(text), lambda tensor, wire: slot_of(tensor, wire, binary, limits), limits)


def arrange(signature: Signature, message: Request, slot: Callable[[InputTensor, Wire], Slot], limits: Limits) -> Layout:
    """The layout of a request of either protocol. `slot` says where the values of a tensor are; Refused for what does not fit."""
    if len(message.inputs) > limits.tensors:
        raise Refused(f"the request has {len(message.inputs)} input tensors; at most {limits.tensors} are allowed", 413)
    known = _form(signature, message.inputs)
    slots: dict[str, Slot] = {}
    for tensor in message.inputs:
        wire = known.get(tensor.name)
        if wire is None:
            if tensor.name != OFFSETS or not signature.offsets:
                raise Refused(f"input {tensor.name!r} is not one of the model's, which are {_names(known)}")
            wire = OFFSETS_WIRE
        if tensor.name in slots:
            raise Refused(f"input {tensor.name!r} appears twice. Send each input once")
        slots[tensor.name] = slot(tensor, wire)
    for name in known:
        if name not in slots:
            raise Refused(f"input {name!r} is missing. The model takes {_names(known)}")
    plain = known is signature.rows
    counted = [slots[wire.name] for wire in known.values() if plain or wire.side == "candidate"]
    rows = _same_rows(counted, "plain rows" if plain else "the candidates")
    requests = 1 if plain or OFFSETS in known or OFFSETS not in slots else slots[OFFSETS].shape[0] - 1
    if requests < 1:
        raise Refused(_OFFSETS_RULE.format(rows))
    for wire in known.values():
        if not plain and wire.side == "request" and slots[wire.name].shape[0] != requests:
            hint = f"{requests} rows, one a request" if OFFSETS in slots and OFFSETS not in known else "one row"
            raise Refused(f"input {wire.name!r} is on the request side and has {slots[wire.name].shape[0]} rows. Give it {hint}")
    size = sum(slot.size for slot in slots.values())
    timeout = message.parameters.timeout if message.parameters is not None else None
    return Layout(message.id, _wanted(signature, message), tuple(slots.values()), plain, rows, requests, size, seconds_of(timeout))


def seconds_of(timeout: int | None) -> float | None:
    """Seconds of the parameter timeout, which is in microseconds; None where it is absent, or 0, which asks for the server's own."""
    if timeout is not None and timeout < 0:
        raise Refused(f"the parameter timeout is {timeout}. Give microseconds")
    return timeout / 1e6 if timeout else None


def fill(found: Layout, body: bytes | memoryview, cut: int) -> Call:
    """The call of a layout and the bytes of `body` behind `cut`."""
    if len(body) - cut != found.binary_bytes:
        raise Refused(_misfit(found, len(body) - cut))
    request: dict[str, np.ndarray] = {}
    candidates: dict[str, np.ndarray] = {}
    offsets = (0, found.rows)
    at = cut
    for slot in found.slots:
        array = slot.array
        if array is None:
            array = view(slot, body, at)
            at += slot.size
        if slot.wire is OFFSETS_WIRE:
            offsets = tuple(array.tolist())
            if offsets[0] != 0 or offsets[-1] != found.rows or any(a > b for a, b in itertools.pairwise(offsets)):
                raise Refused(_OFFSETS_RULE.format(found.rows))
        elif slot.wire.side == "request":
            request[slot.wire.input] = array if found.requests != 1 else array.reshape(slot.wire.shape)
        else:
            candidates[slot.wire.input] = array
    if found.plain:
        return Call(found, table=candidates)
    return Call(found, None, request, candidates, offsets)


def scores_of(scorer: Scorer, layout: Layout, body: bytes, cut: int) -> Scores:
    """The scorer's answer to a layout and the bytes of `body` behind `cut`. It is good until the next call."""
    bound = layout.again.bound
    if bound is None:
        if not Bound.fits(layout):
            return score(scorer, fill(layout, body, cut))
        bound = layout.again.bound = Bound(layout, scorer)
    return bound.score(layout, body, cut)


def score(scorer: Scorer, call: Call) -> Scores:
    """The scorer's answer to a call: (rows, *shape) for each output; requests that came together are scored one by one."""
    if call.table is not None:
        return scorer.rows(call.table)
    if call.requests == 1:
        return scorer(call.request, call.candidates)
    parts = []
    for i in range(call.requests):
        low, high = call.offsets[i], call.offsets[i + 1]
        parts.append(
            scorer({name: a[i : i + 1].reshape(a.shape[1:]) for name, a in call.request.items()},
                   {name: a[low:high] for name, a in call.candidates.items()})
        )  # fmt: skip
    first = parts[0]
    if isinstance(first, dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in first}
    return np.concatenate(parts)  # type: ignore[arg-type]  # all are arrays


def encode(signature: Signature, layout: Layout, scores: Scores, name: str, version: str) -> tuple[bytes, int | None]:
    """The body that answers a request, and the length of its JSON part when tensors follow as bytes (None when all is JSON)."""
    answer, id_ = layout.again.answer, layout.id
    if answer is not None and not id_ and scores.__class__ is np.ndarray:
        return answer + scores.tobytes(), len(answer)  # one output
    if not isinstance(scores, dict):
        scores = {next(iter(signature.outputs)): scores}
    wanted = layout.wanted
    parts = [scores[output.name].tobytes() for output in wanted if output.binary]
    if answer is None:
        answer = _answer(layout, scores, name, version)
        if len(parts) == len(wanted):  # no values in it: it is the same for every request of this layout
            layout.again.answer = answer
    if id_:
        first = b'{"id":' + msgspec.json.encode(id_) + b","
        answer = first + answer[1:] + b" " * (-(len(first) - 1) % 8)
    if not parts:
        return answer, None
    return b"".join((answer, *parts)), len(answer)


def _answer(asked: Layout, scores: Mapping[str, np.ndarray], name: str, version: str) -> bytes:
    """The JSON of an answer but its id, padded with spaces so that a client's views of tensors behind it are aligned."""
    outputs = []
    for wanted in asked.wanted:
        array = scores[wanted.name]
        told: dict[str, Any] = {"name": wanted.name, "datatype": DATATYPES[array.dtype.name], "shape": array.shape}
        if wanted.binary:
            told["parameters"] = {"binary_data_size": array.nbytes}
        else:
            told["data"] = array.ravel().tolist()
        outputs.append(told)
    text = msgspec.json.encode({"model_name": name, "model_version": version, "outputs": outputs})
    return text + b" " * (-len(text) % 8)


def model_config(model: Any) -> dict[str, Any]:
    """GET /v2/models/M/config: what Triton's clients ask for before they build requests (names, datatypes, no batching of its own).

    `model` has a name and a signature.
    """

    def told(name: str, datatype: str, shape: tuple[int, ...]) -> dict[str, Any]:
        return {"name": name, "data_type": f"TYPE_{datatype}", "dims": [-1, *shape]}

    signature: Signature = model.signature
    return {
        "name": model.name,
        "platform": "burnish",
        "backend": "burnish",
        "max_batch_size": 0,
        "input": [told(w.name, w.datatype, w.shape) for w in signature.rows.values()],
        "output": [told(o.name, DATATYPES[o.dtype], () if o.shape == (1,) else o.shape) for o in signature.outputs.values()],
    }


def server_metadata(version: str) -> dict[str, Any]:
    """GET /v2"""
    return {
        "name": "burnish",
        "version": version,
        "extensions": ["binary_tensor_data", "model_configuration", "model_repository", "statistics"],
    }


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


_OFFSETS_RULE = "offsets must rise from 0 to the number of candidates, {}, with one more entry than requests"
_KEPT, _KEPT_BYTES = 256, 16 << 10  # layouts that are remembered, and the longest JSON of one
_ID = b'{"id":"'
_AGAIN, _BOUND_BYTES = 3, 256 << 10  # times that a layout must come before arrays are kept for it, and the most bytes of them


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


def _message(text: bytes) -> Request:
    try:
        return _REQUEST.decode(text)
    except msgspec.ValidationError as error:
        raise Refused(f"the JSON is not an inference request: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise Refused("the JSON is nested too deeply") from None


def _form(signature: Signature, tensors: Sequence[InputTensor]) -> dict[str, Wire]:
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


def _misfit(found: Layout, came: int) -> str:
    """The sentence for a binary part of `came` bytes that the layout does not fit."""
    end = 0
    for slot in found.slots:
        if end + slot.size > came:
            return f"the binary part ends inside input {slot.name!r}: {slot.size} bytes were announced and {came - end} came"
        end += slot.size
    return f"the binary part has {came} bytes, but the inputs' binary_data_size add up to {found.binary_bytes}"


def _wanted(signature: Signature, message: Request) -> tuple[Wanted, ...]:
    default = message.parameters is not None and message.parameters.binary_data_output
    if not message.outputs:
        return tuple(Wanted(name, default) for name in signature.outputs)
    wanted: list[Wanted] = []
    for output in message.outputs:
        if any(output.name == other.name for other in wanted):  # and so never more outputs than the model has
            raise Refused(f"output {output.name!r} is asked for twice. Ask for each output once")
        if output.name not in signature.outputs:
            raise Refused(f"output {output.name!r} is not one of the model's, which are {_names(signature.outputs)}")
        parameters = output.parameters or OutputParameters()
        if parameters.classification or parameters.shared_memory_region:
            raise Refused(f"output {output.name!r} asks for classification or shared memory, which are not supported")
        wanted.append(Wanted(output.name, default if parameters.binary_data is None else parameters.binary_data))
    return tuple(wanted)


def _same_rows(slots: Sequence[Slot], where: str) -> int:
    """The number of rows of tensors that must have the same."""
    counts = {slot.name: slot.shape[0] for slot in slots}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name!r} {n}" for name, n in counts.items())
        raise Refused(f"{where} have different numbers of rows: {told}. Give every tensor there the same number")
    return next(iter(counts.values()), 0)


def _names(names: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, names))
