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
from burnish.passes.embedding import bag_of_mixed, lookup_of_mixed
from burnish.passes.segments import bounds, by_side, concat, segments
from burnish.passes.tidy import tidy

LEAST_COLUMNS = 8  # fewer columns out of a dot product save nothing: reading its init costs as much
LEAST_PRODUCTS = 64


def factor_request(graph: Graph) -> Graph:
    """The same function with the request's share of linears, sums and lookups as values of request side.

    Quantized linears stay exact to the bit; in float32 the order of summation changes.
    """
    return tidy(graph, *FACTOR)


def split_linear(node: Node) -> Node | None:
    """LINEAR(CONCAT(r, c), W, b)  ->  LINEAR(c, W_c, b, init=LINEAR(r, W_r, 0)), r and c all parts of each kind, in order.

    1. A part of request side goes into the init, and so does an init of request side.
    2. A part that is one row for many, EXPAND(t (1, K) -> (L, K)), is multiplied before it is repeated: init=LINEAR(t, W_t, 0).
    3. A part a + b or a - b, of two such, is two parts. In DIN's attention, over t, h, t - h and t * h, this leaves t * h alone.
    Left alone: an init of the candidate's side; fewer than 8 columns that could go.
    """
    if node.op is not Op.LINEAR:
        return None
    x, w, b, *init = node.inputs
    if any(value.side == "candidate" for value in init) or w.op is not Op.WEIGHT or w.dtype != "float32":
        return None
    terms: dict[Node, np.ndarray] = {}
    _terms(x, w["weight"].array, terms, len(x.shape) - 1)
    kinds: dict[str, list[Node]] = {"request": [], "repeated": [], "candidate": []}
    for part in terms:
        kinds[_kind(part)].append(part)
    leaving = sum(part.shape[-1] for kind in ("request", "repeated") for part in kinds[kind])
    if x.side != "candidate" or leaving < LEAST_COLUMNS or leaving * w.shape[0] < LEAST_PRODUCTS:
        return None

    def product(kind: str, bias: Node, *start: Node) -> Node:
        parts = [_once(part) if kind == "repeated" else part for part in kinds[kind]]
        block = np.concatenate([terms[part] for part in kinds[kind]], axis=1)
        name = f"{w['weight'].name}.{kind}"
        return Node(Op.LINEAR, (concat(parts, len(parts[0].shape) - 1), weight(name, block), bias, *start), compute=node["compute"])

    none = weight("0", np.zeros(b.shape, np.float32))
    starts = [product("request", none, *init)] if kinds["request"] else init
    if kinds["repeated"]:
        starts = [*starts, product("repeated", none)]
    start = starts[0] if len(starts) == 1 else Node(Op.ADD, (starts[0], starts[1]))
    if kinds["candidate"]:
        return product("candidate", b, start)
    total = Node(Op.ADD, (start, b))
    return total if total.shape == node.shape else Node(Op.EXPAND, (total,), shape=node.shape)


def _terms(x: Node, block: np.ndarray, terms: dict[Node, np.ndarray], axis: int) -> None:
    """Adds to `terms` the parts of x (..., K) and their blocks (N, k) of W (N, K), so that x W^T is the sum of part block^T."""
    if x.side == "candidate" and x.dtype == "float32":
        parts = x.inputs if x.op is Op.CONCAT and x["axis"] == axis else segments(x, axis)
        if parts is not None:
            for part, (start, stop) in zip(parts, bounds(parts, axis)):
                _terms(part, block[:, start:stop], terms, axis)
            return
        if x.op is Op.TAKE and x["axis"] == axis and sorted(x["indices"]) == list(range(x.inputs[0].shape[axis])):
            _terms(x.inputs[0], block[:, np.argsort(x["indices"])], terms, axis)
            return
        if x.op in (Op.ADD, Op.SUB) and all(_kind(_spread(part, x)) != "candidate" for part in x.inputs):
            a, b = (_spread(part, x) for part in x.inputs)
            _terms(a, block, terms, axis)
            _terms(b, block if x.op is Op.ADD else -block, terms, axis)
            return
    terms[x] = terms[x] + block if x in terms else block


