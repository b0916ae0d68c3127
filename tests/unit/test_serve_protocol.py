"""The protocol without a server: bytes to arrays and back, and one sentence for everything a client may get wrong."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from burnish.errors import InputError, ServeError
from burnish.inputs import Input
from burnish.runtime.artifact import Output
from burnish.serve import protocol
from burnish.serve.protocol import Signature, decode, encode, model_metadata, score
from burnish.serve.wire import DATATYPES, Limits, Refused

DENSE = Input("dense", "float32", (3,), side="request")
CAT = Input("cat", "int64", (4,), side=("request", "candidate", "candidate", "request"), cardinality=50)
PRICE = Input("price", "float32", (), side="candidate")
MIXED = Signature.of((DENSE, CAT, PRICE), (Output("score", "float32"),))
FLAT = Signature.of((PRICE, Input("id", "int32", (), side="candidate")), (Output("score", "float32"), Output("parts", "float32", (2,))))


class Sum:
    """A scorer whose score is a sum that any order of columns changes, so that a tensor in the wrong place shows."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.inputs, self.outputs = signature.inputs, tuple(signature.outputs.values())

    def rows(self, table: dict[str, np.ndarray]) -> Any:
        n = len(next(iter(table.values())))
        total = np.zeros(n, np.float32)
        for at, spec in enumerate(self.inputs):
            flat = table[spec.name].reshape(n, math.prod(spec.shape)).astype(np.float32)
            with np.errstate(all="ignore"):  # a damaged float may be anything
                total += (flat * np.arange(1 + at, 1 + at + flat.shape[1], dtype=np.float32)).sum(axis=1)
        return total if len(self.outputs) == 1 else {"score": total, "parts": np.stack([total, -total], 1)}

    def __call__(self, request: dict[str, np.ndarray], candidates: dict[str, np.ndarray]) -> Any:
        n = len(next(iter(candidates.values())))
        table = {}
        for spec in self.inputs:
            array = np.empty((n, *spec.shape), spec.dtype)
            for half in spec.halves:
                given = (request if half.side == "request" else candidates)[spec.name]
                assert given.shape == (half.shape if half.side == "request" else (n, *half.shape))
                array[(slice(None), list(half.columns)) if half.columns is not None else ...] = given
            table[spec.name] = array
        return self.rows(table)


def tensors(arrays: dict[str, np.ndarray], binary: bool | set[str] = False, **more: Any) -> tuple[bytes, str | None]:
    """A request body for arrays by their names on the wire."""
    inputs, raw = [], b""
    for name, array in arrays.items():
        told: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": DATATYPES[array.dtype.name]}
        if binary is True or (binary and name in binary):
            told["parameters"] = {"binary_data_size": array.nbytes}
            raw += array.tobytes()
        else:
            told["data"] = array.tolist()
        inputs.append(told)
    header = json.dumps({"inputs": inputs, **more}).encode()
    return header + raw, str(len(header)) if binary else None


def rows_table(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "dense": rng.standard_normal((n, 3)).astype(np.float32),
        "cat": rng.integers(0, 50, (n, 4)),
        "price": rng.standard_normal(n).astype(np.float32),
    }


