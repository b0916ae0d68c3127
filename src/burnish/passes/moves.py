"""Rules on ops that only move values: they meet, cancel, and give way to the parts they were made of. All exact to the bit."""

from __future__ import annotations

import math
from collections.abc import Container
from itertools import pairwise

from burnish.graph.node import Node
from burnish.graph.ops import POINTWISE, REDUCE, Op, broadcast
from burnish.passes.segments import bounds, concat, piece, reshaped_axis, segments

MOST_RUNS = 64  # a TAKE in more pieces than this stays one gather


def drop_move_that_changes_nothing(node: Node) -> Node | None:
    """Of an op that gives its operand back, the operand.

    1. RESHAPE, EXPAND to the same shape    2. TRANSPOSE by 0, 1, 2 ...    3. SLICE of all    4. TAKE of 0, 1, 2 ...
    5. CONCAT of one                        6. SUM, MEAN, MAX, MIN, PROD over no axes
    """
    match node:
        case Node(Op.RESHAPE | Op.EXPAND | Op.SLICE, (x,)) if x.shape == node.shape:
            return x
        case Node(Op.TRANSPOSE, (x,)) if node["perm"] == tuple(range(len(x.shape))):
            return x
        case Node(Op.TAKE, (x,)) if node["indices"] == tuple(range(x.shape[node["axis"]])):
            return x
        case Node(Op.CONCAT, (x,)):
            return x
        case Node(op, (x,)) if op in REDUCE and not node["axes"]:
            return x
    return None


def join_moves(node: Node) -> Node | None:
    """f(f(x))  ->  f(x), of moves of one kind.

    1. RESHAPE(RESHAPE(x))  ->  RESHAPE(x)                     2. TRANSPOSE(TRANSPOSE(x))  ->  TRANSPOSE(x)
    3. EXPAND(EXPAND(x))  ->  EXPAND(x)                        4. SLICE or TAKE of SLICE or TAKE along the same axis  ->  one of them
    5. TRANSPOSE that only moves axes of size 1  ->  RESHAPE   6. reduction over axes of size 1  ->  RESHAPE
    """
    match node:
        case Node(Op.RESHAPE, (Node(Op.RESHAPE, (x,)),)):
            return Node(Op.RESHAPE, (x,), shape=node["shape"])
        case Node(Op.EXPAND, (Node(Op.EXPAND, (x,)),)):
            return Node(Op.EXPAND, (x,), shape=node["shape"])
        case Node(Op.TRANSPOSE, (Node(Op.TRANSPOSE, (x,)) as inner,)):
            return Node(Op.TRANSPOSE, (x,), perm=tuple(inner["perm"][i] for i in node["perm"]))
        case Node(Op.TRANSPOSE, (x,)):
            moved = [i for i in node["perm"] if x.shape[i] > 1]
            return Node(Op.RESHAPE, (x,), shape=node.shape) if moved == sorted(moved) else None
        case Node(op, (x,)) if op in REDUCE and all(x.shape[a] == 1 for a in node["axes"]):
            return Node(Op.RESHAPE, (x,), shape=node.shape)
        case Node(Op.SLICE | Op.TAKE, (Node(Op.SLICE | Op.TAKE, (x,)) as inner,)) if node["axis"] == inner["axis"]:
            axis = node["axis"]
            if node.op is Op.SLICE and inner.op is Op.SLICE:
                return piece(x, axis, inner["start"] + node["start"], inner["start"] + node["stop"])
            return Node(Op.TAKE, (x,), axis=axis, indices=tuple(_indices(inner)[i] for i in _indices(node)))
    return None


def slice_of_neighbours(node: Node) -> Node | None:
    """TAKE of i, i + 1, i + 2 ...  ->  SLICE."""
    match node:
        case Node(Op.TAKE, (x,)):
            first, n = node["indices"][0], len(node["indices"])
            if node["indices"] == tuple(range(first, first + n)):
                return piece(x, node["axis"], first, first + n)
    return None


