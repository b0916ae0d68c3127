"""A Graph as two files, for engines that read the graph itself: its nodes as JSON, its constants as arrays. Nothing in them is code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from burnish.graph.node import Graph, Node
from burnish.graph.ops import Op
from burnish.graph.weights import Weight
from burnish.inputs import Half, Input

FILES = ("graph.json", "weights.npz")


def write(graph: Graph, folder: Path) -> None:
    """Both files, in a folder that is there."""
    index = {node: i for i, node in enumerate(graph.order)}
    arrays: dict[str, np.ndarray] = {}

    def told(value: Any) -> Any:
        if isinstance(value, Weight):
            arrays[str(len(arrays))] = value.array
            return {"weight": str(len(arrays) - 1), "name": value.name, "dtype": value.dtype}
        return {"half": value.name, "side": value.side} if isinstance(value, Half) else value

    nodes = [[node.op.name, [index[v] for v in node.inputs], {key: told(value) for key, value in node.attrs}] for node in graph.order]
    outputs = [[name, index[node]] for name, node in graph.outputs]
    (folder / FILES[0]).write_text(json.dumps({"nodes": nodes, "outputs": outputs}))
    np.savez(folder / FILES[1], **arrays)  # type: ignore[arg-type]


def read(folder: Path, inputs: tuple[Input, ...]) -> Graph:
    """The graph that `write` left, over the inputs that it had."""
    held = json.loads((folder / FILES[0]).read_text())
    halves = {(half.name, half.side): half for spec in inputs for half in spec.halves}
    nodes: list[Node] = []
    with np.load(folder / FILES[1]) as arrays:

        def meant(value: Any) -> Any:
            if isinstance(value, dict):
                if "half" in value:
                    return halves[value["half"], value["side"]]
                return Weight(value["name"], arrays[value["weight"]], value["dtype"])
            return value

        for op, operands, attrs in held["nodes"]:
            nodes.append(Node(Op[op], (nodes[i] for i in operands), **{key: meant(value) for key, value in attrs.items()}))
    return Graph(inputs, {name: nodes[i] for name, i in held["outputs"]})
