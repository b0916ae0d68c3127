"""What several engines cannot do, refused in one wording."""

from __future__ import annotations

from burnish.errors import BuildError
from burnish.graph.node import Graph
from burnish.graph.ops import Op

HALVES = ("bfloat16", "float16")


def half_linears(graph: Graph, backend: str) -> None:
    """BuildError for a linear that is not to be computed in float32."""
    for node in graph.order:
        if node.op is Op.LINEAR and node["compute"] != "float32":
            raise BuildError(
                f"{backend} has no {node['compute']} linear that accumulates in float32 on a CPU; the graph asks for it at {node!r}. "
                "Use the recipe fp32 or int8, or the backend openvino or native"
            )


def half_casts(graph: Graph, backend: str) -> None:
    """BuildError for a rounding to half precision: these engines hold the cast and the one back for nothing, and drop both."""
    for node in graph.order:
        if node.op is Op.CAST and node["dtype"] in HALVES and node.side != "constant":
            raise BuildError(f"{backend} drops the rounding of {node!r}, a CAST to {node['dtype']}. Use the backend onnxruntime or native")
