"""What a captured model is but for its numbers, so that another can be told to be the same, or how it differs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from burnish.graph.node import Graph, Node
from burnish.graph.ops import Op

SHOWN = 3  # differences that are named


def architecture(graph: Graph) -> dict[str, Any]:
    """`weights`: [name, shape] of each weight where it is used, of tables that are read by row the shape of a row, since tables may grow;
    `wiring`: a hash of all else.

    Small weights of equal values are one node with the name that was met first (graph.weights), which says nothing of the architecture:
    so a weight counts at each use, and its name is only for sentences.
    """
    at = {node: i for i, node in enumerate(node for node in graph.order if node.op is not Op.WEIGHT)}
    weights, told = [], []
    for node in at:
        operands: list[Any] = []
        for value in node.inputs:
            if value.op is Op.WEIGHT:
                shape = list(value.shape[1:] if _reads_rows(node, value) else value.shape)
                weights.append([value["weight"].name, shape])
                operands.append(["weight", value.dtype, shape])
            else:
                operands.append(at[value])
        told.append(f"{node.op.name} {node.side} {node.dtype} {node.shape} {operands} {_attributes(node)}")
    told += [f"{name} {at[value]}" for name, value in graph.outputs if value in at]
    return {"weights": weights, "wiring": hashlib.sha256("\n".join(told).encode()).hexdigest()}


def difference(kept: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """How a model differs from the one that was kept; None where it is of the same architecture."""
    if [shape for _, shape in kept["weights"]] == [shape for _, shape in new["weights"]]:
        return None if kept["wiring"] == new["wiring"] else "its weights have the same shapes, and are used in another way"
    old, now = dict(kept["weights"]), dict(new["weights"])
    lacks, extra = [name for name in old if name not in now], [name for name in now if name not in old]
    other = [f"{name} is {tuple(now[name])} and was {tuple(old[name])}" for name in old if name in now and now[name] != old[name]]
    told = [f"it lacks {_some(lacks)}"] * bool(lacks) + [f"{_some(extra)} is new"] * bool(extra) + [_some(other)] * bool(other)
    return "; ".join(told) or "its weights are used in another way"


def _reads_rows(user: Node, table: Node) -> bool:
    return user.op in (Op.LOOKUP, Op.BAG) and user.inputs[0] is table and table not in user.inputs[1:]


def _attributes(node: Node) -> str:
    return repr([(name, value) for name, value in node.attrs if name != "weight"])


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
