"""Embedding tables in fewer bits. A row of a table gets a scale of its own, so rows of rare and of popular ids do not share a range."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from burnish.errors import RecipeError
from burnish.graph.node import Graph, Node, weight
from burnish.graph.ops import Op
from burnish.graph.weights import pack_int4, to_bfloat16
from burnish.passes.budget import Level, Sizes, spend
from burnish.passes.evidence import Judge, Rows, split
from burnish.quantize import affine
from burnish.quantize.half import fits_half

CHUNK_BYTES = 64 << 20  # of float32 rows widened at a time, so that a mapped table of any size takes this much memory and its result
INT4_MIN, INT4_MAX = -8, 7
SHRINK = np.linspace(1.0, 0.52, 13, dtype=np.float32)  # parts of a row's largest magnitude that its int4 range may cover


def int8_tables(graph: Graph) -> Graph:
    """lookup(table, ids)  ->  lookup(dequantize(int8 table, scale (V, 1)), ids), and the same for bag.

    Leaves tables that are not float32 WEIGHTs, those that something reads in another way than by row, and those one value wide, where the
    scale would cost what the value saves.
    """
    return _narrow(graph, _has_scale, _int8)


def int4_tables(graph: Graph) -> Graph:
    """Like int8_tables, with two columns a byte and each row's range searched for the least squared error.

    Leaves also tables of odd width: a row must end with its byte.
    """
    return _narrow(graph, lambda node: node.shape[1] % 2 == 0, _int4)


def mixed_tables(graph: Graph, calibration: Rows, loss: float = 0.00003, int4: Sequence[str] | str = "auto") -> Graph:
    """Like int8_tables, with int4 rows in those tables that save most bytes for what they lose, or in those that `int4` names.

    The loss of a table is the expected relative loss of AUC (evidence.Judge) when it alone is int4; together they may lose `loss`, and
    what was chosen is measured as a whole. RecipeError for fewer than 64 calibration rows, and for a name that no such table has.
    """
    if not isinstance(int4, str):
        return _as_named(graph, int4)
    _, judging = split(graph, calibration)
    judge = Judge(graph, judging)
    int8 = {node: _int8(node) for node in _tables(graph, _has_scale)}
    narrower = {node: _int4(node) for node in int8 if node.shape[1] % 2 == 0}
    whole = _bytes(int8.values())

    def alone(node: Node) -> Level:
        return Level(4, whole - _bytes([int8[node]]) + _bytes([narrower[node]]), judge.loss(_replaced(graph, {node: narrower[node]})))

    def together(sizes: Sizes) -> Graph:
        return _replaced(graph, int8 | {node: narrow for i, (node, narrow) in enumerate(narrower.items()) if i in sizes})

    levels = {i: [alone(node)] for i, node in enumerate(narrower)}
    return together(spend(loss, whole, levels, lambda sizes: judge.loss(together(sizes))))


def _as_named(graph: Graph, int4: Sequence[str]) -> Graph:
    """int8 rows in each table but those named, which take int4 rows."""
    tables = {node["weight"].name: node for node in _tables(graph, _has_scale)}
    for name in int4:
        if name not in tables or tables[name].shape[1] % 2:
            even = ", ".join(name for name, node in tables.items() if node.shape[1] % 2 == 0)
            raise RecipeError(
                f"MixedTables is to give {name!r} int4 rows, and no table of even width has that name; there are {even or 'none'}"
            )
    return _replaced(graph, {node: _int4(node) if name in int4 else _int8(node) for name, node in tables.items()})


def half_tables(graph: Graph, dtype: str = "bfloat16") -> Graph:
    """lookup(table, ids)  ->  lookup(cast(bfloat16 or float16 table), ids), and the same for bag.

    Leaves what int8_tables leaves but narrow ones, and for float16 tables with a value that would become infinite.
    """
    return _narrow(graph, lambda node: fits_half(node["weight"].array, dtype), lambda node: _half(node, dtype))


def _has_scale(table: Node) -> bool:
    """Whether a scale a row costs less than it saves."""
    return table.shape[1] > 1


def _tables(graph: Graph, fits: Callable[[Node], bool]) -> list[Node]:
    """The float32 WEIGHTs that are read by row only, and that fit."""
    users = graph.users()
    outputs = {node for _, node in graph.outputs}

    def is_table(node: Node) -> bool:
        by_row = all(user.op in (Op.LOOKUP, Op.BAG) and user.inputs[0] is node and node not in user.inputs[1:] for user in users[node])
        return node.op is Op.WEIGHT and node.dtype == "float32" and len(node.shape) == 2 and by_row and node not in outputs

    return [node for node in graph.order if is_table(node) and fits(node)]


def _replaced(graph: Graph, new: Mapping[Node, Node]) -> Graph:
    """The graph with other nodes in the places of some WEIGHTs."""
    return graph.map(lambda node, operands: node.with_inputs(operands) if operands else new.get(node, node))


def _narrow(graph: Graph, fits: Callable[[Node], bool], make: Callable[[Node], Node]) -> Graph:
    return _replaced(graph, {node: make(node) for node in _tables(graph, fits)})


def _bytes(narrow: Iterable[Node]) -> float:
    """Of tables under a DEQUANTIZE."""
    return float(sum(operand["weight"].nbytes for node in narrow for operand in node.inputs))


def _int8(table: Node) -> Node:
    held = table["weight"]
    q = np.empty(held.shape, np.int8)
    scale = np.empty((held.shape[0], 1), np.float32)
    for rows in _chunks(held.shape):
        q[rows], scale[rows, 0] = affine.quantize_rows(np.asarray(held.array[rows]))
    return Node(Op.DEQUANTIZE, (weight(f"{held.name}.int8", q), weight(f"{held.name}.scale", scale)))


def _int4(table: Node) -> Node:
    held = table["weight"]
    packed = np.empty((held.shape[0], held.shape[1] // 2), np.uint8)
    scale = np.empty((held.shape[0], 1), np.float32)
    for rows in _chunks(held.shape):
        q, scale[rows, 0] = int4_rows(np.asarray(held.array[rows]))
        packed[rows] = pack_int4(q)
    return Node(Op.DEQUANTIZE, (weight(f"{held.name}.int4", packed, "int4"), weight(f"{held.name}.scale", scale)))


def _half(table: Node, dtype: str) -> Node:
    held = table["weight"]
    narrow = np.empty(held.shape, np.uint16 if dtype == "bfloat16" else np.float16)
    for rows in _chunks(held.shape):
        values = np.asarray(held.array[rows])
        narrow[rows] = to_bfloat16(values) if dtype == "bfloat16" else values
    return Node(Op.CAST, (weight(f"{held.name}.{dtype}", narrow, dtype),), dtype="float32")


def int4_rows(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 (V, W) -> int8 (V, W) in [-8, 7], float32 scale (V,) of either sign: for each row those of the least squared error.

    The search over SHRINK is that of Guan et al. 2019 (arXiv:1911.02079). A row's largest magnitude becomes -8 or 7, whichever is better: a
    negative scale lets the longer side of a lopsided row use the extra level.
    """
    top = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)  # (V, 1), with its sign
    best_q, best_scale = np.zeros(values.shape, np.int8), np.ones((len(values), 1), np.float32)
    least = np.full((len(values), 1), np.inf, np.float32)
    for level in (INT4_MIN, INT4_MAX):
        for part in SHRINK:
            scale = top * part / np.float32(level)
            scale = np.where(np.abs(scale) < np.finfo(np.float32).tiny, np.float32(1), scale)
            q = np.clip(np.rint(values / scale), INT4_MIN, INT4_MAX)
            error = ((q * scale - values) ** 2).sum(axis=1, keepdims=True)
            better = error < least
            best_q, best_scale, least = (
                np.where(better, q, best_q).astype(np.int8),
                np.where(better, scale, best_scale),
                np.minimum(error, least),
            )
    return best_q, best_scale[:, 0]


def _chunks(shape: tuple[int, ...]) -> list[slice]:
    step = max(1, CHUNK_BYTES // (4 * shape[1]))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
