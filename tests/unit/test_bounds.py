"""Bounds of ids, walked back from the tables they index to the columns they came from."""

from __future__ import annotations

import numpy as np
import pytest

from burnish.capture.bounds import bounded
from burnish.errors import CaptureError
from burnish.graph.node import Graph, Node, input_node, scalar, weight
from burnish.graph.ops import Op
from burnish.inputs import Input

TABLE = weight("table", np.zeros((100, 2), np.float32))


def bounds(spec: Input, ids: Node, *more: Node):
    outputs = {f"e{i}": Node(Op.LOOKUP, (TABLE, v)) for i, v in enumerate((ids, *more))}
    return bounded(Graph([spec], outputs)).inputs[0].cardinality


columns = Input("ids", "int64", (3,))
x = input_node(columns)


@pytest.mark.parametrize(
    ("ids", "want"),
    [
        (x, 100),
        (Node(Op.SLICE, (x,), axis=0, start=1, stop=2), (None, 100, None)),
        (Node(Op.TAKE, (x,), axis=0, indices=(2, 0)), (100, None, 100)),
        (Node(Op.ADD, (x, weight("offsets", np.array([0, 10, 90])))), (100, 90, 10)),
        (Node(Op.SUB, (x, scalar(1, "int64"))), 101),
        (Node(Op.MUL, (x, scalar(3, "int64"))), 34),
        (Node(Op.RESHAPE, (Node(Op.EXPAND, (Node(Op.RESHAPE, (x,), shape=(3, 1)),), shape=(3, 4)),), shape=(12,)), 100),
        (Node(Op.TRANSPOSE, (Node(Op.RESHAPE, (x,), shape=(3, 1)),), perm=(1, 0)), 100),
        (Node(Op.MAXIMUM, (x, scalar(0, "int64"))), 100),
        (Node(Op.MOD, (x, scalar(100, "int64"))), None),
        (Node(Op.MINIMUM, (x, scalar(99, "int64"))), None),
    ],
)
def test_a_bound_goes_back_through_what_keeps_it(ids, want):
    assert bounds(columns, ids) == want


def test_the_tightest_of_several_tables_counts():
    small = Node(Op.LOOKUP, (weight("small", np.zeros((7, 2), np.float32)), Node(Op.SLICE, (x,), axis=0, start=0, stop=1)))
    graph = Graph([columns], {"a": Node(Op.LOOKUP, (TABLE, x)), "b": small})
    assert bounded(graph).inputs[0].cardinality == (7, 100, 100)


def test_float_columns_cast_to_ids_and_mixed_sides_are_followed():
    spec = Input("X", "float32", (3,), ["candidate", "request", "candidate"])
    column = Node(Op.CAST, (Node(Op.SLICE, (input_node(spec),), axis=0, start=1, stop=2),), dtype="int64")
    assert bounds(spec, column) == (None, 100, None)


def test_a_scalar_and_a_history_have_one_bound():
    assert bounds(Input("user", "int64"), input_node(Input("user", "int64"))) == 100
    history = Input("history", "int64", (6,))
    assert bounds(history, input_node(history)) == 100


def test_a_declared_cardinality_beyond_the_table_is_refused_and_a_lower_one_kept():
    low = Input("user", "int64", cardinality=9)
    assert bounds(low, input_node(low)) == 9
    high = Input("user", "int64", cardinality=101)
    with pytest.raises(CaptureError) as caught:
        bounds(high, input_node(high))
    assert str(caught.value) == (
        "input 'user' declares cardinality 101, and indexes 'table', which has room for 100. "
        "Lower the cardinality, or make the table larger"
    )
