"""Layouts: where the rows stand in a traced tensor. Each move is held against numpy doing the same to the whole batch."""

from __future__ import annotations

import numpy as np
import pytest

from burnish.capture import value as V
from burnish.capture.value import Mixes, Value
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node
from burnish.graph.ops import Op
from burnish.inputs import Input

P = 7  # the batch of these traces: a prime that is no size below


def held(value: Value, rows: np.ndarray) -> np.ndarray:
    """The whole tensor that a layout stands for, put together from what the graph computes for each row."""
    each = interpret(Graph([Input("x", "float32", rows.shape[1:])], {"y": value.node}), {"x": rows})["y"]
    if value.rows is None:
        return each[0]
    axis = value.rows  # where outer, batch and inner belong
    lead, tail = value.shape[:axis], value.shape[axis + 1 :]
    wide = each.reshape(P, *lead, value.outer, value.inner, *tail)
    n = len(lead)
    order = [*range(1, n + 1), n + 1, 0, n + 2, *range(n + 3, wide.ndim)]
    return wide.transpose(order).reshape(value.shape)


def traced(*shape: int) -> tuple[Value, np.ndarray]:
    rows = np.random.default_rng(0).standard_normal((P, *shape)).astype(np.float32)
    return Value(input_node(Input("x", "float32", shape)), (P, *shape), 0), rows


