"""What a captured model is but for its numbers, so that another can be told to be the same, or how it differs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from burnish.graph.node import Graph, Node
from burnish.graph.ops import Op

SHOWN = 3  # differences that are named


def architecture(graph: Graph) -> dict[str, Any]:
    """`weights`: name -> shape, of tables that are read by row the shape of a row; `wiring`: a hash of all else. Tables may grow."""
    users = graph.users()
    tables = {node for node in graph.order if node.op is Op.WEIGHT and users[node] and all(_reads_rows(user, node) for user in users[node])}
    weights = {n["weight"].name: list(n.shape[1:] if n in tables else n.shape) for n in graph.order if n.op is Op.WEIGHT}
    at = {node: i for i, node in enumerate(graph.order)}
    told = [
        f"{node.op.name} {node.side} {node.dtype} {'' if node in tables else node.shape} {[at[v] for v in node.inputs]} {_attributes(node)}"
        for node in graph.order
    ]
    told += [f"{name} {at[value]}" for name, value in graph.outputs]
    return {"weights": weights, "wiring": hashlib.sha256("\n".join(told).encode()).hexdigest()}


def difference(kept: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """How a model differs from the one that was kept; None where it is of the same architecture."""
    old, now = kept["weights"], new["weights"]
    lacks, extra = [name for name in old if name not in now], [name for name in now if name not in old]
    other = [f"{name} is {tuple(now[name])} and was {tuple(old[name])}" for name in old if name in now and now[name] != old[name]]
    told = [f"it lacks {_some(lacks)}"] * bool(lacks) + [f"{_some(extra)} is new"] * bool(extra) + [_some(other)] * bool(other)
    if told:
        return "; ".join(told)
    return None if kept["wiring"] == new["wiring"] else "its weights have the same shapes, and are used in another way"


def _reads_rows(user: Node, table: Node) -> bool:
    return user.op in (Op.LOOKUP, Op.BAG) and user.inputs[0] is table and table not in user.inputs[1:]


def _attributes(node: Node) -> str:
    return repr([(name, value) for name, value in node.attrs if name != "weight"])


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
