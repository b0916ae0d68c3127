"""Linears in bfloat16: operands are rounded, products accumulated in float32. The arrays stay float32; the op defines the rounding."""

from __future__ import annotations

from burnish.graph.node import Graph, Node
from burnish.graph.ops import Op


def bf16(graph: Graph, narrowest: int = 8) -> Graph:
    """linear(x, w, b)  ->  linear(x, w, b, compute="bfloat16") where w has at least `narrowest` outputs.

    Leaves narrower ones (the last linear of a ranker has one output: it costs nothing and sets every score), those that do not compute
    in float32, and those of constants.
    """

    def change(node: Node, operands: tuple[Node, ...]) -> Node:
        node = node if operands == node.inputs else node.with_inputs(operands)
        if node.op is Op.LINEAR and node["compute"] == "float32" and node.side != "constant" and node.shape[-1] >= narrowest:
            return node.with_attrs(compute="bfloat16")
        return node

    return graph.map(change)
