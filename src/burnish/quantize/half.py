"""Linears in half floats: operands are rounded, products accumulated in float32. The arrays stay float32; the op defines the rounding."""

from __future__ import annotations

import numpy as np

from burnish.graph.interpret import constant
from burnish.graph.node import Graph, Node
from burnish.graph.ops import Op

FLOAT16_MAX = 65504.0
CHUNK = 1 << 24  # values looked at once, so that a mapped table of any size takes little memory


def half(graph: Graph, dtype: str = "bfloat16", narrowest: int = 8) -> Graph:
    """linear(x, w, b)  ->  linear(x, w, b, compute=dtype) where w has at least `narrowest` outputs.

    Leaves narrower ones (the last linear of a ranker has one output: it costs nothing and sets every score), those that do not compute
    in float32, those of constants, and for float16 those with a weight that would become infinite. That an activation may leave float16
    is for the gate to find.
    """

    def change(node: Node, operands: tuple[Node, ...]) -> Node:
        changed = node if operands == node.inputs else node.with_inputs(operands)
        if node.op is Op.LINEAR and node["compute"] == "float32" and node.side != "constant" and node.shape[-1] >= narrowest:
            return changed.with_attrs(compute=dtype) if fits_half(constant(node.inputs[1]), dtype) else changed
        return changed

    return graph.map(change)


def fits_half(values: np.ndarray, dtype: str) -> bool:
    """Whether no value becomes infinite in `dtype`."""
    if dtype == "bfloat16":
        return True
    step = max(1, CHUNK // max(1, values[:1].size))
    return all(bool(np.all(np.abs(values[i : i + step]) <= FLOAT16_MAX)) for i in range(0, len(values), step))
