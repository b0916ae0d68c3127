"""What depends on the request alone is computed once per request, and the scores are the same."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from burnish.graph.interpret import interpret, interpret_request
from burnish.graph.node import Graph, Node, input_node, scalar, weight
from burnish.graph.ops import Op
from burnish.graph.verify import verify
from burnish.inputs import Input
from burnish.passes.embedding import embedding
from burnish.passes.factor import factor_request
from burnish.passes.interaction import interaction
from burnish.passes.tidy import tidy
from burnish.testing import (
    Weights,
    as_request,
    assert_same_function,
    concat,
    dcn_v2,
    deepfm,
    din,
    dlrm,
    graphs,
    inputs,
    linear,
    model_cases,
    one_request,
    op_cases,
    random_graph,
    reshape,
    rows,
)

R, C = Input("r", shape=(12,), side="request"), Input("c", shape=(9,))
M = Input("m", shape=(24,), side=["request", "candidate", "candidate"] * 8)
r, c, m = (input_node(spec) for spec in (R, C, M))
CASES = op_cases() | model_cases()


def factored(node, *specs):
    before = Graph(specs or (R, C, M), {"y": node})
    after = factor_request(before)
    assert_same_function(before, after)
    return after


def products(graph):
    """Multiplications a candidate in linears and matrix products."""
    total = 0
    for node in graph.order:
        if node.side == "candidate" and node.op in (Op.LINEAR, Op.QLINEAR, Op.QDOT, Op.MATMUL):
            total += math.prod(node.shape) * node.inputs[0].shape[-1]
    return total


def only(graph, op, side):
    (node,) = (v for v in graph.order if v.op is op and v.side == side)
    return node


def test_a_linear_over_request_and_candidate_starts_from_the_requests_share():
    after = factored(linear(concat([c, r]), 16, 1))
    candidate = only(after, Op.LINEAR, "candidate")
    assert candidate.inputs[0] is c and candidate.inputs[3] is only(after, Op.LINEAR, "request")
    assert candidate.inputs[3].inputs[0] is r


def test_request_columns_come_first_in_their_order_then_the_candidates():
    w = np.arange(48, dtype=np.float32).reshape(2, 24)
    after = factored(Node(Op.LINEAR, (m, weight("w", np.tile(w, (8, 1))), weight("b", np.ones(16, np.float32)))))
    for side, columns in (("request", [i for i in range(24) if i % 3 == 0]), ("candidate", [i for i in range(24) if i % 3])):
        node = only(after, Op.LINEAR, side)
        assert np.array_equal(node.inputs[1]["weight"].array[:2], w[:, columns])
        assert node.inputs[1]["weight"].name == f"w.{side}"
    assert not only(after, Op.LINEAR, "request").inputs[2]["weight"].array.any()  # the bias is added once


def test_pointwise_work_between_the_parts_and_the_linear_is_seen_through():
    scaled = Node(Op.TANH, (Node(Op.MUL, (m, weight("s", np.linspace(0.1, 1, 24, dtype=np.float32)))),))
    after = factored(linear(Node(Op.MAXIMUM, (scaled, Node(Op.NEG, (m,)))), 16, 1))
    assert only(after, Op.LINEAR, "request").inputs[0].shape == (8,)
    assert only(after, Op.LINEAR, "candidate").inputs[0].shape == (16,)


def test_an_init_of_the_request_goes_along_and_one_of_the_candidate_stays():
    x = concat([r, c])
    after = factored(linear(x, 16, 1, init=linear(r, 16, 2)))
    assert [v.side for v in after.order if v.op is Op.LINEAR] == ["request", "request", "candidate"]
    kept = Graph((R, C), {"y": linear(x, 16, 1, init=linear(c, 16, 2))})
    assert products(factor_request(kept)) == products(kept)


@pytest.mark.parametrize(("columns", "outputs"), [(7, 64), (12, 4)])
def test_too_little_is_left_alone(columns, outputs):
    before = Graph((R, C), {"y": linear(concat([Node(Op.SLICE, (r,), axis=0, start=0, stop=columns), c]), outputs, 1)})
    assert products(factor_request(before)) == products(before)


def test_a_linear_applied_to_fields_of_both_sides_is_applied_to_the_requests_fields_once():
    spec = Input("f", shape=(5, 3), side=["request", "candidate", "request", "request", "candidate"])
    after = factored(linear(input_node(spec), 6, 1), spec)
    assert products(after) == 2 * 3 * 6


@pytest.mark.parametrize("op", [Op.SUM, Op.MEAN, Op.MAX, Op.MIN, Op.PROD])
@pytest.mark.parametrize("keepdims", [False, True])
def test_a_reduction_over_both_sides_reduces_the_requests_entries_once(op, keepdims):
    after = factored(Node(op, (m,), axes=(0,), keepdims=keepdims))
    assert {v.side for v in after.order if v.op in (Op.SUM, op)} == {"request", "candidate"}
    spec = Input("f", shape=(5, 3), side=["request", "candidate", "request", "request", "candidate"])
    factored(Node(op, (input_node(spec),), axes=(1, 0), keepdims=keepdims), spec)


def test_rows_repeated_for_a_history_are_multiplied_before_they_are_repeated():
    before = din(history=20, width=16, hidden=36)
    after = factor_request(tidy(before))
    assert_same_function(before, after)
    attention = [v for v in after.order if v.op is Op.LINEAR and v.side == "candidate" and v.shape[-1] == 36]
    assert sorted(v.inputs[0].shape for v in attention) == [(1, 16), (20, 16)]  # the item alone, and item * history
    assert products(after) < 0.5 * products(before)


def test_dot_products_of_request_fields_are_of_the_request():
    before = tidy(dlrm(request=0.6))
    after = factor_request(before)
    assert_same_function(before, after)
    assert {v.side for v in after.order if v.op is Op.MATMUL} == {"request", "candidate"}
    assert products(after) < 0.9 * products(before)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_first_cross_layer_reads_only_the_candidates_columns(mixed):
    before = tidy(dcn_v2(mixed=mixed))
    after = factor_request(before)
    assert_same_function(before, after)
    assert products(before) - products(after) == 429 * sum(v.shape[-1] for v in _x0(after) if v.side == "request")


def _x0(graph):
    return next(v for v in graph.order if v.op is Op.CONCAT and v.shape == (429,)).inputs


def test_fm_sums_the_requests_fields_once():
    after = factor_request(tidy(deepfm()))
    assert sum(v.op is Op.SUM and v.side == "request" for v in after.order) >= 3  # first order, fields, squares of fields


def quantized(x, n, multiplier, zero_point, w, init=None):
    q = Node(Op.QUANTIZE, (x, multiplier), zero_point=zero_point)
    k = x.shape[-1]
    parts = (q, weight("q", w.random.integers(-127, 128, (n, k)).astype(np.int8)))
    scales = (weight("s", w.random.uniform(0.001, 0.01, n).astype(np.float32)), w.normal(n))
    return Node(Op.QLINEAR, (*parts, *scales, *([] if init is None else [init])), zero_point=zero_point)


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("op", [Op.QLINEAR, Op.QDOT])
def test_quantized_linears_are_split_without_a_bit_of_difference(per_column, op):
    w = Weights(3)
    multiplier = weight("m", w.random.uniform(10, 60, 24).astype(np.float32)) if per_column else scalar(37.0)
    node = quantized(m, 16, multiplier, 119, w)
    if op is Op.QDOT:
        node = Node(Op.QDOT, node.inputs[:2], zero_point=119)
    before = Graph([M], {"y": node})
    after = factor_request(before)
    table = rows(before, 50, 4)
    assert np.array_equal(interpret(before, table)["y"], interpret(after, table)["y"])
    beside = interpret_request(after, *as_request(after, table))["y"]
    assert np.array_equal(interpret(before, one_request(before, table))["y"], beside)
    assert products(after) == 16 * 16 and only(verify(after), Op.QDOT, "request").inputs[0].shape == (8,)


def test_a_quantized_init_of_the_request_goes_along():
    w = Weights(3)
    once = Node(Op.QDOT, quantized(r, 16, scalar(20.0), 119, w).inputs[:2], zero_point=119)
    before = Graph([R, M], {"y": quantized(m, 16, scalar(37.0), 119, w, once)})
    table = rows(before, 20)
    assert np.array_equal(interpret(before, table)["y"], interpret(factor_request(before), table)["y"])


def test_in_integers_too_rows_repeated_for_a_history_are_multiplied_before_they_are_repeated():
    past, item = Input("past", shape=(6, 8), side="request"), Input("item", shape=(8,))
    h, t = input_node(past), input_node(item)
    for one in (t, reshape(t, 1, 8)):
        met = concat([Node(Op.EXPAND, (one,), shape=(6, 8)), h, Node(Op.MUL, (one, h))], axis=1)
        before = Graph([past, item], {"y": quantized(met, 16, scalar(30.0), 119, Weights(3))})
        after = factor_request(before)
        table = rows(before, 20)
        assert np.array_equal(interpret(before, table)["y"], interpret(after, table)["y"])
        beside = interpret_request(after, *as_request(after, table))["y"]
        assert np.array_equal(interpret(before, one_request(before, table))["y"], beside)
        assert products(after) == 6 * 8 * 16 + 8 * 16


def test_only_the_requests_side_is_factored_out_never_the_candidates():
    after = factor_request(tidy(dcn_v2(request=0.0)))
    assert {v.side for v in after.order if v.op is not Op.WEIGHT} == {"candidate"}


@pytest.mark.parametrize("name", CASES)
def test_factoring_keeps_what_is_computed_and_never_adds_products(name):
    before = embedding(tidy(CASES[name]))
    after = factor_request(before)
    assert_same_function(before, after)
    assert products(after) <= products(before)
    assert factor_request(after).outputs == after.outputs


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_all_exact_passes_in_a_row_keep_what_random_graphs_compute(graph):
    after = graph
    for step in (tidy, embedding, interaction, factor_request):
        after = step(after)
    assert_same_function(graph, after, n=3, atol=1e-4)


def test_some_random_graphs_are_factored_at_all():
    saved = sum(products(factor_request(tidy(g))) < products(tidy(g)) for g in map(random_graph, range(60)))
    assert saved > 15


def test_the_share_of_a_request_is_folded_when_it_is_constant():
    x = concat([weight("k", np.arange(12, dtype=np.float32)), c])
    node = factored(linear(Node(Op.TANH, (x,)), 16, 1)).outputs[0][1]
    assert node.op is Op.LINEAR and node.inputs[0] is Node(Op.TANH, (c,)) and node.inputs[3:4] in ((), (node.inputs[-1],))


def test_inputs_of_one_row_each_still_factor():
    specs = inputs(16, 0, request=0.5)
    x = reshape(input_node(specs[0]), 2, 8)
    after = factored(linear(x, 16, 1), *specs)
    assert products(after) == 8 * 16


def test_fields_of_one_side_are_multiplied_together_whatever_their_order():
    spec = Input("f", shape=(6, 3), side=["request", "candidate"] * 3)
    x = linear(input_node(spec), 8, 1)
    after = factored(Node(Op.SUM, (Node(Op.MUL, (x, x)),), axes=(0,)), spec)
    assert [v.shape for v in after.order if v.op is Op.LINEAR] == [(3, 8), (3, 8)]
    assert sum(v.op is Op.MUL for v in after.order) == 2 and not any(v.op in (Op.CONCAT, Op.SLICE) for v in after.order)


def test_layernorm_and_softmax_of_fields_are_split_too():
    spec = Input("f", shape=(4, 5), side=["request", "candidate", "candidate", "request"])
    w = Weights(1)
    normed = Node(Op.LAYERNORM, (input_node(spec), w.normal(5), w.normal(5)), eps=1e-3)
    after = factored(Node(Op.SOFTMAX, (normed,), axis=1), spec)
    for op in (Op.LAYERNORM, Op.SOFTMAX):
        assert {v.side: v.shape for v in after.order if v.op is op} == {"request": (2, 5), "candidate": (2, 5)}
