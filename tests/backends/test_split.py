"""A ranker cut in two, for a server and a device: equal to the whole to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import burnish
from burnish.backends.native import Native
from burnish.build import compile_split
from burnish.errors import BuildError
from burnish.graph.interpret import interpret, interpret_request
from burnish.graph.node import Graph, Node, input_node
from burnish.graph.ops import Op
from burnish.graph.verify import verify
from burnish.inputs import Input
from burnish.passes.factor import factor_request
from burnish.passes.split import split
from burnish.recipe import apply, recipe
from burnish.testing.builders import Weights, as_request, concat, linear, one_request, rows
from burnish.testing.cases import model_cases
from burnish.testing.random_graphs import random_graph


def scored(parts: tuple[Graph, Graph], request: dict[str, np.ndarray], candidates: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What both parts compute one behind the other, by the interpreter."""
    user, device = parts
    vectors = interpret(user, {name: np.asarray(array)[None] for name, array in request.items()})
    return interpret_request(device, {name: array[0] for name, array in vectors.items()}, candidates)


MODELS = [name for name in model_cases() if "alone" not in name]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", ["fp32", "int8"])
def test_both_parts_compute_the_whole_bit_for_bit(name: str, how: str) -> None:
    graph = model_cases()[name]
    whole = apply(graph, recipe(how), rows(graph, 200, seed=3)) if how == "int8" else factor_request(graph)
    cut = split(whole)
    verify(cut.user)
    verify(cut.device)
    assert {half.side for spec in cut.user.inputs for half in spec.halves} == {"candidate"}
    request, candidates = as_request(graph, one_request(graph, rows(graph, 20, seed=5)))
    want, got = interpret_request(whole, request, candidates), scored((cut.user, cut.device), request, candidates)
    for key in want:
        np.testing.assert_array_equal(got[key], want[key])


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_are_cut_without_a_difference(seed: int) -> None:
    graph = random_graph(seed)
    whole = factor_request(graph)
    try:
        cut = split(whole)
    except BuildError:
        pytest.skip("nothing of the request stands beside a candidate")
    request, candidates = as_request(graph, one_request(graph, rows(graph, 7, seed=seed)))
    want, got = interpret_request(whole, request, candidates), scored((cut.user, cut.device), request, candidates)
    for key in want:
        np.testing.assert_array_equal(got[key], want[key])


def test_what_is_sent_is_small_and_counted() -> None:
    """Of a factored linear its int32 or float32 sums; a value that only changes form is sent before it grows."""
    two_tower = split(factor_request(model_cases()["two_tower"]))
    assert two_tower.payload_bytes == sum(np.dtype(s.dtype).itemsize * int(np.prod(s.shape)) for s in two_tower.sent)
    graph = model_cases()["dcn_v2"]
    cut = split(apply(graph, recipe("int8"), rows(graph, 200, seed=3)))
    assert {spec.dtype for spec in cut.sent} <= {"float32", "int32"} and {spec.side for spec in cut.sent} == {"request"}
    r, c = Input("r", "float32", (6,), "request"), Input("c", "float32", (4, 6), "candidate")
    spread = Node(Op.EXPAND, (Node(Op.RESHAPE, (Node(Op.TANH, (input_node(r),)),), shape=(1, 6)),), shape=(4, 6))
    grown = split(Graph((r, c), {"y": Node(Op.SUM, (Node(Op.MUL, (spread, input_node(c))),), axes=(0, 1))}))
    assert [(spec.name, spec.shape) for spec in grown.sent] == [("user0", (6,))] and grown.payload_bytes == 24


def test_bytes_and_half_precision_are_computed_behind_the_cut() -> None:
    """No input holds them: the float32 values that they are made of are sent."""
    r, c = Input("r", "float32", (6,), "request"), Input("c", "float32", (6,), "candidate")
    narrow = Node(Op.CAST, (input_node(r),), dtype="bfloat16")
    cut = split(Graph((r, c), {"y": Node(Op.MUL, (Node(Op.CAST, (narrow,), dtype="float32"), input_node(c)))}))
    assert [spec.dtype for spec in cut.sent] == ["float32"]


def test_a_model_without_two_sides_is_refused() -> None:
    c = Input("c", "float32", (6,), "candidate")
    with pytest.raises(BuildError, match=r"^there is nothing to split: no value of the request is read beside a candidate\. Declare"):
        split(Graph((c,), {"y": linear(input_node(c), 2, Weights(1))}))
    r = Input("r", "float32", (6,), "request")
    with pytest.raises(BuildError, match=r"^there is nothing to split: the model has no candidates\. Declare the candidates' columns"):
        split(Graph((r,), {"y": linear(input_node(r), 2, Weights(1))}))


def test_an_input_named_as_a_vector_keeps_its_name() -> None:
    r, c = Input("r", "float32", (6,), "request"), Input("user0", "float32", (6,), "candidate")
    cut = split(factor_request(Graph((r, c), {"y": linear(concat([input_node(r), input_node(c)]), 2, Weights(1))})))
    assert [spec.name for spec in cut.device.inputs] == ["user0", "user0_"]


@pytest.mark.parametrize(("name", "how"), [("dcn_v2 mixed columns", "int8-tables"), ("two_tower", "fp32"), ("din", "int8")])
def test_two_artifacts_score_what_one_does(name: str, how: str, tmp_path: Path) -> None:
    absent = Native().missing()
    if absent:
        pytest.skip(absent)
    graph = model_cases()[name]
    calibration = rows(graph, 300, seed=9)
    whole = burnish.compile(graph, how, calibration)
    user, device = compile_split(graph, how, calibration)
    user.save(tmp_path / "user").verify()
    device.save(tmp_path / "device").verify()
    told = device.manifest.measured["split"]
    assert told["part"] == "device" and user.manifest.measured["split"] == {**told, "part": "user"}
    request, candidates = as_request(graph, one_request(graph, rows(graph, 77, seed=5)))
    with burnish.load(tmp_path / "user") as a, burnish.load(tmp_path / "device") as b, burnish.Scorer(whole) as both:
        vectors = a.outputs_of({name: np.asarray(array)[None] for name, array in request.items()})
        assert sum(vector.nbytes for vector in vectors.values()) == told["payload_bytes"]
        got = b(request={name: vector[0] for name, vector in vectors.items()}, candidates=candidates)
        np.testing.assert_array_equal(got, both(request, candidates))