MOVES = {
    "flattened into the rows": (lambda v: V.reshape(v, (-1, 4)), lambda a: a.reshape(-1, 4)),
    "and back": (lambda v: V.reshape(V.reshape(v, (-1, 4)), (P, 3, 4)), lambda a: a),
    "rows last": (lambda v: V.permute(v, (1, 2, 0)), lambda a: a.transpose(1, 2, 0)),
    "rows in the middle, merged with what is before": (
        lambda v: V.reshape(V.transpose(v, 0, 1), (3 * P, 4)), lambda a: a.transpose(1, 0, 2).reshape(3 * P, 4)
    ),
    "heads split off and merged with the rows": (
        lambda v: V.reshape(V.transpose(V.reshape(v, (P, 3, 2, 2)), 1, 2), (P * 2, 3, 2)),
        lambda a: a.reshape(P, 3, 2, 2).transpose(0, 2, 1, 3).reshape(P * 2, 3, 2),
    ),
    "batches one after another": (lambda v: V.concat([v, v], 0), lambda a: np.concatenate([a, a])),
    "and one of them": (lambda v: V.slice_(V.concat([v, v], 0), 0, P, 2 * P), lambda a: a),
    "stacked in front": (lambda v: V.stack([v, v], 0), lambda a: np.stack([a, a])),
    "repeated": (lambda v: V.repeat(v, (2, 1, 3), P), lambda a: np.tile(a, (2, 1, 3))),
    "each row repeated": (
        lambda v: V.reshape(V.expand(V.unsqueeze(v, 1), (P, 2, 3, 4), P), (2 * P, 3, 4)), lambda a: np.repeat(a, 2, axis=0)
    ),
    "taken with a step": (lambda v: V.slice_(v, 2, 0, 4, 2), lambda a: a[:, :, ::2]),
    "selected": (lambda v: V.select(v, -1, -1), lambda a: a[..., -1]),
    "ones added and dropped": (lambda v: V.squeeze(V.unsqueeze(V.unsqueeze(v, 0), -1)), lambda a: a),
    "summed in front of the rows": (
        lambda v: V.reduce(Op.SUM, V.transpose(v, 0, 1), [0], False, ""), lambda a: a.sum(axis=1)
    ),
    "a constant of a lower rank added": (
        lambda v: V.pointwise(Op.ADD, v, V.of(np.arange(4, dtype=np.float32))), lambda a: a + np.arange(4, dtype=np.float32)
    ),
    "a constant of a higher rank added, rows in its middle": (
        lambda v: V.pointwise(Op.ADD, V.select(v, 1, 0), V.of(np.arange(8, dtype=np.float32).reshape(2, 1, 4))),
        lambda a: a[:, 0] + np.arange(8, dtype=np.float32).reshape(2, 1, 4),
    ),
    "zeros of the batch added to merged rows": (
        lambda v: V.pointwise(Op.ADD, V.reshape(v, (-1, 4)), V.expand(V.number(2.0, "float32"), (3 * P, 4), P)),
        lambda a: a.reshape(-1, 4) + 2,
    ),
    "rows times a constant a field": (
        lambda v: V.matmul(V.transpose(v, 0, 1), V.of(np.arange(24, dtype=np.float32).reshape(3, 4, 2))),
        lambda a: a.transpose(1, 0, 2) @ np.arange(24, dtype=np.float32).reshape(3, 4, 2),
    ),
    "a constant times rows in the last place": (
        lambda v: V.matmul(V.of(np.ones((2, 4), np.float32)), V.permute(v, (1, 2, 0))),
        lambda a: np.ones((2, 4), np.float32) @ a.transpose(1, 2, 0),
    ),
    "a product in each row": (lambda v: V.matmul(v, V.transpose(v, 1, 2)), lambda a: a @ a.transpose(0, 2, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_a_move_does_to_the_rows_what_numpy_does_to_the_batch(name):
    ours, numpys = MOVES[name]
    value, rows = traced(3, 4)
    out = ours(value)
    want = numpys(rows)
    assert out.shape == want.shape
    assert out.node.shape == V.behind(out.shape, out.rows, out.outer, out.inner)
    np.testing.assert_allclose(held(out, rows), want, rtol=1e-5, atol=1e-5)


CUTS = {
    "a view of shape (rows, 3, 4) as (4, rows*3)": lambda v: V.reshape(v, (4, 3 * P)),
    "taking one row of the batch": lambda v: V.select(v, 0, 0),
    "a slice of the rows": lambda v: V.slice_(v, 0, 0, 3),
    "indexing the rows": lambda v: V.take(v, 0, [1, 0, 2, 3, 4, 5, 6]),
    "add of rows with rows": lambda v: V.pointwise(Op.ADD, V.unsqueeze(v, 0), V.unsqueeze(v, 1)),
    "an expansion to (rows, rows, 3, 4), which pairs rows with rows,": lambda v: V.expand(V.unsqueeze(v, 0), (P, -1, -1, -1), P),
    "combining values that have the rows of the batch in different order": lambda v: V.pointwise(
        Op.ADD, V.reshape(v, (-1, 4)), V.reshape(V.transpose(v, 0, 1), (-1, 4))
    ),
    "a matrix product that sums over the rows": lambda v: V.matmul(V.permute(v, (1, 2, 0)), V.permute(v, (1, 0, 2))),
}


@pytest.mark.parametrize("what", CUTS)
def test_what_reads_across_rows_is_refused(what):
    value, _ = traced(3, 4)
    with pytest.raises(Mixes) as caught:
        CUTS[what](value)
    assert str(caught.value) == what


def test_equal_rows_may_be_read_across():
    """zeros(batch, 5): one row, or some of them, are a constant without rows, and their mean is one of them."""
    filled = V.expand(V.of(np.arange(5, dtype=np.float32)), (P, 5), P)
    assert V.select(filled, 0, 3).rows is None
    assert V.slice_(filled, 0, 0, 2).shape == (2, 5)
    assert V.reduce(Op.MEAN, filled, [0], False, "a mean over the rows").shape == (5,)
    with pytest.raises(Mixes):
        V.reduce(Op.SUM, filled, [0], False, "a sum over the rows")


def test_reshapes_do_not_pile_up():
    value, _ = traced(12)
    out = V.reshape(V.reshape(V.reshape(value, (P, 3, 4)), (P, 4, 3)), (P, 12))
    assert out.node is value.node or out.node.inputs == (value.node,)
    assert isinstance(out.node, Node)
