"""What must hold of a Graph, as a table of checks. Tests run it before and after each step; `burnish` runs it after capture."""

from __future__ import annotations

from collections.abc import Callable

from burnish.errors import GraphError
from burnish.graph.node import Graph, Node
from burnish.graph.ops import OPS, Op

Check = Callable[[Graph, Node], bool]


def _inferred(graph: Graph, node: Node) -> bool:
    shape, dtype = OPS[node.op].infer(node.inputs, dict(node.attrs))
    return tuple(shape) == node.shape and dtype == node.dtype


def _declared(graph: Graph, node: Node) -> bool:
    return node.op is not Op.INPUT or node["half"] in [half for spec in graph.inputs for half in spec.halves]


def _constant_weights(graph: Graph, node: Node) -> bool:
    """Operands that kernels pack when they are built must be constants."""
    packed = {
        Op.LOOKUP: (0,),
        Op.BAG: (0,),
        Op.LINEAR: (1, 2),
        Op.QDOT: (1,),
        Op.QLINEAR: (1, 2, 3),
        Op.DEQUANTIZE: (0, 1),
        Op.QUANTIZE: (1,),
        Op.LAYERNORM: (1, 2),
        Op.GRU: (2, 3, 4, 5),
    }
    return all(node.inputs[i].side == "constant" for i in packed.get(node.op, ()))


def _zero_points_agree(graph: Graph, node: Node) -> bool:
    """What multiplies quantized values subtracts the zero point they were made with."""
    if node.op not in (Op.QDOT, Op.QLINEAR):
        return True
    seen, stack = set(), [node.inputs[0]]
    while stack:
        value = stack.pop()
        if value.op is Op.QUANTIZE:
            seen.add(value["zero_point"])
        elif value.dtype == "uint8":
            stack.extend(value.inputs)
    return seen <= {node["zero_point"]}


CHECKS: dict[str, Check] = {
    "shape and dtype are the inferred ones": _inferred,
    "an INPUT is a half of a declared input": _declared,
    "tables, weights and scales are constants": _constant_weights,
    "zero points agree with the QUANTIZE above": _zero_points_agree,
}


def verify(graph: Graph) -> Graph:
    """The graph itself, or GraphError with the node and the check it fails."""
    if not graph.outputs:
        raise GraphError("the graph has no output")
    for node in graph.order:
        for name, check in CHECKS.items():
            if not check(graph, node):
                raise GraphError(f"{node!r} breaks the rule that {name}")
    return graph
