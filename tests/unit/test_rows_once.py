"""Rows that nothing reaches or that are the same are kept once, and every id finds the row it found."""

import numpy as np
import pytest

from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, weight
from burnish.graph.ops import Op
from burnish.graph.verify import verify
from burnish.inputs import Input
from burnish.passes.rows import kept_rows

ROWS, WIDTH = 3000, 16


def table(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, WIDTH)).astype(np.float32)


def looked_up(array: np.ndarray, cardinality: int | None = ROWS, op: Op = Op.LOOKUP, **attrs) -> Graph:
    ids = Input("ids", "int64", (4,), cardinality=cardinality)
    attrs = {"mode": "sum"} | attrs if op is Op.BAG else attrs
    return Graph([ids], {"y": Node(op, (weight("t", array), input_node(ids)), **attrs)})


def every(graph: Graph, cardinality: int = ROWS) -> np.ndarray:
    ids = np.resize(np.arange(cardinality), (-(-cardinality // 4), 4))
    return interpret(graph, {"ids": ids})["y"]


def kept(graph: Graph) -> int:
    return next(node.inputs[0].shape[0] for node in graph.order if node.op in (Op.LOOKUP, Op.BAG) and node.inputs[0].dtype == "float32")


def test_rows_beyond_the_declared_ids_are_dropped():
    graph = looked_up(table(), cardinality=1200)
    found = verify(kept_rows(graph))
    assert kept(found) == 1200 and np.array_equal(every(found, 1200), every(graph, 1200))
    assert kept(kept_rows(looked_up(table(), cardinality=None))) == ROWS


@pytest.mark.parametrize("op", [Op.LOOKUP, Op.BAG])
def test_a_tail_of_equal_rows_is_one_row_and_needs_no_map(op):
    array = table()
    array[1000:] = array[-1]
    graph = looked_up(array, op=op)
    found = verify(kept_rows(graph))
    assert kept(found) == 1001 and np.array_equal(every(found), every(graph))
    assert sum(node.op is Op.WEIGHT for node in found.order) == 2  # the rows, and the last one's id


def test_scattered_rows_that_are_the_same_are_found_through_a_map_where_that_pays():
    array = table()
    array[np.random.default_rng(1).permutation(ROWS)[:2000]] = 0
    graph = looked_up(array)
    found = verify(kept_rows(graph))
    assert kept(found) == 1001 and np.array_equal(every(found), every(graph))
    assert sum(held.nbytes for held in found.weights.values()) < 0.42 * array.nbytes
    array = table()
    array[np.random.default_rng(1).permutation(ROWS)[:600]] = 0  # a fifth: the map would take most of what it saves
    assert kept(kept_rows(looked_up(array))) == ROWS


def test_what_is_read_otherwise_stays_whole():
    array = table()
    array[1000:] = 0
    ignoring = looked_up(array, op=Op.BAG, ignore=0)
    assert kept_rows(ignoring) is ignoring
    ids = Input("ids", "int64", (4,), cardinality=ROWS)
    held = weight("t", array)
    tied = Node(
        Op.LINEAR, (Node(Op.SUM, (Node(Op.LOOKUP, (held, input_node(ids))),), axes=(0,)), held, weight("b", np.zeros(ROWS, np.float32)))
    )
    graph = Graph([ids], {"y": tied})
    assert kept_rows(graph) is graph
    small = looked_up(array[:500])
    assert kept_rows(small) is small
