"""Rules come to rest in one walk, keep shape and dtype, and are stopped when they do not."""

import pytest

from burnish.errors import GraphError
from burnish.graph.node import Graph, Node, input_node, scalar
from burnish.graph.ops import Op
from burnish.graph.rewrite import rewrite
from burnish.inputs import Input

X = Input("x", shape=(3,))
x = input_node(X)


def relu_once(node):
    match node:
        case Node(Op.RELU, (Node(Op.RELU) as inner,)):
            return inner
    return None


def test_a_rule_is_applied_until_none_fits_and_the_old_graph_is_left_whole():
    y = x
    for _ in range(5):
        y = Node(Op.RELU, (y,))
    graph = Graph([X], {"y": y})
    assert rewrite(graph, (relu_once,)).outputs == (("y", Node(Op.RELU, (x,))),)
    assert graph.outputs == (("y", y),)


def test_what_a_rule_returns_is_rewritten_in_turn_operands_included():
    def twice(node):
        match node:
            case Node(Op.ABS, (value,)):
                return Node(Op.RELU, (Node(Op.RELU, (Node(Op.NEG, (value,)),)),))
            case Node(Op.NEG, (value,)):
                return Node(Op.RELU, (value,))
        return None

    assert rewrite(Graph([X], {"y": Node(Op.ABS, (x,))}), (twice, relu_once)).outputs == (("y", Node(Op.RELU, (x,))),)


def test_a_value_used_many_times_is_rewritten_once():
    seen = []

    def watch(node):
        seen.append(node)

    y = x
    for _ in range(40):  # 2^40 paths
        y = Node(Op.ADD, (y, y))
    rewrite(Graph([X], {"y": y}), (watch,))
    assert len(seen) == 41


def test_a_graph_of_20_000_nodes_in_a_row_is_rewritten_without_recursion():
    y = x
    for _ in range(20_000):
        y = Node(Op.RELU, (y,))
    assert rewrite(Graph([X], {"y": y}), (relu_once,)).outputs == (("y", Node(Op.RELU, (x,))),)


@pytest.mark.parametrize("wrong", [lambda value: Node(Op.SUM, (value,), axes=(0,)), lambda value: Node(Op.CAST, (value,), dtype="float64")])
def test_a_rule_that_changes_shape_or_dtype_is_named(wrong):
    def careless(node):
        return wrong(node.inputs[0]) if node.op is Op.ABS else None

    with pytest.raises(GraphError, match=r"careless turned ABS\[3\] float32 candidate into .*: a rule keeps shape and dtype"):
        rewrite(Graph([X], {"y": Node(Op.ABS, (x,))}), (careless,))


@pytest.mark.parametrize("grows", [True, False])
def test_rules_that_never_rest_are_stopped(grows):
    def restless(node):
        match node:
            case Node(Op.ADD, (a, b)):
                return Node(Op.ADD, (Node(Op.ADD, (a, scalar(1.0))), b)) if grows else Node(Op.ADD, (b, a))
        return None

    with pytest.raises(GraphError, match="the rules restless do not come to rest"):
        rewrite(Graph([X], {"y": Node(Op.ADD, (x, Node(Op.RELU, (x,))))}), (restless,))
