"""embedding: ids of the request and ids of the candidate are looked up each on its own side, and each column in its own table."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from burnish.graph.node import Graph, Node, weight
from burnish.graph.ops import Op
from burnish.passes.rows import cardinalities, kept_rows
from burnish.passes.segments import bounds, by_side, concat, mixed, piece, segments
from burnish.passes.tidy import tidy


def embedding(graph: Graph) -> Graph:
    """Lookups in canonical form; the arithmetic that is left is the same, so scores are too, to the bit.

    One LOOKUP of a column of several same-width tables stays one LOOKUP a table: backends read one row after another either way. Rows that
    nothing reaches, and rows that are the same, are kept once (passes/rows.py).
    """
    return kept_rows(own_tables(tidy(graph, lookup_of_mixed, bag_of_mixed, bag_of_one, join_offsets)))


def lookup_of_mixed(node: Node) -> Node | None:
    """LOOKUP(t, CONCAT(r, c))  ->  CONCAT(LOOKUP(t, r), LOOKUP(t, c)), seen through casts and offsets of the ids."""
    match node:
        case Node(Op.LOOKUP, (table, ids)):
            for axis in range(len(ids.shape)):
                parts = segments(ids, axis)
                if parts is not None:
                    return by_side(parts, axis, lambda part: Node(Op.LOOKUP, (table, part)))
    return None


def bag_of_mixed(node: Node) -> Node | None:
    """BAG(t, CONCAT(r, c))  ->  CONCAT(BAG(t, r), BAG(t, c)), along an axis that is not the bag's own."""
    match node:
        case Node(Op.BAG, (table, ids, *weights)):
            for axis in range(len(ids.shape) - 1):
                parts = segments(ids, axis)
                if parts is not None:
                    of = [[piece(w, axis, *where) for w in weights] for where in bounds(parts, axis)]
                    return concat([node.with_inputs((table, part, *w)) for part, w in zip(parts, of)], axis)
    return None


def bag_of_one(node: Node) -> Node | None:
    """BAG(t, ids of length 1)  ->  LOOKUP(t, id), when no id is ignored; times the weight, if there is one."""
    match node:
        case Node(Op.BAG, (table, ids, *weights)) if ids.shape[-1] == 1 and node["ignore"] is None:
            row = Node(Op.LOOKUP, (table, Node(Op.RESHAPE, (ids,), shape=ids.shape[:-1])))
            return Node(Op.MUL, (row, weights[0])) if weights else row
    return None


def join_offsets(node: Node) -> Node | None:
    """CONCAT(a + o, b, c + p)  ->  CONCAT(a, b, c) + (o, 0, p), of ids (n,) of one side: one addition, and columns side by side again."""
    if node.op is not Op.CONCAT or node.dtype not in ("int32", "int64") or len(node.shape) != 1 or mixed(node.inputs):
        return None
    ids, offsets = [], []
    for part in node.inputs:
        match part:
            case Node(Op.ADD, (x, o)) if o.op is Op.WEIGHT and x.shape == part.shape and x.dtype == o.dtype == node.dtype:
                ids.append(x)
                offsets.append(np.broadcast_to(o["weight"].array, part.shape))
            case _:
                ids.append(part)
                offsets.append(np.zeros(part.shape, node.dtype))
    if tuple(ids) == node.inputs:
        return None
    return Node(Op.ADD, (concat(ids, 0), weight("offsets", np.concatenate(offsets))))


def own_tables(graph: Graph) -> Graph:
    """LOOKUP(t, ids + offsets)  ->  CONCAT(LOOKUP(t[o_0 : o_0 + n_0], id_0), LOOKUP(t[o_1 : o_1 + n_1], id_1), ...).

    Where one table holds the rows of several columns and their cardinalities n are declared. The slices are views: nothing is copied.
    Left alone: a table that is read in any other way, or whose slices overlap, for then its rows would be kept twice.
    """
    uses: dict[Node, list[Node]] = {}
    for node in graph.order:
        for operand in node.inputs:
            if operand.op is Op.WEIGHT and len(operand.shape) == 2:
                uses.setdefault(operand, []).append(node)
    plan: dict[Node, tuple[Node, list[tuple[int, int]]]] = {}
    for table, users in uses.items():
        reads = {user: _reads(graph, user, table) for user in users}
        apart = sorted({span for read in reads.values() if read for span in read[1]})
        if all(reads.values()) and len(apart) > 1 and all(a[1] <= b[0] for a, b in pairwise(apart)):
            plan |= {user: read for user, read in reads.items() if read}
    if not plan or any(node in uses for _, node in graph.outputs):
        return graph

    def change(node: Node, operands: tuple[Node, ...]) -> Node:
        if node not in plan:
            return node.with_inputs(operands)
        held, (ids, spans) = node.inputs[0]["weight"], plan[node]  # ids are columns of inputs, which no table is part of
        tables = [weight(f"{held.name}[{start}:{stop}]", held.array[start:stop], held.dtype) for start, stop in spans]
        if not ids.shape:
            return Node(Op.LOOKUP, (tables[0], ids))
        return concat([Node(Op.LOOKUP, (own, piece(ids, 0, i, i + 1))) for i, own in enumerate(tables)], 0)

    return tidy(graph.map(change))


def _reads(graph: Graph, user: Node, table: Node) -> tuple[Node, list[tuple[int, int]]] | None:
    """Of a LOOKUP(table, ids () or (n,) [+ offsets]) the ids, and the rows [start, stop) that each may read; None of another use."""
    match user:
        case Node(Op.LOOKUP, (t, Node(Op.ADD, (ids, offsets)))) if t is table and offsets.op is Op.WEIGHT:
            starts = np.asarray(offsets["weight"].array)
        case Node(Op.LOOKUP, (t, ids)) if t is table:
            starts = np.zeros((), np.int64)
        case _:
            return None
    most = cardinalities(graph, ids)
    if most is None or len(ids.shape) > 1 or ids.shape != user.shape[:-1]:
        return None
    spans = [(int(a), int(a) + n) for a, n in zip(np.broadcast_to(starts, ids.shape).reshape(-1), most) if n is not None]
    return (ids, spans) if len(spans) == len(most) and all(a >= 0 and b <= table.shape[0] for a, b in spans) else None
