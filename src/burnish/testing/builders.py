"""Graphs in one line: values with random weights, inputs, and rows for a graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from burnish.graph.node import Graph, Node, input_node, weight
from burnish.graph.ops import Op
from burnish.inputs import Input, Side


class Weights:
    """A source of random weights; the same seed gives the same weights in the same order."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.made = 0

    def normal(self, *shape: int, scale: float = 1.0, name: str = "w") -> Node:
        self.made += 1
        return weight(f"{name}{self.made}", (self.random.standard_normal(shape, np.float32) * np.float32(scale)))


def inputs(dense: int = 13, ids: int = 26, cardinality: int = 1000, request: float = 0.5, mixed: bool = False) -> tuple[Input, ...]:
    """Inputs "dense" float32 (dense,) and "cat" int64 (ids,), of which the share `request` of the columns is of the request.

    The request's columns come first; with `mixed` the two sides alternate as evenly as they can. An input of no columns is left out.
    """

    def sides(n: int) -> tuple[Side, ...]:
        first = round(n * request)
        of_request = [((i + 1) * first) // n > (i * first) // n if mixed else i < first for i in range(n)]
        return tuple("request" if r else "candidate" for r in of_request)

    specs = []
    if dense:
        specs.append(Input("dense", "float32", (dense,), sides(dense)))
    if ids:
        specs.append(Input("cat", "int64", (ids,), sides(ids), cardinality))
    return tuple(specs)


def linear(x: Node, n: int, weights: Weights | int = 0, *, bias: bool = True, init: Node | None = None, compute: str = "float32") -> Node:
    """x (..., K) -> (..., n) with random weights that keep the variance."""
    made = weights if isinstance(weights, Weights) else Weights(weights)
    k = x.shape[-1]
    b = made.normal(n, scale=0.1, name="b") if bias else weight("0", np.zeros(n, np.float32))
    w = made.normal(n, k, scale=k**-0.5)
    return Node(Op.LINEAR, (x, w, b) if init is None else (x, w, b, init), compute=compute)


def mlp(x: Node, widths: Sequence[int], weights: Weights, last: bool = False) -> Node:
    """Linears with RELU after each; after the last one only when not `last`."""
    for i, n in enumerate(widths):
        x = linear(x, n, weights)
        if not (last and i == len(widths) - 1):
            x = Node(Op.RELU, (x,))
    return x


def table(rows: int, width: int, weights: Weights | int = 0, scale: float = 0.1) -> Node:
    """A random table (rows, width)."""
    made = weights if isinstance(weights, Weights) else Weights(weights)
    return made.normal(rows, width, scale=scale, name="table")


def column(x: Node, i: int) -> Node:
    """Entry i of the first axis, which goes."""
    return Node(Op.RESHAPE, (Node(Op.SLICE, (x,), axis=0, start=i, stop=i + 1),), shape=x.shape[1:])


def lookup(t: Node, ids: Node) -> Node:
    return Node(Op.LOOKUP, (t, ids))


def concat(parts: Iterable[Node], axis: int = 0) -> Node:
    return Node(Op.CONCAT, parts, axis=axis)


def reshape(x: Node, *shape: int) -> Node:
    return Node(Op.RESHAPE, (x,), shape=shape)


def sigmoid(x: Node) -> Node:
    return Node(Op.SIGMOID, (x,))


def embeddings(cat: Node, spec: Input, width: int, weights: Weights) -> list[Node]:
    """A row (width,) from a table of its own for each column of `cat`."""
    return [lookup(table(spec.cardinality_of(i) or 1, width, weights), column(cat, i)) for i in range(spec.columns)]


def features(specs: Sequence[Input], width: int, weights: Weights) -> Node:
    """Dense columns, then a row for each id, concatenated."""
    parts: list[Node] = []
    for spec in specs:
        value = input_node(spec)
        parts.extend(embeddings(value, spec, width, weights) if spec.dtype.startswith("int") else [value])
    return concat(parts)


def rows(graph: Graph, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A plain table of n random rows: ids within their cardinality (skewed to small ones), normal floats, fair bools."""
    random = np.random.default_rng(seed)
    made = {}
    for spec in graph.inputs:
        shape = (n, *spec.shape)
        if spec.dtype == "bool":
            made[spec.name] = random.random(shape) < 0.5
        elif spec.dtype.startswith("float") and spec.cardinality is None:
            made[spec.name] = random.standard_normal(shape).astype(spec.dtype)
        else:
            array = np.zeros(shape, spec.dtype)
            for i in range(spec.columns):
                most = spec.cardinality_of(i)
                at = (slice(None), i) if spec.shape else ...
                size = array[at].shape
                value = random.standard_normal(size) if most is None and spec.dtype.startswith("float") else None
                array[at] = ((most or 100) * random.random(size) ** 2).astype(np.int64) if value is None else value
            made[spec.name] = array
    return made


def as_request(graph: Graph, table: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A plain table as one request with its candidates: request halves from row 0, candidate halves from every row."""
    request, candidates = {}, {}
    for spec in graph.inputs:
        for half in spec.halves:
            array = table[spec.name] if half.columns is None else table[spec.name][:, list(half.columns)]
            if half.side == "request":
                request[half.name] = array[0]
            else:
                candidates[half.name] = array
    return request, candidates


def one_request(graph: Graph, table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The plain table with the request's columns of row 0 in every row: what `as_request` means as rows."""
    same = {name: array.copy() for name, array in table.items()}
    for spec in graph.inputs:
        for half in spec.halves:
            if half.side == "request":
                at = (slice(None), list(half.columns)) if half.columns is not None else (slice(None),)
                same[spec.name][at] = same[spec.name][:1][at]
    return same
