"""factor_request: what depends on the request alone is computed once per request, not once per candidate.

A value of request side is computed once by every backend. So the pass only has to pull mixed values apart: wherever an op over a
concatenation of request part and candidate part can be split so that the request's share becomes a value of its own, it is. Sums are
taken in the order request, then candidate, which native code keeps: its accumulators start from the request's share.
"""

from __future__ import annotations

import math

import numpy as np

from burnish.graph.node import Graph, Node, weight
from burnish.graph.ops import Op
from burnish.graph.rewrite import rewrite
from burnish.passes.embedding import bag_of_mixed, lookup_of_mixed
from burnish.passes.segments import bounds, concat, segments
from burnish.passes.tidy import TIDY

LEAST_COLUMNS = 8  # a linear saves nothing on fewer request columns: reading its init costs as much
LEAST_PRODUCTS = 64


def factor_request(graph: Graph) -> Graph:
    """The same function with the request's share of linears, sums and lookups as values of request side.

    Quantized linears stay exact to the bit; in float32 the order of summation changes.
    """
    return rewrite(graph, (*FACTOR, *TIDY))


def split_linear(node: Node) -> Node | None:
    """LINEAR(CONCAT(r, c), W, b)  ->  LINEAR(c, W_c, b, init=LINEAR(r, W_r, 0)), r and c all parts of each kind, in order.

    An init of the request's side goes into the inner one. Left alone: an init of the candidate's side; fewer than 8 request columns.
    """
    if node.op is not Op.LINEAR:
        return None
    x, w, b, *init = node.inputs
    if any(value.side == "candidate" for value in init) or w.op is not Op.WEIGHT:
        return None
    split = _split_columns(x)
    if split is None or not _saves(split[0], w):
        return None
    (request, request_columns), (candidate, candidate_columns) = split
    compute = node["compute"]
    none = weight("0", np.zeros(b.shape, np.float32))
    once = Node(Op.LINEAR, (request, columns_of(w, request_columns, "request"), none, *init), compute=compute)
    return Node(Op.LINEAR, (candidate, columns_of(w, candidate_columns, "candidate"), b, once), compute=compute)


def split_quantized_linear(node: Node) -> Node | None:
    """QLINEAR(CONCAT(r, c), W, s, b)  ->  QLINEAR(c, W_c, s, b, init=QDOT(r, W_r)), and QDOT likewise; exact to the bit.

    r and c are QUANTIZE of the parts, each with its own columns of the multiplier: `segments` sees through QUANTIZE.
    """
    if node.op not in (Op.QLINEAR, Op.QDOT):
        return None
    x, w, *rest = node.inputs
    affine, init = (rest[:2], rest[2:]) if node.op is Op.QLINEAR else ([], rest)
    if any(value.side == "candidate" for value in init) or w.op is not Op.WEIGHT:
        return None
    split = _split_columns(x)
    if split is None or not _saves(split[0], w):
        return None
    (request, request_columns), (candidate, candidate_columns) = split
    zero_point = node["zero_point"]
    once = Node(Op.QDOT, (request, columns_of(w, request_columns, "request"), *init), zero_point=zero_point)
    return Node(node.op, (candidate, columns_of(w, candidate_columns, "candidate"), *affine, once), zero_point=zero_point)


def split_fields_of_linear(node: Node) -> Node | None:
    """LINEAR(CONCAT(r, c, axis=fields), W, b)  ->  CONCAT(LINEAR(r, W, b), LINEAR(c, W, b), axis=fields)."""
    if node.op is not Op.LINEAR or len(node.inputs) > 3:
        return None
    x, *wb = node.inputs
    for axis in range(len(x.shape) - 1):
        parts = segments(x, axis)
        if parts is not None:
            return concat([node.with_inputs((part, *wb)) for part in parts], axis)
    return None


def split_reduction(node: Node) -> Node | None:
    """SUM(CONCAT(r, c))  ->  SUM(r) + SUM(c), over the axis of the parts; MAX, MIN, PROD likewise, MEAN as SUM / n."""
    joins = {Op.SUM: Op.ADD, Op.MEAN: Op.ADD, Op.MAX: Op.MAXIMUM, Op.MIN: Op.MINIMUM, Op.PROD: Op.MUL}
    if node.op not in joins:
        return None
    (x,) = node.inputs
    for axis in node["axes"]:
        parts = segments(x, axis)
        if parts is None:
            continue
        how = {"axes": node["axes"], "keepdims": node["keepdims"]}
        op = Op.SUM if node.op is Op.MEAN else node.op
        request, candidate = (
            Node(op, (concat([part for part in parts if (part.side == "candidate") is of_candidate], axis),), **how)
            for of_candidate in (False, True)
        )
        total = Node(joins[node.op], (request, candidate))
        if node.op is not Op.MEAN:
            return total
        n = math.prod(x.shape[a] for a in node["axes"])
        return Node(Op.DIV, (total, weight(str(n), np.asarray(n, node.dtype)))) if node.dtype in ("float32", "float64") else None
    return None


FACTOR = (split_linear, split_quantized_linear, split_fields_of_linear, split_reduction, lookup_of_mixed, bag_of_mixed)


def columns_of(w: Node, columns: list[int], name: str) -> Node:
    """A WEIGHT (N, K) with those of the K columns, in that order."""
    held = w["weight"]
    return weight(f"{held.name}.{name}", held.array[:, columns], held.dtype)


def _split_columns(x: Node) -> tuple[tuple[Node, list[int]], tuple[Node, list[int]]] | None:
    """The request's parts of x (..., K) concatenated, with their columns of K, and the candidate's."""
    axis = len(x.shape) - 1
    parts = segments(x, axis)
    if parts is None:
        return None
    where = bounds(parts, axis)
    sides = []
    for of_candidate in (False, True):
        own = [i for i, part in enumerate(parts) if (part.side == "candidate") is of_candidate]
        sides.append((concat([parts[i] for i in own], axis), [k for i in own for k in range(*where[i])]))
    return sides[0], sides[1]


def _saves(request: tuple[Node, list[int]], w: Node) -> bool:
    columns = len(request[1])
    return columns >= LEAST_COLUMNS and columns * w.shape[0] >= LEAST_PRODUCTS
