"""rows: rows of tables that no id reaches, and rows that are the same, are kept once. Exact: every id still finds the row it found.

What training never touched is the same only where it began the same (zeros, a shared start). A row of its own that calibration rows never
read is kept: another day's id may read it, and no rule of ours may answer in its place.
"""

from __future__ import annotations

import math

import numpy as np

from burnish.graph.node import Graph, Node, scalar, weight
from burnish.graph.ops import Op

LEAST_BYTES = 1 << 16  # of a table worth looking at
CHUNK_BYTES = 64 << 20  # of rows hashed at a time
MAP_BYTES = 4  # of one id's place in the map from ids to rows
MOST_ROWS = 50_000_000  # in which rows that are the same are looked for
GAINS = 2  # the rows that go must be so many times the map's bytes, by int8 rows: every id is then read through the map first


def kept_rows(graph: Graph) -> Graph:
    """1. lookup(t, ids below n)  ->  lookup(t[:n], ids), where the cardinality n of every column that reads t is declared.
    2. lookup(t, ids)  ->  lookup(t[:u], min(ids, u - 1)), where all rows of t from u - 1 on are the same.
    3. lookup(t, ids)  ->  lookup(rows that differ, map[ids]), where that saves GAINS times what the map takes.

    The same for bag. Leaves tables of less than LEAST_BYTES, those that are read otherwise, or by a bag that ignores an id.
    """
    users, outputs = graph.users(), {value for _, value in graph.outputs}
    new: dict[Node, tuple[Node, Node | None]] = {}  # table -> its rows, and what becomes of ids: the last row, or the map
    for table in graph.order:
        if table.op is not Op.WEIGHT or table.dtype != "float32" or len(table.shape) != 2 or table["weight"].nbytes < LEAST_BYTES:
            continue
        readers = users[table]
        by_row = all(
            user.op in (Op.LOOKUP, Op.BAG) and user.inputs[0] is table and (user.op is Op.LOOKUP or user["ignore"] is None)
            for user in readers
        )
        if not by_row or table in outputs:
            continue
        bounds = [cardinalities(graph, user.inputs[1]) for user in readers]
        most = max((n or table.shape[0] for found in bounds for n in found or (None,)), default=table.shape[0])
        found = _kept(table, min(most, table.shape[0]))
        if found is not None:
            new[table] = found
    if not new:
        return graph

    def change(node: Node, operands: tuple[Node, ...]) -> Node:
        if node.op in (Op.LOOKUP, Op.BAG) and node.inputs[0] in new:
            rows, where = new[node.inputs[0]]
            ids = operands[1]
            if where is not None and where.shape:
                ids = Node(Op.RESHAPE, (Node(Op.LOOKUP, (where, ids)),), shape=ids.shape)
            elif where is not None:
                ids = Node(Op.MINIMUM, (ids, where if where.dtype == ids.dtype else scalar(where["weight"].array.item(), ids.dtype)))
            return node.with_inputs((rows, ids, *operands[2:]))
        return node if operands == node.inputs else node.with_inputs(operands)

    return graph.map(change)


def _kept(table: Node, most: int) -> tuple[Node, Node | None] | None:
    """The rows to keep of the first `most`, and what leads ids to them; None where all are kept."""
    held, width = table["weight"], table.shape[1]
    rows = held.array[:most]
    hashes = _hashes(rows)
    unlike = np.flatnonzero(hashes != hashes[-1])
    end = int(unlike[-1]) + 2 if len(unlike) else 1  # rows up to the first of those that are the same at the end
    _, first, where = np.unique(hashes, return_index=True, return_inverse=True) if most <= MOST_ROWS else (None, hashes, hashes)
    gone = most - len(first)
    if gone * (width + 4) > GAINS * MAP_BYTES * most and gone > 2 * (most - end):
        kept = np.sort(first)
        place = np.searchsorted(kept, first)[where]
        if all((rows[at : at + 4096] == rows[kept[place[at : at + 4096]]]).all() for at in range(0, most, 4096)):
            return weight(held.name, np.ascontiguousarray(rows[kept])), weight(f"{held.name}.map", place.astype(np.int32)[:, None])
    if end < most and all((rows[at : at + 4096] == rows[-1]).all() for at in range(end - 1, most, 4096)):
        return weight(held.name, rows[:end]), scalar(end - 1, "int64")
    return (weight(held.name, rows), None) if most < table.shape[0] else None


def _hashes(rows: np.ndarray) -> np.ndarray:
    """(V,) uint64 of the rows (V, W) float32: equal rows have equal ones, and others hardly ever."""
    mix = np.random.default_rng(0).integers(0, 2**63, rows.shape[1], np.uint64) * np.uint64(2) + np.uint64(1)
    step = max(1, CHUNK_BYTES // (8 * rows.shape[1]))
    found = np.empty(len(rows), np.uint64)
    for at in range(0, len(rows), step):
        bits = np.ascontiguousarray(rows[at : at + step]).view(np.uint32).astype(np.uint64)
        bits ^= bits >> np.uint64(15)
        found[at : at + step] = (bits * mix).sum(axis=1, dtype=np.uint64)
    return found


def cardinalities(graph: Graph, ids: Node) -> list[int | None] | None:
    """The declared cardinality of each of `ids` () or (n,), or None where none is declared; None when they are no columns of inputs."""
    match ids:
        case Node(Op.CAST, (x,)):
            return cardinalities(graph, x)
        case Node(Op.RESHAPE, (x,)) if math.prod(x.shape) == 1:
            return cardinalities(graph, x)
        case Node(Op.CONCAT, parts) if len(ids.shape) == 1:
            found = [cardinalities(graph, part) for part in parts]
            return None if any(f is None for f in found) else [n for f in found for n in f or ()]
        case Node(Op.SLICE, (x,)) if len(x.shape) == 1:
            inner = cardinalities(graph, x)
            return inner and inner[ids["start"] : ids["stop"]]
        case Node(Op.TAKE, (x,)) if len(x.shape) == 1:
            inner = cardinalities(graph, x)
            return inner and [inner[i] for i in ids["indices"]]
        case Node(Op.INPUT) if len(ids.shape) <= 1:
            half = ids["half"]
            spec = next(spec for spec in graph.inputs if spec.name == half.name)
            return [spec.cardinality_of(c) for c in (half.columns if half.columns is not None else range(spec.columns))]
    return None