def _spread(part: Node, whole: Node) -> Node:
    return part if part.shape == whole.shape else Node(Op.EXPAND, (part,), shape=whole.shape)


def _kind(part: Node) -> str:
    """request; repeated, one row for many; or candidate."""
    if part.side != "candidate":
        return "request"
    repeats = part.op is Op.EXPAND and part.dtype == "float32" and math.prod(part.inputs[0].shape) == part.shape[-1] > 1
    return "repeated" if repeats and part.inputs[0].shape[-1] == part.shape[-1] else "candidate"


def _once(repeated: Node) -> Node:
    """The row (1, ..., K) that EXPAND repeats."""
    return Node(Op.RESHAPE, repeated.inputs, shape=(*(1 for _ in repeated.shape[:-1]), repeated.shape[-1]))


def split_quantized_linear(node: Node) -> Node | None:
    """QLINEAR(CONCAT(r, c), W, s, b)  ->  QLINEAR(c, W_c, s, b, init=QDOT(r, W_r)), and QDOT likewise; exact to the bit.

    1. r and c are QUANTIZE of the parts, each with its own columns of the multiplier.
    2. Parts that are one row for many, EXPAND(t), are multiplied before they are repeated: init=QDOT(r, W_r) + QDOT(t, W_t).
    Left alone: an init of the candidate's side; fewer than 8 columns that could go; nothing but such columns.
    """
    if node.op not in (Op.QLINEAR, Op.QDOT):
        return None
    x, w, *rest = node.inputs
    affine, init = (rest[:2], rest[2:]) if node.op is Op.QLINEAR else ([], rest)
    if any(value.side == "candidate" for value in init) or w.op is not Op.WEIGHT:
        return None
    kinds = _kinds_of_columns(x)
    leaving = sum(len(columns) for kind, (_, columns) in kinds.items() if kind != "candidate")
    if "candidate" not in kinds or leaving < LEAST_COLUMNS or leaving * w.shape[0] < LEAST_PRODUCTS:
        return None
    zero_point = node["zero_point"]

    def product(kind: str, *start: Node) -> Node:
        part, columns = kinds[kind]
        return Node(Op.QDOT, (part, columns_of(w, columns, kind), *start), zero_point=zero_point)

    starts = [product("request", *init)] if "request" in kinds else init
    if "repeated" in kinds:
        starts = [*starts, product("repeated")]
    start = starts[0] if len(starts) == 1 else Node(Op.ADD, (starts[0], starts[1]))
    candidate, columns = kinds["candidate"]
    return Node(node.op, (candidate, columns_of(w, columns, "candidate"), *affine, start), zero_point=zero_point)


def split_fields(node: Node) -> Node | None:
    """LINEAR(CONCAT(r, c, axis=fields), W, b)  ->  CONCAT(LINEAR(r, W, b), LINEAR(c, W, b), axis=fields); LAYERNORM, SOFTMAX likewise."""
    match node:
        case Node(Op.LINEAR, (x, *others)) if len(others) == 2:
            axes = list(range(len(x.shape) - 1))
        case Node(Op.LAYERNORM, (x, *others)):
            axes = list(range(len(x.shape) - len(others[0].shape)))
        case Node(Op.SOFTMAX, (x, *others)):
            axes = [axis for axis in range(len(x.shape)) if axis != node["axis"]]
        case _:
            return None
    for axis in axes:
        parts = segments(x, axis)
        if parts is not None:
            return by_side(parts, axis, lambda part: node.with_inputs((part, *others)))
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