def part_of_concat(node: Node) -> Node | None:
    """Entries of a CONCAT along its axis  ->  entries of its parts.

    1. SLICE(CONCAT(a, b, c))  ->  CONCAT(SLICE(a), b)
    2. TAKE(CONCAT(a, b))  ->  CONCAT of slices of a and b, when that is no longer than the whole and at most 64 pieces
    """
    match node:
        case Node(Op.SLICE, (Node(Op.CONCAT, parts) as whole,)) if node["axis"] == whole["axis"]:
            return _same_dtype(node, _pieces(parts, node["axis"], [(node["start"], node["stop"])]))
        case Node(Op.TAKE, (Node(Op.CONCAT, parts) as whole,)) if node["axis"] == whole["axis"]:
            spans = _spans(node["indices"])
            if len(spans) > MOST_RUNS or len(set(node["indices"])) < len(node["indices"]):
                inside = [p for p, (a, b) in enumerate(bounds(parts, node["axis"])) if all(a <= i < b for i in node["indices"])]
                if not inside:
                    return None
                start, _ = bounds(parts, node["axis"])[inside[0]]
                part = Node(Op.TAKE, (parts[inside[0]],), axis=node["axis"], indices=tuple(i - start for i in node["indices"]))
                return _same_dtype(node, [part])
            return _same_dtype(node, _pieces(parts, node["axis"], spans))
    return None


def part_of_mixed(node: Node) -> Node | None:
    """SLICE(f(CONCAT(r, c)))  ->  f(SLICE(r)): columns of the request end on the request's side, whatever was done to the whole.

    TAKE likewise, when that is no longer than the whole and at most 64 pieces.
    """
    match node:
        case Node(Op.SLICE | Op.TAKE, (x,)) if x.side == "candidate" and x.op is not Op.CONCAT:
            spans = _spans(_indices(node))
            few = node.op is Op.SLICE or (len(spans) <= MOST_RUNS and len(set(node["indices"])) == len(node["indices"]))
            parts = segments(x, node["axis"]) if few else None
            if parts is not None:
                return _same_dtype(node, _pieces(parts, node["axis"], spans))
    return None


def flatten_concat(node: Node) -> Node | None:
    """CONCAT(a, CONCAT(b, c))  ->  CONCAT(a, b, c), along one axis and of one dtype."""
    if node.op is not Op.CONCAT:
        return None
    flat: list[Node] = []
    for part in node.inputs:
        same = part.op is Op.CONCAT and part["axis"] == node["axis"] and part.dtype == node.dtype
        flat.extend(part.inputs if same else (part,))
    return Node(Op.CONCAT, flat, axis=node["axis"]) if len(flat) > len(node.inputs) else None


def join_entries(node: Node) -> Node | None:
    """Neighbours in a CONCAT that are entries of one value, along its axis  ->  those entries at once.

    1. CONCAT(x[0:2], x[2:5], y)  ->  CONCAT(x[0:5], y)    2. CONCAT(TAKE(x, I), TAKE(x, J))  ->  TAKE(x, I + J), a SLICE being a TAKE
    Left alone: slices of one value that are not adjacent; two copies are cheaper than a gather.
    """
    if node.op is not Op.CONCAT:
        return None
    axis = node["axis"]
    joined: list[Node] = []
    for part in node.inputs:
        if joined and _entries(joined[-1], axis) and _entries(part, axis) and joined[-1].inputs == part.inputs:
            last = joined[-1]
            if last.op is part.op is Op.SLICE:
                if last["stop"] != part["start"]:
                    joined.append(part)
                else:
                    joined[-1] = piece(part.inputs[0], axis, last["start"], part["stop"])
            else:
                joined[-1] = Node(Op.TAKE, part.inputs, axis=axis, indices=_indices(last) + _indices(part))
        else:
            joined.append(part)
    return concat(joined, axis) if len(joined) < len(node.inputs) else None


def reshape_of_concat(node: Node, shared: Container[Node]) -> Node | None:
    """RESHAPE(CONCAT(a, b))  ->  CONCAT(RESHAPE(a), RESHAPE(b)), where each part stays one block.

    Left alone: a CONCAT that is read in its own shape too; it would be written twice.
    """
    match node:
        case Node(Op.RESHAPE, (Node(Op.CONCAT, parts) as whole,)) if whole not in shared:
            how = reshaped_axis(whole, whole["axis"], parts, node["shape"])
            if how is not None:
                axis, shapes = how
                return Node(Op.CONCAT, [Node(Op.RESHAPE, (part,), shape=shape) for part, shape in zip(parts, shapes)], axis=axis)
    return None


def reshape_of_lookup(node: Node, shared: Container[Node]) -> Node | None:
    """RESHAPE(LOOKUP(t, ids))  ->  LOOKUP(t, RESHAPE(ids)), where rows of the table stay whole. BAG likewise.

    Left alone: a LOOKUP that is read in its own shape too; its rows would be read twice.
    """
    match node:
        case Node(Op.RESHAPE, (Node(Op.LOOKUP | Op.BAG) as lookup,)) if lookup in shared:
            return None
        case Node(Op.RESHAPE, (Node(Op.LOOKUP, (table, ids)) as lookup,)) if node["shape"][-1:] == lookup.shape[-1:]:
            return Node(Op.LOOKUP, (table, Node(Op.RESHAPE, (ids,), shape=node["shape"][:-1])))
        case Node(Op.RESHAPE, (Node(Op.BAG, (table, *of)) as bag,)) if node["shape"][-1:] == bag.shape[-1:]:
            length = of[0].shape[-1]
            return bag.with_inputs((table, *(Node(Op.RESHAPE, (v,), shape=(*node["shape"][:-1], length)) for v in of)))
    return None


