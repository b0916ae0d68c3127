"""Nodes are values, graphs are frozen, and what must hold of a graph is checked."""

import copy
import gc
import pickle

import numpy as np
import pytest

from burnish.errors import GraphError
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, _interned, input_node, scalar, weight
from burnish.graph.ops import Op
from burnish.graph.verify import verify
from burnish.inputs import Half, Input
from burnish.testing import inputs, linear, model_cases, reshape, rows

X = Input("x", shape=(3,), side="request")
Y = Input("y", shape=(3,))


def test_equal_nodes_are_one_object():
    x = input_node(X)
    assert Node(Op.ADD, (x, scalar(1.0))) is Node(Op.ADD, [x, scalar(1.0)])
    assert Node(Op.SUM, (x,), axes=[0]) is Node(Op.SUM, (x,), axes=(0,), keepdims=False)
    assert Node(Op.SLICE, (x,), axis=0, start=np.int64(1), stop=2) is Node(Op.SLICE, (x,), axis=0, start=1, stop=2)
    assert Node(Op.ADD, (x, scalar(1.0))) is not Node(Op.ADD, (x, scalar(2.0)))


def test_a_node_has_the_side_of_its_most_numerous_operand():
    x, y, w = input_node(X), input_node(Y), weight("w", np.ones(3, np.float32))
    assert [node.side for node in (w, Node(Op.ADD, (x, w)), Node(Op.ADD, (x, y)))] == ["constant", "request", "candidate"]


def test_nodes_and_graphs_are_frozen():
    graph = Graph([X], {"y": input_node(X)})
    with pytest.raises(AttributeError, match="a Node is frozen"):
        input_node(X).op = Op.RELU
    with pytest.raises(AttributeError, match="a Graph is frozen; passes return a new one"):
        graph.inputs = ()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda x: Node(Op.RELU, (x, x)), "RELU takes 1 to 1 operands, met 2"),
        (lambda x: Node(Op.SUM, (x,)), "SUM lacks its attribute 'axes'"),
        (lambda x: Node(Op.SUM, (x,), axes=(0,), axis=1), "SUM has no attribute 'axis'; it has axes, keepdims"),
        (lambda x: Node(Op.SUM, (x,), axes=(1,)), r"a reduction along axis 1 of shape \(3,\): axes are counted from 0 behind the rows"),
        (lambda x: Node(Op.SUM, (x,), axes=(0, 0)), r"a reduction over axes \(0, 0\), one of them twice"),
        (lambda x: Node(Op.ADD, (x, weight("w", np.ones(2, np.float32)))), r"shapes \(3,\), \(2,\) do not broadcast"),
        (lambda x: Node(Op.SLICE, (x,), axis=0, start=2, stop=4), r"SLICE \[2, 4\) of axis 0 of \(3,\)"),
        (lambda x: Node(Op.TAKE, (x,), axis=0, indices=(3,)), r"TAKE has an index outside axis 0 of \(3,\)"),
        (lambda x: Node(Op.LOOKUP, (weight("t", np.ones((2, 2), np.float32)), x)), "LOOKUP needs integer ids, met float32"),
        (lambda x: Node(Op.EXP, (Node(Op.CAST, (x,), dtype="int64"),)), "an op of floats met int64. CAST the operands first"),
        (lambda x: Node(Op.MEAN, (Node(Op.CAST, (x,), dtype="int64"),), axes=(0,)), "MEAN of int64. CAST the operand first"),
        (lambda x: linear(x, 2).with_inputs((x, weight("w", np.ones((2, 4), np.float32)), scalar(0.0))), r"LINEAR of \(3,\) with weight"),
    ],
)
def test_a_node_that_cannot_be_is_refused_by_a_sentence(make, sentence):
    with pytest.raises(GraphError, match=sentence):
        make(input_node(X))


def test_two_inputs_of_one_name_are_refused():
    with pytest.raises(GraphError, match="two inputs have one name: x"):
        Graph([X, Input("x")], {"y": input_node(X)})


def test_a_mixed_input_is_its_halves_in_the_order_of_the_columns():
    spec = Input("m", shape=(4,), side=["candidate", "request", "request", "candidate"])
    table = rows(Graph([spec], {"y": input_node(spec)}), 5)
    assert np.array_equal(interpret(Graph([spec], {"y": input_node(spec)}), table)["y"], table["m"])


def test_weights_get_unique_names():
    x = input_node(X)
    y = linear(linear(linear(x, 3, 1), 3, 2), 3, 3)
    assert list(Graph([X], {"y": y}).weights) == ["w2", "b1", "w2~2", "b1~2", "w2~3", "b1~3"]


def test_users_lists_a_double_use_twice():
    x = input_node(X)
    square = Node(Op.MUL, (x, x))
    assert Graph([X], {"y": square}).users()[x] == [square, square]


@pytest.mark.parametrize("name", ["dcn_v2 mixed columns", "din"])
def test_a_graph_survives_pickle_and_copy(name):
    graph = model_cases()[name]
    for again in (pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph)):
        assert again.inputs == graph.inputs and [n for n, _ in again.outputs] == [n for n, _ in graph.outputs]
        table = rows(graph, 3)
        for key, value in interpret(graph, table).items():
            assert np.array_equal(value, interpret(again, table)[key])


def test_a_graph_of_20_000_nodes_in_a_row_is_made_pickled_and_let_go_without_recursion():
    x = input_node(X)
    gc.collect()
    before = len(_interned)
    for i in range(20_000):
        x = Node(Op.ADD, (x, scalar(float(i % 7))))
    graph = Graph([X], {"y": x})
    assert pickle.loads(pickle.dumps(graph)).outputs == graph.outputs
    del graph, x
    gc.collect()
    assert len(_interned) <= before


def test_verify_names_the_node_and_the_rule_it_breaks():
    x, y = input_node(X), input_node(Y)
    with pytest.raises(GraphError, match="the graph has no output"):
        verify(Graph([X], {}))
    with pytest.raises(GraphError, match=r"INPUT\[3\] float32 candidate breaks the rule that an INPUT is a half of a declared input"):
        verify(Graph([X], {"y": Node(Op.ADD, (x, y))}))
    moving = Node(Op.LINEAR, (x, reshape(y, 1, 3), scalar(0.0).with_attrs(weight=weight("b", np.zeros(1, np.float32))["weight"])))
    with pytest.raises(GraphError, match=r"LINEAR.* breaks the rule that tables, weights and scales are constants"):
        verify(Graph([X, Y], {"y": moving}))


def test_verify_sees_a_zero_point_that_does_not_belong_to_its_quantize():
    q = Node(Op.QUANTIZE, (input_node(X), scalar(10.0)), zero_point=3)
    w = weight("w", np.ones((2, 3), np.int8))
    verify(Graph([X], {"y": Node(Op.QDOT, (q, w), zero_point=3)}))
    with pytest.raises(GraphError, match=r"QDOT.* breaks the rule that zero points agree with the QUANTIZE above"):
        verify(Graph([X], {"y": Node(Op.QDOT, (q, w), zero_point=4)}))


def test_an_input_half_prints_where_it_lies():
    (spec,) = inputs(3, 0, request=0.0)
    assert repr(input_node(spec)) == "INPUT[3] float32 candidate"
    assert spec.halves == (Half("dense", "candidate", "float32", (3,), None),)