def split_dots(node: Node) -> Node | None:
    """TAKE(MATMUL(E, E^T) flat, pairs)  ->  TAKE(CONCAT(TAKE(MATMUL(r, r^T)), TAKE(MATMUL(c, E^T))), order), for E = CONCAT(r, c).

    Dot products of two fields of the request are then values of the request, which the linear that reads them takes into its init; any
    other pair has a field of the candidate, whose row of the product is computed. Left alone: fewer than 8 pairs of the request.
    """
    match node:
        case Node(Op.TAKE, (Node(Op.RESHAPE, (Node(Op.MATMUL, (e, Node(Op.TRANSPOSE, (turned,)))),)),)) if (
            e is turned and len(e.shape) == 2
        ):
            parts = segments(e, 0)
        case _:
            return None
    if parts is None or node.shape != (len(node["indices"]),):
        return None
    f = e.shape[0]
    fields: dict[bool, list[int]] = {False: [], True: []}  # of the candidate? -> fields
    for part, (start, stop) in zip(parts, bounds(parts, 0)):
        fields[part.side == "candidate"].extend(range(start, stop))
    at = {field: i for own in fields.values() for i, field in enumerate(own)}
    pairs = [divmod(flat, f) for flat in node["indices"]]
    pairs = [(j, i) if i in fields[False] and j in fields[True] else (i, j) for i, j in pairs]
    once = [n for n, (i, j) in enumerate(pairs) if i in fields[False]]
    if len(once) < LEAST_COLUMNS:
        return None
    rest = [n for n in range(len(pairs)) if n not in set(once)]
    request, candidate = (concat([p for p in parts if (p.side == "candidate") is own], 0) for own in (False, True))
    made = [_dots(request, request, [at[pairs[n][0]] * len(fields[False]) + at[pairs[n][1]] for n in once])]
    if rest:
        made.append(_dots(candidate, e, [at[pairs[n][0]] * f + pairs[n][1] for n in rest]))
    order = np.argsort([*once, *rest])
    return Node(Op.TAKE, (concat(made, 0),), axis=0, indices=order)


def _dots(a: Node, b: Node, flat: list[int]) -> Node:
    product = Node(Op.MATMUL, (a, Node(Op.TRANSPOSE, (b,), perm=(1, 0))))
    return Node(Op.TAKE, (Node(Op.RESHAPE, (product,), shape=(a.shape[0] * b.shape[0],)),), axis=0, indices=flat)


FACTOR = (split_linear, split_dots, split_quantized_linear, split_fields, split_reduction, lookup_of_mixed, bag_of_mixed)


def columns_of(w: Node, columns: list[int], name: str) -> Node:
    """A WEIGHT (N, K) with those of the K columns, in that order."""
    held = w["weight"]
    return weight(f"{held.name}.{name}", held.array[:, columns], held.dtype)


def _kinds_of_columns(x: Node) -> dict[str, tuple[Node, list[int]]]:
    """The parts of x (..., K) of each kind concatenated, with their columns of K; below a QUANTIZE, quantized whole."""
    axis = len(x.shape) - 1
    if x.op is Op.QUANTIZE:
        return {kind: _quantize(x, part, columns) for kind, (part, columns) in _kinds_of_columns(x.inputs[0]).items()}
    found: dict[str, tuple[list[Node], list[int]]] = {}
    parts = x.inputs if x.op is Op.CONCAT and x["axis"] == axis and x.side == "candidate" else (x,)
    parts = segments(x, axis) or parts
    for part, (start, _) in zip(parts, bounds(parts, axis)):
        for inner, (a, b) in zip(_parts(part, axis), bounds(_parts(part, axis), axis)):
            kind = _kind(inner)
            nodes, columns = found.setdefault(kind, ([], []))
            nodes.append(_once(inner) if kind == "repeated" else inner)
            columns.extend(range(start + a, start + b))
    return {kind: (concat(nodes, len(nodes[0].shape) - 1), columns) for kind, (nodes, columns) in found.items()}


def _parts(x: Node, axis: int) -> tuple[Node, ...]:
    return x.inputs if x.op is Op.CONCAT and x["axis"] == axis else (x,)


def _quantize(whole: Node, part: Node, columns: list[int]) -> tuple[Node, list[int]]:
    """`part`, which is those columns of what `whole` quantizes, quantized as there."""
    multiplier = whole.inputs[1]
    if multiplier.shape and multiplier.shape[-1] > 1:
        multiplier = Node(Op.TAKE, (multiplier,), axis=len(multiplier.shape) - 1, indices=columns)
    return whole.with_inputs((part, multiplier)), columns
