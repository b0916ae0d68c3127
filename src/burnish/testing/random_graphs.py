"""Random small rankers for property tests: every family of ops, odd sizes, mixed sides, several outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from burnish.graph.node import Graph, Node, input_node, scalar, weight
from burnish.graph.ops import Op
from burnish.inputs import Input, Side
from burnish.testing.builders import Weights, concat, linear, lookup, reshape, table

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Pick = Callable[[int], int]  # n -> one of 0 ... n - 1


def graphs(most_steps: int = 14) -> SearchStrategy[Graph]:
    """A hypothesis strategy of Graphs whose outputs are finite for the rows that `rows` makes.

    Every graph has float columns and id columns on both sides, in any order. Steps are drawn one by one from STEPS, so a failing graph
    shrinks to the few steps it needs.
    """
    from hypothesis import strategies as st

    @st.composite
    def build(draw: Callable[[SearchStrategy[int]], int]) -> Graph:
        return random_graph(lambda n: draw(st.integers(0, n - 1)), most_steps)

    return build()


def random_graph(pick: Pick | int, most_steps: int = 14) -> Graph:
    """The same, from a seed or from a source of choices."""
    if isinstance(pick, int):
        random = np.random.default_rng(pick)
        return random_graph(lambda n: int(random.integers(n)), most_steps)
    w = Weights(pick(1000))
    sides: tuple[Side, ...] = ("request", "candidate")
    dense, ids = 2 + pick(12), 2 + pick(4)
    specs = (
        Input("dense", "float32", (dense,), (*(sides[pick(2)] for _ in range(dense - 1)), "candidate")),
        Input("cat", "int64", (ids,), tuple(sides[pick(2)] for _ in range(ids)), 3 + pick(20)),
        Input("past", "int32", (1 + pick(5),), sides[pick(2)], 7),
    )
    pool = [input_node(specs[0])]
    width = 1 + pick(9)
    fields = lookup(table(specs[1].cardinality_of(0) or 1, width, w, 1.0), input_node(specs[1]))
    past = lookup(table(7, width, w, 1.0), input_node(specs[2]))
    pool += [fields, past, concat([fields, past])]
    for _ in range(pick(most_steps) + 1):
        made = STEPS[pick(len(STEPS))](pool, pick, w)
        if 1 <= np.prod(made.shape) <= 4000:
            pool.append(made)
    outputs = {}
    for i in range(1 + pick(3)):
        value = pool[-1 - pick(min(len(pool), 3))]
        top = linear(_flat(concat([_flat(value), _flat(pool[pick(len(pool))])])), 1 + pick(5), w)
        outputs[f"y{i}"] = top if pick(3) else Node(Op.SIGMOID, (reshape(linear(top, 1, w)),))
    return Graph(specs, outputs)


def _flat(x: Node) -> Node:
    return x if len(x.shape) == 1 else reshape(x, int(np.prod(x.shape)))


def _any(pool: list[Node], pick: Pick) -> Node:
    return pool[-1 - pick(len(pool))]


def _vector(pool: list[Node], pick: Pick) -> Node:
    return _flat(_any(pool, pick))


def _matrix(pool: list[Node], pick: Pick) -> Node:
    matrices = [x for x in pool if len(x.shape) == 2]
    return matrices[-1 - pick(len(matrices))]


def _axis(x: Node, pick: Pick) -> int:
    return pick(len(x.shape))


def _bounded(x: Node) -> Node:
    """Keeps a long chain of products finite."""
    return Node(Op.TANH, (x,))


def _unary(pool: list[Node], pick: Pick, w: Weights) -> Node:
    x = _any(pool, pick)
    ops = (Op.NEG, Op.ABS, Op.SIGN, Op.EXP, Op.SIN, Op.COS, Op.TANH, Op.SIGMOID, Op.RELU, Op.ERF)
    op = ops[pick(len(ops))]
    return Node(op, (_bounded(x),)) if op in (Op.EXP, Op.SIGN) else Node(op, (x,))


def _positive(pool: list[Node], pick: Pick, w: Weights) -> Node:
    x = Node(Op.ADD, (Node(Op.ABS, (_any(pool, pick),)), scalar(0.5)))
    return Node((Op.LOG, Op.SQRT, Op.RSQRT)[pick(3)], (x,))


def _binary(pool: list[Node], pick: Pick, w: Weights) -> Node:
    a = _any(pool, pick)
    b = (a, w.normal(*a.shape), scalar(0.5 + pick(4)), w.normal(*a.shape[-1:]), w.normal(*a.shape[:-1], 1))[pick(5)]
    same = [x for x in pool if x.shape == a.shape]
    b = same[pick(len(same))] if pick(2) else b
    op = (Op.ADD, Op.SUB, Op.MUL, Op.MINIMUM, Op.MAXIMUM)[pick(5)]
    return Node(op, (a, b) if pick(2) else (b, a)) if op is not Op.MUL else Node(op, (_bounded(a), b))


def _where(pool: list[Node], pick: Pick, w: Weights) -> Node:
    a = _any(pool, pick)
    test = Node((Op.GT, Op.LE, Op.NE)[pick(3)], (a, scalar(0.25)))
    return Node(Op.WHERE, (test, a, (scalar(0.0), Node(Op.NEG, (a,)))[pick(2)]))


def _linear(pool: list[Node], pick: Pick, w: Weights) -> Node:
    return linear(_any(pool, pick), 1 + pick(20), w)


def _affine(pool: list[Node], pick: Pick, w: Weights) -> Node:
    """BatchNorm as it is captured, before or after a linear."""
    x = _any(pool, pick)
    x = linear(x, 1 + pick(9), w) if pick(2) else x
    n = x.shape[-1]
    x = Node(Op.MUL, (Node(Op.SUB, (x, w.normal(n))), weight("s", w.random.uniform(0.5, 2, n).astype(np.float32))))
    x = Node(Op.ADD, (x, w.normal(n)))
    return linear(x, 1 + pick(9), w) if pick(2) else x


def _reduce(pool: list[Node], pick: Pick, w: Weights) -> Node:
    x = _any(pool, pick)
    if len(x.shape) < 2:
        return x
    return Node((Op.SUM, Op.MEAN, Op.MAX, Op.MIN)[pick(4)], (x,), axes=(_axis(x, pick),), keepdims=bool(pick(2)))


def _softmax(pool: list[Node], pick: Pick, w: Weights) -> Node:
    x = _any(pool, pick)
    return Node(Op.SOFTMAX, (x,), axis=_axis(x, pick))


def _layernorm(pool: list[Node], pick: Pick, w: Weights) -> Node:
    x = _any(pool, pick)
    return Node(Op.LAYERNORM, (x, w.normal(x.shape[-1]), w.normal(x.shape[-1])), eps=1e-2)


def _concat(pool: list[Node], pick: Pick, w: Weights) -> Node:
    a = _any(pool, pick)
    axis = _axis(a, pick)
    fits = [
        x for x in pool if len(x.shape) == len(a.shape) and x.shape[:axis] == a.shape[:axis] and x.shape[axis + 1 :] == a.shape[axis + 1 :]
    ]
    parts = [a, *(fits[pick(len(fits))] for _ in range(1 + pick(3)))]
    return concat(parts, axis)


def _slice(pool: list[Node], pick: Pick, w: Weights) -> Node:
    x = _any(pool, pick)
    axis = _axis(x, pick)
    start = pick(x.shape[axis])
    return Node(Op.SLICE, (x,), axis=axis, start=start, stop=start + 1 + pick(x.shape[axis] - start))


def _take(pool: list[Node], pick: Pick, w: Weights) -> Node:
    x = _any(pool, pick)
    axis = _axis(x, pick)
    return Node(Op.TAKE, (x,), axis=axis, indices=tuple(pick(x.shape[axis]) for _ in range(1 + pick(6))))


def _move(pool: list[Node], pick: Pick, w: Weights) -> Node:
    x = _matrix(pool, pick)
    a, b = x.shape
    return (
        Node(Op.TRANSPOSE, (x,), perm=(1, 0)),
        reshape(x, b, a),
        reshape(x, a, 1, b),
        _flat(x),
        Node(Op.EXPAND, (x,), shape=(2, a, b)),
    )[pick(5)]


def _pairs(pool: list[Node], pick: Pick, w: Weights) -> Node:
    """Dot products of all pairs of rows, some of which are taken."""
    x = _bounded(_matrix(pool, pick))
    n = x.shape[0]
    dots = reshape(Node(Op.MATMUL, (x, Node(Op.TRANSPOSE, (x,), perm=(1, 0)))), n * n)
    below = tuple(i * n + j for i in range(n) for j in range(i)) or (0,)
    return Node(Op.TAKE, (dots,), axis=0, indices=below)


def _matmul(pool: list[Node], pick: Pick, w: Weights) -> Node:
    x = _bounded(_matrix(pool, pick))
    return (
        Node(Op.MATMUL, (x, w.normal(x.shape[1], 1 + pick(6))))
        if pick(2)
        else Node(Op.MATMUL, (Node(Op.SOFTMAX, (x,), axis=1), w.normal(x.shape[1], 3)))
    )


STEPS: tuple[Callable[[list[Node], Pick, Weights], Node], ...] = (
    _linear,
    _unary,
    _binary,
    _concat,
    _slice,
    _take,
    _move,
    _reduce,
    _affine,
    _pairs,
    _matmul,
    _where,
    _positive,
    _softmax,
    _layernorm,
)