def request_tensors(n: int, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A request on the wire, and the same as a plain table."""
    table = rows_table(n, seed)
    table["dense"][:] = table["dense"][:1]
    table["cat"][:, [0, 3]] = table["cat"][:1, [0, 3]]
    wire = {
        "dense": table["dense"][:1],
        "cat.request": table["cat"][:1, [0, 3]],
        "cat.candidate": table["cat"][:, [1, 2]],
        "price": table["price"],
    }
    return wire, table


@pytest.mark.parametrize("binary", [False, True, {"cat"}])
@pytest.mark.parametrize("n", [0, 2, 37])
def test_plain_rows_arrive_bit_for_bit(binary, n):
    table = rows_table(n)
    call = decode(MIXED, *tensors(table, binary))
    assert call.rows == n and call.table is not None
    for name, array in table.items():
        assert call.table[name].dtype == array.dtype
        np.testing.assert_array_equal(call.table[name], array)


@pytest.mark.parametrize("binary", [False, True, {"cat.request", "price"}])
@pytest.mark.parametrize("n", [1, 2, 37])
def test_a_request_and_its_candidates_score_like_the_same_plain_rows(binary, n):
    wire, table = request_tensors(n)
    call = decode(MIXED, *tensors(wire, binary))
    assert (call.table, call.rows, call.requests) == (None, n, 1)
    np.testing.assert_array_equal(score(Sum(MIXED), call), Sum(MIXED).rows(table))


def test_offsets_put_several_requests_in_one_call():
    (first, first_table), (empty, _), (last, last_table) = (request_tensors(n, seed=n) for n in (3, 1, 5))
    empty |= {"cat.candidate": empty["cat.candidate"][:0], "price": empty["price"][:0]}
    wire = {name: np.concatenate([first[name], empty[name], last[name]]) for name in first}
    call = decode(MIXED, *tensors(wire | {"offsets": np.array([0, 3, 3, 8])}, True))
    assert (call.requests, call.rows) == (3, 8)
    expected = np.concatenate([Sum(MIXED).rows(first_table), Sum(MIXED).rows(last_table)])
    np.testing.assert_array_equal(score(Sum(MIXED), call), expected)


def test_a_model_without_a_mixed_input_tells_the_forms_apart_by_rows():
    signature = Signature.of((DENSE, PRICE), (Output("score", "float32"),))
    table = {name: rows_table(5)[name] for name in ("dense", "price")}
    assert decode(signature, *tensors(table)).table is not None
    assert decode(signature, *tensors({**table, "dense": table["dense"][:1]})).table is None


def test_a_model_without_a_request_side_has_one_form():
    wire = {"price": np.ones(4, np.float32), "id": np.arange(4, dtype=np.int32)}
    call = decode(FLAT, *tensors(wire))
    assert (call.request, set(call.candidates)) == ({}, {"price", "id"})
    assert "request" not in model_metadata(FLAT, "m", "1")["forms"]


def test_several_outputs_come_in_the_order_and_form_that_was_asked_for():
    wire = {"price": np.ones(4, np.float32), "id": np.arange(4, dtype=np.int32)}
    asked = [{"name": "parts", "parameters": {"binary_data": True}}, {"name": "score"}]
    call = decode(FLAT, *tensors(wire, outputs=asked, id="seven"))
    body, cut = encode(FLAT, call.layout, score(Sum(FLAT), call), "m", "1")
    assert cut is not None and cut % 8 == 0
    answer = json.loads(body[:cut])
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("seven", "m", "1")
    assert [o["name"] for o in answer["outputs"]] == ["parts", "score"]
    assert answer["outputs"][0] == {"name": "parts", "datatype": "FP32", "shape": [4, 2], "parameters": {"binary_data_size": 32}}
    expected = Sum(FLAT).rows(wire)
    np.testing.assert_array_equal(np.frombuffer(body[cut:], np.float32).reshape(4, 2), expected["parts"])
    np.testing.assert_array_equal(np.float32(answer["outputs"][1]["data"]), expected["score"])


@given(
    scores=hnp.arrays(
        np.float32, hnp.array_shapes(max_dims=1, min_side=0), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
@settings(max_examples=100, deadline=None)
def test_json_scores_keep_their_bits(scores):
    asked = protocol.Layout("", (protocol.Wanted("score", False),), (), True, len(scores), 1, 0)
    call = protocol.Call(asked)
    body, cut = encode(MIXED, call.layout, scores, "m", "1")
    assert cut is None
    assert np.array(json.loads(body)["outputs"][0]["data"], np.float32).tobytes() == scores.tobytes()


def test_a_score_that_is_not_a_number_is_null_in_json_and_itself_in_bytes():
    scores = np.array([1.0, np.nan, np.inf], np.float32)
    for binary in (False, True):
        asked = protocol.Layout("", (protocol.Wanted("score", binary),), (), True, 3, 1, 0)
        body, cut = encode(MIXED, asked, scores, "m", "1")
        if binary:
            assert body[cut:] == scores.tobytes()
        else:
            assert json.loads(body)["outputs"][0]["data"] == [1.0, None, None]


@st.composite
def any_table(draw: Any) -> tuple[Signature, dict[str, np.ndarray]]:
    """A model with random inputs, and a plain table for it."""
    n = draw(st.integers(0, 5))
    specs, table = [], {}
    for at in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
        dtype = draw(st.sampled_from(["float32", "float64", "int64", "int32", "bool"]))
        side = draw(st.sampled_from(["request", "candidate"]))
        specs.append(Input(f"input {at} é", dtype, shape, side=side))
        table[specs[-1].name] = draw(
            hnp.arrays(dtype, (n, *shape), elements={"allow_nan": False, "allow_infinity": False} if dtype[0] == "f" else None)
        )
    return Signature.of(specs, (Output("score", "float32"),)), table


@given(any_table(), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_tensors_of_any_type_and_shape_arrive_bit_for_bit(model, binary, flat):
    signature, table = model
    body, cut = tensors(table, binary)
    if flat and not binary:
        message = json.loads(body)
        for tensor in message["inputs"]:
            tensor["data"] = table[tensor["name"]].ravel().tolist()
        body = json.dumps(message).encode()
    call = decode(signature, body, cut)
    for spec in signature.inputs:
        found = call.table if call.table is not None else call.request | call.candidates
        assert found[spec.name].dtype == table[spec.name].dtype and found[spec.name].flags.aligned
        assert found[spec.name].tobytes() == table[spec.name].tobytes()


def test_a_kept_layout_gives_the_same_call_and_answer():
    kept: dict[bytes, protocol.Layout] = {}
    for seed in (1, 2):
        wire, table = request_tensors(5, seed)
        body, cut = tensors(wire, True, parameters={"binary_data_output": True})
        calls = [decode(MIXED, body, cut, kept=kept), decode(MIXED, body, cut)]
        answers = [encode(MIXED, call.layout, score(Sum(MIXED), call), "m", "1") for call in calls]
        assert answers[0] == answers[1]
        assert answers[0][0][answers[0][1] :] == Sum(MIXED).rows(table).tobytes()
    assert len(kept) == 1
    with pytest.raises(Refused, match=r"the binary part ends inside input 'price'"):
        decode(MIXED, body[:-1], cut, kept=kept)
    decode(MIXED, *tensors(wire, {"cat.request"}), kept=kept)  # values in its JSON: nothing to keep
    assert len(kept) == 1


def test_kept_layouts_are_bounded():
    kept: dict[bytes, protocol.Layout] = {}
    for at in range(1000):
        decode(FLAT, *tensors({"price": np.ones(1, np.float32), "id": np.ones(1, np.int32)}, True, id=str(at)), kept=kept)
    assert 0 < len(kept) <= 256


GOOD, GOOD_CUT = tensors(request_tensors(3)[0], True)
GOOD_JSON, _ = tensors(rows_table(2))


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_a_damaged_body_is_scored_or_refused_and_nothing_else(data):
    body, cut = data.draw(st.sampled_from([(GOOD, GOOD_CUT), (GOOD_JSON, None)]))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "header"]))
    at = data.draw(st.integers(0, len(body) - 1))
    match kind:
        case "flip":
            body = body[:at] + bytes([data.draw(st.integers(0, 255))]) + body[at + 1 :]
        case "cut":
            body = body[:at]
        case "insert":
            body = body[:at] + data.draw(st.binary(min_size=1, max_size=9)) + body[at:]
        case "header":
            cut = data.draw(st.one_of(st.none(), st.integers(-9, len(body) + 9).map(str), st.text(max_size=4)))
    try:
        call = decode(MIXED, body, cut)
        encode(MIXED, call.layout, score(Sum(MIXED), call), "m", "1")
    except Refused as refused:
        assert refused.status in (400, 413) and str(refused)
        str(refused).encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "shape", "datatype", "data", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(
    tensor=st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["price", "id", "offsets"]) | JSON,
            "shape": st.just([2]) | st.lists(st.integers(), max_size=3) | JSON,
            "datatype": st.sampled_from(["FP32", "INT32", "INT64", "BYTES"]) | JSON,
            "data": st.lists(st.integers() | st.floats(), min_size=2, max_size=2) | JSON,
            "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "shared_memory_region"]), JSON, max_size=2) | JSON,
        },
    ),
    more=st.dictionaries(st.sampled_from(["id", "parameters", "outputs", "x"]), JSON, max_size=2),
)
@settings(max_examples=500, deadline=None)
def test_any_json_is_scored_or_refused_and_nothing_else(tensor, more):
    body = json.dumps({"inputs": [tensor, {"name": "id", "shape": [2], "datatype": "INT32", "data": [1, 2]}], **more}).encode(
        errors="replace"
    )
    try:
        call = decode(FLAT, body)
        encode(FLAT, call.layout, score(Sum(FLAT), call), "m", "1")
    except Refused as refused:
        assert refused.status in (400, 413) and str(refused)


def one(**changes: Any) -> bytes:
    """A good JSON request for PRICE and id, with fields of the first tensor changed (None removes one)."""
    tensor = {"name": "price", "shape": [2], "datatype": "FP32", "data": [1.5, 2.5], **changes}
    other = {"name": "id", "shape": [2], "datatype": "INT32", "data": [1, 2]}
    return json.dumps({"inputs": [{k: v for k, v in tensor.items() if v is not None}, other]}).encode()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", r"not valid JSON"),
        (b"{", r"not valid JSON"),
        (b"\xff", r"not valid JSON"),
        (b"[]", r"not an inference request: Expected `object`, got `array`"),
        (b"{}", r"not an inference request: Object missing required field `inputs`"),
        (b'{"inputs": [], "x": ' + b"[" * 100_000, r"nested too deeply"),
        (one(data=None), r"input 'price' has no data\. Send a list"),
        (one(datatype="INT64"), r"input 'price' has datatype 'INT64'; it must be FP32"),
        (one(shape=[2, 1]), r"input 'price' has shape \[2, 1\]; it must be \[rows\]"),
        (one(shape=[]), r"input 'price' has shape \[\]; it must be \[rows\]"),
        (one(shape=[-1]), r"input 'price' has shape \[-1\]"),
        (one(shape=[3]), r"input 'price' has 2 values in its data \(shape \[2\]\), but says shape \[3\]"),
        (one(shape=[3], data=[1, 2, 3]), r"the candidates have different numbers of rows: 'price' 3, 'id' 2"),
        (one(data=[[1.5, 2.5]]), r"nested 2 deep\. Send a flat list"),
        (one(data=7), r"nested 0 deep"),
        (one(data=[1.5, "x"]), r"does not fit FP32: Expected `float`, got `str`"),
        (one(data=[1e300, 0]), r"the value 1e\+300, which is beyond FP32"),
        (one(name="id", datatype="INT32", data=[2**40, 1]), r"the value 1099511627776, which is beyond INT32"),
        (one(name="id", datatype="INT32", data=[2**80, 1]), r"a value that is beyond INT32"),
        (one(name="id", datatype="INT32", data=[1, 2]), r"input 'id' appears twice"),
        (one(name="cost"), r"input 'cost' is not one of the model's, which are 'price', 'id'"),
        (one(parameters={"binary_data_size": 8}), r"has both data and binary_data_size"),
        (one(parameters={"binary_data_size": 8}, data=None), r"the request has no Inference-Header-Content-Length header"),
        (one(parameters={"shared_memory_region": "r"}), r"in shared memory, which is not supported"),
        (b'{"inputs": []}', r"input 'price' is missing\. The model takes 'price', 'id'"),
        (one()[:-1] + b', "outputs": [{"name": "score"}, {"name": "score"}]}', r"output 'score' is asked for twice"),
        (one()[:-1] + b', "outputs": [{"name": "x"}]}', r"output 'x' is not one of the model's, which are 'score', 'parts'"),
        (one()[:-1] + b', "outputs": [{"name": "score", "parameters": {"classification": 2}}]}', r"classification or shared memory"),
    ],
)  # fmt: skip
def test_what_a_client_may_get_wrong_has_a_sentence(body, sentence):
    with pytest.raises(Refused, match=sentence) as refused:
        decode(FLAT, body)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda b, c: (b[:-1], c), r"the binary part ends inside input 'price': 12 bytes were announced and 11 came"),
        (lambda b, c: (b + b"x", c), r"the binary part has \d+ bytes, but the inputs' binary_data_size add up to \d+"),
        (lambda b, c: (b, "9" * 9), r"says 999999999 bytes of JSON, but the body has \d+"),
        (lambda b, c: (b, "-3"), r"is '-3'\. Give the number of bytes of the JSON part"),
        (
            lambda b, c: (b.replace(b'"binary_data_size": 12}', b'"binary_data_size": 13}', 1), c),
            r"has binary_data_size 13; FP32 of shape .* takes 12",
        ),
    ],
)
def test_a_damaged_binary_part_has_a_sentence(change, sentence):
    with pytest.raises(Refused, match=sentence):
        decode(MIXED, *change(GOOD, GOOD_CUT))


def test_a_bool_takes_zero_and_one():
    signature = Signature.of((Input("flag", "bool"),), (Output("score", "float32"),))
    header = b'{"inputs":[{"name":"flag","shape":[2],"datatype":"BOOL","parameters":{"binary_data_size":2}}]}'
    assert decode(signature, header + b"\1\0", str(len(header))).rows == 2
    with pytest.raises(Refused, match=r"input 'flag' has a byte 2; BOOL takes 0 and 1"):
        decode(signature, header + b"\1\2", str(len(header)))


def test_ragged_data_has_a_sentence():
    table = rows_table(2)
    body = tensors(table)[0].replace(json.dumps(table["cat"].tolist()).encode(), b"[[1, 2, 3, 4], [1, 2]]")
    with pytest.raises(Refused, match=r"input 'cat' has data that is not rectangular; it must be \[2, 4\]"):
        decode(MIXED, body)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"cat": np.zeros((3, 4), np.int64)},
            r"the request has 'cat.request' and 'cat'\. Send the halves of an input, or plain rows, not both",
        ),
        ({"dense": np.zeros((2, 3), np.float32)}, r"input 'dense' is on the request side and has 2 rows\. Give it one row"),
        ({"offsets": np.array([0, 2, 3])}, r"input 'dense' is on the request side and has 1 rows\. Give it 2 rows, one a request"),
        ({"offsets": np.array([0, 4])}, r"offsets must rise from 0 to the number of candidates, 3"),
        ({"offsets": np.array([3])}, r"offsets must rise from 0"),
        (
            {"offsets": np.array([0, 4, 3]), "dense": np.zeros((2, 3), np.float32), "cat.request": np.zeros((2, 2), np.int64)},
            r"offsets must rise",
        ),
        ({"price": np.zeros(2, np.float32)}, r"the candidates have different numbers of rows: 'cat.candidate' 3, 'price' 2"),
    ],
)
def test_forms_that_do_not_fit_have_a_sentence(change, sentence):
    with pytest.raises(Refused, match=sentence):
        decode(MIXED, *tensors({**request_tensors(3)[0], **change}, True))


def test_sizes_over_the_limits_are_refused_as_too_large():
    with pytest.raises(Refused, match=r"input 'dense' has 9 rows; at most 8 are allowed") as refused:
        decode(MIXED, *tensors(rows_table(9)), Limits(rows=8))
    assert refused.value.status == 413
    with pytest.raises(Refused, match=r"the request has 3 input tensors; at most 2 are allowed"):
        decode(MIXED, *tensors(rows_table(9)), Limits(tensors=2))


def test_two_tensors_with_one_name_are_refused_when_the_model_is_opened():
    with pytest.raises(ServeError, match=r"the half 'cat.request' of input 'cat' has the name of another input"):
        Signature.of((CAT, Input("cat.request")), ())


def test_an_input_named_offsets_is_an_input():
    signature = Signature.of((Input("offsets", "int64"), DENSE), (Output("score", "float32"),))
    call = decode(signature, *tensors({"offsets": np.array([4, 2]), "dense": np.zeros((1, 3), np.float32)}))
    assert call.rows == 2
    assert "offsets" not in model_metadata(signature, "m", "1")["forms"]["request"]


def test_metadata_documents_both_forms():
    told = model_metadata(MIXED, "ranker", "1")
    assert told["inputs"] == [
        {"name": "dense", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "cat", "datatype": "INT64", "shape": [-1, 4]},
        {"name": "price", "datatype": "FP32", "shape": [-1]},
    ]
    assert told["outputs"] == [{"name": "score", "datatype": "FP32", "shape": [-1]}]
    assert told["forms"]["request"]["inputs"] == [
        {"name": "dense", "datatype": "FP32", "shape": [1, 3], "side": "request"},
        {"name": "cat.request", "datatype": "INT64", "shape": [1, 2], "side": "request", "of": "cat", "columns": (0, 3)},
        {"name": "cat.candidate", "datatype": "INT64", "shape": [-1, 2], "side": "candidate", "of": "cat", "columns": (1, 2)},
        {"name": "price", "datatype": "FP32", "shape": [-1], "side": "candidate"},
    ]
    assert told["forms"]["request"]["offsets"]["datatype"] == "INT64"


def test_a_scorers_own_sentence_is_an_input_error():
    assert issubclass(Refused, ServeError) and not issubclass(InputError, Refused)


class Bindable(Sum):
    """Counts how often it was bound."""

    bound = 0

    def bind(self, request: Any, candidates: Any) -> Any:
        self.bound += 1
        return lambda: self(request, candidates)


def test_a_layout_that_comes_again_is_bound_once_and_scores_the_same():
    scorer, kept = Bindable(MIXED), dict[bytes, Any]()
    for seed in range(8):
        wire, table = request_tensors(5, seed)
        body, header = tensors(wire, True)
        found, cut = protocol.outline(MIXED, body, header, kept=kept)
        assert protocol.scores_of(scorer, found, body, cut).tobytes() == Sum(MIXED).rows(table).tobytes()
    assert scorer.bound == 1
    with pytest.raises(Refused, match="the binary part ends inside input 'price'"):
        protocol.scores_of(scorer, found, body[:-4], cut)


def test_ids_of_requests_do_not_make_other_layouts_and_come_back():
    scorer, kept = Bindable(MIXED), dict[bytes, Any]()
    wire, table = request_tensors(5)
    plain, header = tensors(wire, True, parameters={"binary_data_output": True})
    for id_ in ("", "a", "", "user-7", "naïve", "x" * 99, 'with \\"quotes\\"', "with \\\\ backslash", "a", ""):
        front = f'{{"id":"{id_}",'.encode() if id_ else b"{"
        body = front + plain[1:]
        found, cut = protocol.outline(MIXED, body, str(int(header or 0) + len(front) - 1), kept=kept)
        said = json.loads(body[:cut]).get("id", "")
        assert found.id == said
        scores = protocol.scores_of(scorer, found, body, cut)
        assert scores.tobytes() == Sum(MIXED).rows(table).tobytes()
        text, length = encode(MIXED, found, scores, "m", "1")
        assert length is not None and length % 8 == 0
        assert json.loads(text[:length]).get("id", "") == said and text[length:] == scores.tobytes()
    assert (scorer.bound, len(kept)) == (1, 3)  # those with a backslash are parsed every time they differ


@pytest.mark.parametrize("front", [b'{"id":"a","id":"b",', b'{"id":"",', b'{"id":"\xff",', b'{"id":"\x01",', b'{"id":"a" ,', b'{"id":7,'])
def test_odd_ids_are_what_a_parser_says(front):
    plain, header = tensors(request_tensors(2)[0], True)
    body, kept = front + plain[1:], dict[bytes, Any]()
    for _ in range(2):
        try:
            said = json.loads(front + b'"x":0}', strict=True)["id"]
        except ValueError:
            said = None
        if isinstance(said, str):
            assert protocol.outline(MIXED, body, str(int(header or 0) + len(front) - 1), kept=kept)[0].id == said
        else:
            with pytest.raises(Refused):
                protocol.outline(MIXED, body, str(int(header or 0) + len(front) - 1), kept=kept)