def flat_slice(node: Node) -> Node | None:
    """RESHAPE(SLICE(x (A, B), axis=0)) flat  ->  SLICE(RESHAPE(x) flat): slices that lay side by side do so again."""
    match node:
        case Node(Op.RESHAPE, (Node(Op.SLICE, (x,)) as rows,)) if rows["axis"] == 0 and len(x.shape) > 1 and len(node.shape) == 1:
            width = math.prod(x.shape[1:])
            flat = Node(Op.RESHAPE, (x,), shape=(math.prod(x.shape),))
            return piece(flat, 0, rows["start"] * width, rows["stop"] * width)
    return None


def drop_expand(node: Node) -> Node | None:
    """f(EXPAND(x), y)  ->  f(x, y), where f broadcasts to the same shape by itself."""
    if node.op not in POINTWISE or len(node.inputs) < 2:
        return None
    operands = list(node.inputs)
    for i, operand in enumerate(operands):
        if operand.op is Op.EXPAND:
            without = [*operands[:i], operand.inputs[0], *operands[i + 1 :]]
            if broadcast(*(v.shape for v in without)) == node.shape:
                operands = without
    return node.with_inputs(operands) if tuple(operands) != node.inputs else None


def pointwise_of_slices(node: Node, shared: Container[Node]) -> Node | None:
    """CONCAT(f(x[0:2], k), f(x[2:5], k))  ->  f(x[0:5], k): what passes took apart, and nobody needs apart, is one loop again.

    Of slices that lie side by side, and of one constant of shape (). Left alone: parts that are read elsewhere too.
    """
    if node.op is not Op.CONCAT or len(node.inputs) < 2 or node.inputs[0].op not in POINTWISE:
        return None
    first, axis = node.inputs[0], node["axis"]
    if any(part.op is not first.op or part.attrs != first.attrs or part.dtype != node.dtype or part in shared for part in node.inputs):
        return None
    operands = []
    for column in zip(*(part.inputs for part in node.inputs)):
        if column[0].shape == () and all(v is column[0] for v in column):
            operands.append(column[0])
            continue
        if any(v.op is not Op.SLICE or v["axis"] != axis or v.shape != part.shape for v, part in zip(column, node.inputs)):
            return None
        if any(a.inputs != b.inputs or a["stop"] != b["start"] for a, b in pairwise(column)):
            return None
        operands.append(piece(column[0].inputs[0], axis, column[0]["start"], column[-1]["stop"]))
    return first.with_inputs(operands)


def _indices(node: Node) -> tuple[int, ...]:
    return tuple(range(node["start"], node["stop"])) if node.op is Op.SLICE else node["indices"]


def _spans(indices: tuple[int, ...]) -> list[tuple[int, int]]:
    """[start, stop) of each run of neighbours: (4, 5, 1) -> [(4, 6), (1, 2)]."""
    spans: list[tuple[int, int]] = []
    for i in indices:
        if spans and spans[-1][1] == i:
            spans[-1] = (spans[-1][0], i + 1)
        else:
            spans.append((i, i + 1))
    return spans


def _pieces(parts: tuple[Node, ...], axis: int, spans: list[tuple[int, int]]) -> list[Node]:
    """What lies in `spans` of the whole, part by part."""
    found = []
    where = bounds(parts, axis)
    for start, stop in spans:
        for part, (a, b) in zip(parts, where):
            if max(start, a) < min(stop, b):
                found.append(piece(part, axis, max(start, a) - a, min(stop, b) - a))
    return found


def _same_dtype(node: Node, parts: list[Node]) -> Node:
    """CONCAT of the parts in the dtype of `node`: a CONCAT of unlike parts had promoted them."""
    axis = node["axis"]
    whole = concat(parts, axis)
    return whole if whole.dtype == node.dtype else Node(Op.CAST, (whole,), dtype=node.dtype)


def _entries(node: Node, axis: int) -> bool:
    return node.op in (Op.SLICE, Op.TAKE) and node["axis"] == axis


MOVES = (
    drop_move_that_changes_nothing,
    join_moves,
    slice_of_neighbours,
    part_of_concat,
    part_of_mixed,
    flatten_concat,
    join_entries,
    flat_slice,
    drop_expand,
)
