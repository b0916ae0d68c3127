"""Pairs of fields have one form, however the model spelled them."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings

from burnish.graph.node import Graph, Node, input_node
from burnish.graph.ops import Op
from burnish.passes.interaction import interaction
from burnish.passes.tidy import tidy
from burnish.testing import assert_same_function, concat, graphs, inputs, lookup, model_cases, reshape, table

SPECS = inputs(0, 7, 11)
FIELDS = [lookup(table(11, 5, i), Node(Op.SLICE, (input_node(SPECS[0]),), axis=0, start=i, stop=i + 1)) for i in range(7)]
FIRST, SECOND = zip(*itertools.combinations(range(7), 2))


def dots(p, q, keepdims=False):
    return Node(Op.SUM, (Node(Op.MUL, (p, q)),), axes=(1,), keepdims=keepdims)


def take(x, rows):
    return Node(Op.TAKE, (x,), axis=0, indices=rows)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("spelling", ["takes of one matrix", "concats of repeated fields", "a take and a concat"])
def test_dot_products_of_pairs_are_one_matrix_product_and_a_flat_take(spelling, keepdims):
    whole = concat(FIELDS)
    p = concat([FIELDS[i] for i in FIRST]) if spelling == "concats of repeated fields" else take(whole, FIRST)
    q = take(whole, SECOND) if spelling == "takes of one matrix" else concat([FIELDS[j] for j in SECOND])
    before = Graph(SPECS, {"y": dots(p, q, keepdims)})
    after = interaction(before)
    assert_same_function(before, after)
    assert sum(node.op is Op.MATMUL for node in after.order) == 1
    (pairs,) = (node for node in after.order if node.op is Op.TAKE)
    assert sorted(pairs["indices"]) == sorted(i * 7 + j for i, j in zip(FIRST, SECOND))


def test_a_few_pairs_are_not_worth_the_whole_product():
    before = Graph(SPECS, {"y": dots(take(concat(FIELDS), (0, 1, 2)), take(concat(FIELDS), (4, 5, 6)))})
    assert Op.MATMUL not in {node.op for node in interaction(before).order}


def test_fm_by_sums_stays_as_it_is():
    graph = tidy(model_cases()["deepfm"])
    assert interaction(graph).outputs == graph.outputs


@settings(derandomize=True, deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_interaction_keeps_what_random_graphs_compute(graph):
    assert_same_function(graph, interaction(graph), n=3, atol=1e-4)


def test_a_reshape_alone_is_no_pair():
    before = Graph(SPECS, {"y": reshape(concat(FIELDS), 35)})
    assert interaction(before).outputs == tidy(before).outputs
