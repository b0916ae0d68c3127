"""A value as segments: what it is made of along one axis, seen through the ops that treat each segment by itself.

Tables of rankers are concatenations of unlike things: columns of the request and columns of the candidate, dense features and
embeddings. `segments` finds the parts below whatever was done to the whole, so that a pass can give each part its own side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from burnish.graph.node import Node
from burnish.graph.ops import BINARY, COMPARE, REDUCE, UNARY, Op

Segments = tuple[Node, ...]

MOST_SEEN = 200  # values looked through before giving up: bounds the recursion, and the cost in a deep graph

_ALONE = frozenset((*UNARY, Op.NOT, Op.ISNAN, Op.CAST))
_TOGETHER = frozenset((*BINARY, *COMPARE, Op.WHERE))


def segments(value: Node, axis: int) -> Segments | None:
    """Two or more nodes whose concatenation along `axis` is `value`, not all of one side; None when it has no such parts.

    Neighbours of one side are one segment. Constants count as request: they too are the same for all candidates. Only through work so
    light that doing it twice, should someone need the whole as well, costs nothing.
    """
    found = _segments(value, axis, {})
    return found if found is not None and mixed(found) else None


def mixed(parts: Sequence[Node]) -> bool:
    """Whether some of the parts, and not all, are the same for every candidate of a request."""
    return len({part.side == "candidate" for part in parts}) == 2


def runs(parts: Sequence[Node], axis: int) -> Segments:
    """The same value with neighbours of one side joined: sides alternate."""
    groups: list[list[Node]] = []
    for part in parts:
        if groups and (groups[-1][0].side == "candidate") == (part.side == "candidate"):
            groups[-1].append(part)
        else:
            groups.append([part])
    return tuple(concat(group, axis) for group in groups)


def by_side(parts: Sequence[Node], axis: int, make: Callable[[Node], Node]) -> Node:
    """CONCAT(make(p) for p in parts), with `make` called once for all parts of the request and once for all of the candidate.

    `make` keeps the length along `axis`, and treats what lies along it one by one.
    """
    where = dict(enumerate(bounds(parts, axis)))
    made: dict[bool, Node] = {}
    at: dict[int, int] = {}
    for of_candidate in (False, True):
        own = [i for i, part in enumerate(parts) if (part.side == "candidate") is of_candidate]
        made[of_candidate] = make(concat([parts[i] for i in own], axis))
        start = 0
        for i in own:
            at[i] = start
            start += where[i][1] - where[i][0]
    size = {i: stop - start for i, (start, stop) in where.items()}
    return concat([piece(made[part.side == "candidate"], axis, at[i], at[i] + size[i]) for i, part in enumerate(parts)], axis)


def concat(parts: Sequence[Node], axis: int) -> Node:
    """CONCAT of the parts; the part itself when it is the only one."""
    return parts[0] if len(parts) == 1 else Node(Op.CONCAT, parts, axis=axis)


def piece(value: Node, axis: int, start: int, stop: int) -> Node:
    """[start, stop) of `value` along `axis`; the value itself when that is all of it."""
    return value if (start, stop) == (0, value.shape[axis]) else Node(Op.SLICE, (value,), axis=axis, start=start, stop=stop)


def bounds(parts: Sequence[Node], axis: int) -> list[tuple[int, int]]:
    """[start, stop) of each part along `axis` of the whole."""
    found, at = [], 0
    for part in parts:
        found.append((at, at + part.shape[axis]))
        at = found[-1][1]
    return found


def reshaped_axis(value: Node, axis: int, parts: Sequence[Node], shape: tuple[int, ...]) -> tuple[int, list[tuple[int, ...]]] | None:
    """How a concatenation of `parts` along `axis` survives a RESHAPE of it to `shape`: the axis there, and each part's shape.

    None when a part would not be a block of whole entries along any axis of `shape`.
    """
    outer, entry = math.prod(value.shape[:axis]), math.prod(value.shape[axis + 1 :])
    for j, size in enumerate(shape):
        inner = math.prod(shape[j + 1 :])
        sizes = [part.shape[axis] * entry for part in parts]
        if math.prod(shape[:j]) == outer and size > 1 and all(n % inner == 0 for n in sizes):
            return j, [(*shape[:j], n // inner, *shape[j + 1 :]) for n in sizes]
    return None


def _segments(value: Node, axis: int, known: dict[tuple[Node, int], Segments | None]) -> Segments | None:
    key = (value, axis)
    if key not in known:
        if len(known) >= MOST_SEEN:
            return None
        known[key] = None  # counted before what lies below it, so that the depth is bounded
        known[key] = _find(value, axis, known)
    return known[key]


def _find(value: Node, axis: int, known: dict[tuple[Node, int], Segments | None]) -> Segments | None:
    if value.side != "candidate":
        return None
    op, inputs = value.op, value.inputs
    if op is Op.CONCAT:
        if value["axis"] != axis:
            return None
        flat = [inner for part in inputs for inner in (_segments(part, axis, known) or (part,))]
        if not mixed(flat):
            return None
        return runs([part if part.dtype == value.dtype else Node(Op.CAST, (part,), dtype=value.dtype) for part in flat], axis)
    if op in _ALONE:
        return _each(value, _segments(inputs[0], axis, known))
    if op in _TOGETHER:
        return _pointwise(value, axis, known)
    if op is Op.LOOKUP and axis < len(value.shape) - 1:
        parts = _segments(inputs[1], axis, known)
        return None if parts is None else tuple(value.with_inputs((inputs[0], part)) for part in parts)
    if op in REDUCE:
        return _reduced(value, axis, known)
    if op is Op.EXPAND:
        at = axis - len(value.shape) + len(inputs[0].shape)
        parts = _segments(inputs[0], at, known) if at >= 0 and inputs[0].shape[at] == value.shape[axis] else None
        shapes = [] if parts is None else [(*value.shape[:axis], part.shape[at], *value.shape[axis + 1 :]) for part in parts]
        return None if parts is None else tuple(Node(Op.EXPAND, (part,), shape=shape) for part, shape in zip(parts, shapes))
    if op is Op.TRANSPOSE:
        return _each(value, _segments(inputs[0], value["perm"][axis], known))
    if op is Op.RESHAPE:
        return _reshaped(value, axis, known)
    return None


def _each(value: Node, parts: Segments | None) -> Segments | None:
    return None if parts is None else tuple(value.with_inputs((part,)) for part in parts)


def _pointwise(value: Node, axis: int, known: dict[tuple[Node, int], Segments | None]) -> Segments | None:
    """A pointwise op of operands that are each mixed in the same places, the same along the axis, or not of the candidate."""
    from_end = len(value.shape) - axis  # operands align on the right
    places: list[tuple[int, int]] | None = None
    found: list[Segments | Node] = []
    for operand in value.inputs:
        at = len(operand.shape) - from_end
        whole = at < 0 or operand.shape[at] == 1
        if whole and operand.side == "candidate":
            return None
        if whole or operand.side != "candidate":
            found.append(operand)
            continue
        parts = _segments(operand, at, known)
        if parts is None or (places is not None and bounds(parts, at) != places):
            return None
        places = bounds(parts, at)
        found.append(parts)
    if places is None:
        return None
    out = []
    for i, (start, stop) in enumerate(places):
        operands = []
        for operand, whole_or_parts in zip(value.inputs, found):
            if isinstance(whole_or_parts, tuple):
                operands.append(whole_or_parts[i])
            else:
                at = len(operand.shape) - from_end
                operands.append(operand if at < 0 or operand.shape[at] == 1 else piece(operand, at, start, stop))
        out.append(value.with_inputs(operands))
    return tuple(out)


def _reduced(value: Node, axis: int, known: dict[tuple[Node, int], Segments | None]) -> Segments | None:
    """A reduction over other axes than the one the parts lie along."""
    axes = value["axes"]
    at = axis if value["keepdims"] else [i for i in range(len(value.inputs[0].shape)) if i not in axes][axis]
    return None if at in axes else _each(value, _segments(value.inputs[0], at, known))


def _reshaped(value: Node, axis: int, known: dict[tuple[Node, int], Segments | None]) -> Segments | None:
    (whole,) = value.inputs
    for at in range(len(whole.shape)):
        parts = _segments(whole, at, known)
        if parts is not None:
            how = reshaped_axis(whole, at, parts, value.shape)
            if how is not None and how[0] == axis:
                return tuple(Node(Op.RESHAPE, (part,), shape=shape) for part, shape in zip(parts, how[1]))
    return None
