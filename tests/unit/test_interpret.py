"""The reference itself: against plain numpy where numpy has the op, against loops where it has not."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from burnish.errors import GraphError
from burnish.graph.interpret import EVALUATE, evaluate, interpret, interpret_request
from burnish.graph.node import Graph, Node, input_node, scalar, weight
from burnish.graph.ops import OPS, Op
from burnish.graph.verify import verify
from burnish.graph.weights import to_bfloat16
from burnish.inputs import Input
from burnish.quantize import affine
from burnish.testing import as_request, graphs, linear, lookup, model_cases, one_request, op_cases, reshape, rows, table

CASES = op_cases() | model_cases()


def run(node, specs, n=5, seed=0):
    graph = Graph(specs, {"y": node})
    given_rows = rows(graph, n, seed)
    return given_rows, interpret(graph, given_rows)["y"]


def test_there_is_a_case_for_every_op_and_the_interpreter_knows_each():
    met = {node.op for graph in CASES.values() for node in graph.order}
    assert met == set(Op) == set(OPS)
    assert set(EVALUATE) == set(Op) - {Op.INPUT}


@pytest.mark.parametrize("name", CASES)
def test_every_value_has_the_shape_and_dtype_its_node_says(name):
    graph = verify(CASES[name])
    outputs = {f"v{i}": node for i, node in enumerate(graph.order) if node.dtype not in ("int4", "bfloat16", "float16")}
    everything = Graph(graph.inputs, outputs)
    for n in (1, 3):
        for key, value in interpret(everything, rows(graph, n)).items():
            assert (value.shape, str(value.dtype)) == ((n, *outputs[key].shape), outputs[key].dtype), outputs[key]


@pytest.mark.parametrize("name", CASES)
def test_a_request_beside_its_candidates_gives_what_rows_that_repeat_it_give(name):
    graph = CASES[name]
    given_rows = rows(graph, 6, seed=1)
    request, candidates = as_request(graph, given_rows)
    want = interpret(graph, one_request(graph, given_rows))
    for key, value in interpret_request(graph, request, candidates).items():
        assert np.allclose(value, want[key][: len(value)], rtol=1e-6, atol=1e-6, equal_nan=True)


@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_rows_do_not_know_each_other(graph):
    given_rows = rows(graph, 4, seed=2)
    whole = interpret(verify(graph), given_rows)
    for i in range(4):
        alone = interpret(graph, {name: array[i : i + 1] for name, array in given_rows.items()})
        for key, value in alone.items():
            assert np.allclose(value[0], whole[key][i], rtol=1e-5, atol=1e-5)


def test_a_linear_is_init_plus_product_plus_bias():
    x, r = Input("x", shape=(5, 3)), Input("r", shape=(2,), side="request")
    node = linear(input_node(x), 4, 1, init=Node(Op.CONCAT, [input_node(r), input_node(r)], axis=0))
    given_rows, y = run(node, [x, r])
    _, w, b, _ = (v["weight"].array if v.op is Op.WEIGHT else None for v in node.inputs)
    init = np.tile(given_rows["r"], 2)[:, None]
    assert np.allclose(y, init + given_rows["x"] @ w.T + b, rtol=1e-6)


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_a_linear_rounds_its_operands_to_what_it_computes_in(compute):
    x = Input("x", shape=(1,))
    w = weight("w", np.full((1, 1), 1 + 2**-8 + 2**-12, np.float32))
    node = Node(Op.LINEAR, (input_node(x), w, weight("b", np.zeros(1, np.float32))), compute=compute)
    y = interpret(Graph([x], {"y": node}), {"x": np.ones((1, 1), np.float32)})["y"]
    assert y == {"bfloat16": 1 + 2**-7, "float16": 1 + 2**-8}[compute]


def test_half_floats_stay_representable_through_arithmetic():
    x = Input("x", shape=(3,))
    half = Node(Op.CAST, (input_node(x),), dtype="bfloat16")
    _, y = run(Node(Op.CAST, (Node(Op.ADD, (half, half.with_attrs(dtype="bfloat16"))),), dtype="float32"), [x])
    assert np.array_equal(to_bfloat16(y).astype(np.uint32) << 16, y.view(np.uint32))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("ignore", [None, 0, -1])
def test_a_bag_is_the_rows_of_the_ids_that_are_not_ignored(mode, ignore):
    spec, t = Input("ids", "int64", (4,)), table(5, 3, 1)
    ids = np.array([[0, 1, 2, 0], [0, 0, 0, 0], [4, 4, 1, 3], [-1, 1, -1, 2] if ignore == -1 else [3, 1, 1, 2]])
    y = interpret(Graph([spec], {"y": Node(Op.BAG, (t, input_node(spec)), mode=mode, ignore=ignore)}), {"ids": ids})["y"]
    for row, got in zip(ids, y):
        kept = [t["weight"].array[i] for i in row if i != ignore]
        want = np.zeros(3) if not kept else {"sum": np.sum, "mean": np.mean, "max": np.max}[mode](kept, axis=0)
        assert np.allclose(got, want, rtol=1e-6)


def test_argsort_is_stable_both_ways():
    spec = Input("x", shape=(5,))
    x = np.array([[2, 1, 2, 1, 3]], np.float32)
    for descending, want in ((False, [1, 3, 0, 2, 4]), (True, [4, 0, 2, 1, 3])):
        graph = Graph([spec], {"y": Node(Op.ARGSORT, (input_node(spec),), axis=0, descending=descending)})
        assert interpret(graph, {"x": x})["y"].tolist() == [want]


def test_sigmoid_and_softmax_do_not_overflow_and_erf_is_that_of_the_standard_library():
    spec = Input("x", shape=(3,))
    x = np.array([[-1e4, 0.5, 1e4]], np.float32)
    outputs = {op.name: Node(op, (input_node(spec),)) for op in (Op.SIGMOID, Op.ERF)}
    y = interpret(Graph([spec], outputs | {"SOFTMAX": Node(Op.SOFTMAX, (input_node(spec),), axis=0)}), {"x": x})
    assert np.allclose(y["SIGMOID"], [[0, 1 / (1 + math.exp(-0.5)), 1]])
    assert np.allclose(y["SOFTMAX"], [[0, 0, 1]])
    assert y["ERF"].tolist() == np.float32([[math.erf(v) for v in x[0]]]).tolist()


def test_integers_and_floats_meet_in_the_dtype_of_the_node_not_in_numpys():
    spec = Input("ids", "int64", (2,), cardinality=9)
    for op in (Op.ADD, Op.DIV, Op.MAXIMUM):
        _, y = run(Node(op, (input_node(spec), scalar(2.5))), [spec])
        assert y.dtype == np.float32


def test_a_packed_table_is_read_by_row_and_never_widened_whole(monkeypatch):
    spec = Input("id", "int64", (), cardinality=1000)
    widened = []
    q = weight("q", np.ones((1000, 4), np.int8))
    t = Node(Op.DEQUANTIZE, (q, weight("s", np.full((1000, 1), 0.5, np.float32))))
    monkeypatch.setitem(EVALUATE, Op.DEQUANTIZE, lambda node, x: widened.append(node))
    _, y = run(lookup(t, input_node(spec)), [spec])
    assert not widened and (y == 0.5).all()


def test_a_table_that_is_also_a_weight_is_read_both_ways():
    spec = Input("id", "int64", (), cardinality=6)
    t = Node(Op.CAST, (weight("t", to_bfloat16(np.arange(24, dtype=np.float32).reshape(6, 4)), "bfloat16"),), dtype="float32")
    row = lookup(t, input_node(spec))
    scores = Node(Op.MATMUL, (reshape(row, 1, 4), Node(Op.TRANSPOSE, (t,), perm=(1, 0))))
    given_rows, y = run(scores, [spec])
    want = np.arange(24).reshape(6, 4)
    assert np.allclose(y[:, 0], want[given_rows["id"]] @ want.T)


def test_quantized_linears_are_the_arithmetic_of_affine():
    graph = CASES["qlinear with init"]
    given_rows = rows(graph, 5)
    (_, node), *_ = graph.outputs
    _, w, scale, bias, once = node.inputs
    x = affine.quantize(given_rows["c"], np.float32(40), 128)
    r = affine.quantize(given_rows["r"], once.inputs[0].inputs[1]["weight"].array, 117)
    acc = affine.dot(x, w["weight"].array, 128, affine.dot(r, once.inputs[1]["weight"].array, 117))
    assert np.array_equal(interpret(graph, given_rows)["y"], affine.rescale(acc, scale["weight"].array, bias["weight"].array))


def test_an_op_without_a_row_is_an_error_that_says_where_to_add_it(monkeypatch):
    monkeypatch.delitem(EVALUATE, Op.ABS)
    with pytest.raises(GraphError, match=r"the interpreter has no ABS. Add it to graph/interpret.py \(docs/adding_an_op.md\)"):
        evaluate(Node(Op.ABS, (scalar(1.0),)), (np.float32(1),))
