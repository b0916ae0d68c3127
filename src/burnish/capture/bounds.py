"""How large the ids of an input may be: walked back from the tables they index to the columns they came from."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from burnish.errors import CaptureError
from burnish.graph.interpret import constant
from burnish.graph.node import Graph, Node
from burnish.graph.ops import Op
from burnish.inputs import Input

NONE = np.iinfo(np.int64).max  # no bound


def bounded(graph: Graph) -> Graph:
    """The graph with a cardinality for every column of ids that indexes a table; CaptureError when a declared one is larger."""
    found = _column_bounds(graph)
    return Graph([_with_bounds(spec, *found[spec.name]) if spec.name in found else spec for spec in graph.inputs], dict(graph.outputs))


def _column_bounds(graph: Graph) -> dict[str, tuple[np.ndarray, list[str]]]:
    """For each input (bound of each column, name of the table that sets it)."""
    found: dict[str, tuple[np.ndarray, list[str]]] = {}
    columns = {spec.name: spec.columns for spec in graph.inputs}
    for node in graph.order:
        if node.op in (Op.LOOKUP, Op.BAG) and node.inputs[1].side != "constant":
            table, ids = node.inputs[:2]
            stack = [(ids, np.full(ids.shape, table.shape[0], np.int64))]
            while stack:
                value, limit = stack.pop()
                if value.op is Op.INPUT:
                    _record(found, value, limit, columns[value["half"].name], _name(table))
                else:
                    stack.extend((v, part) for v, part in _back(value, limit) if v.side != "constant" and (part != NONE).any())
    return found


def _name(table: Node) -> str:
    while table.op is not Op.WEIGHT and table.inputs:
        table = table.inputs[0]
    return table["weight"].name if table.op is Op.WEIGHT else "a table"


def _record(found: dict[str, tuple[np.ndarray, list[str]]], value: Node, limit: np.ndarray, columns: int, table: str) -> None:
    half = value["half"]
    if half.dtype == "bool":
        return
    best, names = found.setdefault(half.name, (np.full(columns, NONE, np.int64), [""] * columns))
    own = limit.reshape(limit.shape[0], -1).min(axis=1) if limit.ndim else limit.reshape(1)
    for column, bound in zip(half.columns or range(columns), own):
        if bound < best[column]:
            best[column], names[column] = bound, table


def _back(node: Node, limit: np.ndarray) -> Sequence[tuple[Node, np.ndarray]]:
    """The bounds of a node's entries as bounds of its operands' entries; nothing where a bound does not carry over."""
    x = node.inputs[0]
    match node.op:
        case Op.CAST | Op.FLOOR | Op.ROUND:
            return [(x, limit)]
        case Op.RESHAPE:
            return [(x, limit.reshape(x.shape))]
        case Op.TRANSPOSE:
            return [(x, limit.transpose(np.argsort(node["perm"])))]
        case Op.EXPAND:
            return [(x, _narrowed(limit, x.shape))]
        case Op.SLICE | Op.TAKE:
            out = np.full(x.shape, NONE, np.int64)
            indices = range(node["start"], node["stop"]) if node.op is Op.SLICE else node["indices"]
            np.minimum.at(np.moveaxis(out, node["axis"], 0), list(indices), np.moveaxis(limit, node["axis"], 0))
            return [(x, out)]
        case Op.CONCAT:
            ends = np.cumsum([v.shape[node["axis"]] for v in node.inputs])[:-1]
            return list(zip(node.inputs, np.split(limit, ends, axis=node["axis"])))
        case Op.ADD | Op.SUB | Op.MAXIMUM | Op.MUL:
            return _through_constant(node, limit)
    return []


def _through_constant(node: Node, limit: np.ndarray) -> Sequence[tuple[Node, np.ndarray]]:
    a, b = node.inputs
    if a.side == "constant" and node.op is not Op.SUB:
        a, b = b, a
    if b.side != "constant":
        return []
    by = constant(b)
    if node.op is not Op.MAXIMUM and not np.all(by == np.floor(by)):
        return []
    by = np.broadcast_to(by.astype(np.int64), limit.shape)
    if node.op is Op.MUL and np.any(by < 1):
        return []
    moved = {Op.ADD: lambda: limit - by, Op.SUB: lambda: limit + by, Op.MUL: lambda: -(-limit // by), Op.MAXIMUM: lambda: limit}[node.op]()
    limit = np.where(limit == NONE, NONE, moved)
    return [(a, _narrowed(limit, a.shape))]


def _narrowed(limit: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The tightest bound over what was broadcast."""
    lead = limit.ndim - len(shape)
    axes = (*range(lead), *(lead + i for i, n in enumerate(shape) if n == 1 and limit.shape[lead + i] != 1))
    return limit.min(axis=axes).reshape(shape) if axes else limit


def _with_bounds(spec: Input, bounds: np.ndarray, tables: list[str]) -> Input:
    whole: list[int | None] = []
    for column, bound in enumerate(bounds.tolist()):
        declared = spec.cardinality_of(column)
        if declared is not None and declared > bound:
            where = f"column {column} of input {spec.name!r}" if spec.shape else f"input {spec.name!r}"
            raise CaptureError(
                f"{where} declares cardinality {declared}, and indexes {tables[column]!r}, which has room for {bound}. "
                "Lower the cardinality, or make the table larger"
            )
        whole.append(declared if declared is not None else bound if bound != NONE else None)
    if all(c is None for c in whole):
        return spec
    same = len(set(whole)) == 1
    return msgspec.structs.replace(spec, cardinality=whole[0] if same or not spec.shape else tuple(whole))
