"""A ranker cut between the request and the candidate, for two places: what depends on the request alone, and the rest.

    score(request, candidates)  ->  device(user(request), candidates)

The user's part is a function of a request as a row, so that it scores many at once where they are served; its outputs are inputs of the
device's part, of the request's side. Both compute the nodes that the whole would, so scores are equal to the bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from burnish.errors import BuildError
from burnish.graph.node import Graph, Node, input_node
from burnish.graph.ops import Op
from burnish.inputs import DTYPES, Half, Input, Side

# what changes a value's form, never its content: computed behind the cut, where it would send the same values or more
FORMS = frozenset({Op.RESHAPE, Op.EXPAND, Op.TRANSPOSE, Op.TAKE})


@dataclass(frozen=True)
class Split:
    """`user`: request -> the values `sent`, one row a request. `device`: those and the candidates -> the whole's outputs."""

    user: Graph
    device: Graph
    sent: tuple[Input, ...]  # inputs of the device's part

    @property
    def payload_bytes(self) -> int:
        """Bytes of what is sent for one request."""
        return sum(np.dtype(spec.dtype).itemsize * math.prod(spec.shape) for spec in self.sent)


def split(graph: Graph) -> Split:
    """Both parts of a graph; BuildError when nothing of the request stands beside a candidate, or no candidate is in it.

    Factor the request out first: otherwise little is computed for it alone.
    """
    border = _border(graph)
    if not border:
        raise BuildError(
            "there is nothing to split: no value of the request is read beside a candidate. Declare the request's columns (side)"
        )
    if not any(half.side == "candidate" for spec in graph.inputs for half in spec.halves):
        raise BuildError("there is nothing to split: the model has no candidates. Declare the candidates' columns (side)")
    taken = {spec.name for spec in graph.inputs} | {name for name, _ in graph.outputs}
    sent: list[Input] = []
    for node in border:
        number = len(sent)
        name = f"user{number}"
        while name in taken:
            name += "_"
        taken.add(name)
        sent.append(Input(name, node.dtype, node.shape, "request"))
    user = Graph(_inputs(graph, "request"), {spec.name: node for spec, node in zip(sent, border)})
    device = Graph((*_inputs(graph, "candidate"), *sent), dict(graph.outputs))
    behind = dict(zip(border, (input_node(spec) for spec in sent)))
    return Split(_replaced(user, "request", {}), _replaced(device, "candidate", behind), tuple(sent))


def _border(graph: Graph) -> list[Node]:
    """The values of the request that the device's part begins with, in the graph's order.

    First those that a candidate's value reads, or that are outputs; then, in place of one that only changes form, or that no input can
    hold (bytes, half precision), what it was computed from.
    """
    users, outputs = graph.users(), {node for _, node in graph.outputs}
    found = {
        node
        for node in graph.order
        if node.side == "request" and (node in outputs or any(user.side == "candidate" for user in users[node]))
    }
    todo = list(found)
    while todo:
        node = todo.pop()
        if node in found and node.op is not Op.INPUT and (node.op in FORMS or node.dtype not in DTYPES):
            operands = [v for v in node.inputs if v.side == "request"]
            more = sum(_bytes(v) for v in operands if v not in found)
            if node.dtype not in DTYPES or more <= _bytes(node):
                found.remove(node)
                todo += [v for v in operands if v not in found]
                found.update(operands)
    return [node for node in graph.order if node in found]


def _bytes(node: Node) -> int:
    return (np.dtype(node.dtype).itemsize if node.dtype in DTYPES else 4) * math.prod(node.shape)


def _inputs(graph: Graph, side: Side) -> list[Input]:
    """The halves of inputs that lie on a side, as inputs with a row each."""
    return [whole(spec, half) for spec in graph.inputs for half in spec.halves if half.side == side]


def whole(spec: Input, half: Half) -> Input:
    """A half of an input as an input of its own, one row for each of its rows."""
    bounds = spec.cardinality
    if isinstance(bounds, tuple) and half.columns is not None:
        bounds = tuple(bounds[i] for i in half.columns)
    return Input(half.name, half.dtype, half.shape, "candidate", bounds)


def _replaced(graph: Graph, side: Side, border: dict[Node, Node]) -> Graph:
    """The graph on its own inputs: INPUT nodes of that side by name, and the values of the border by what stands for them."""
    own = {spec.name: input_node(spec) for spec in graph.inputs}
    new: dict[Node, Node] = {}
    for node in graph.order:
        if node in border:
            new[node] = border[node]
        elif node.op is not Op.INPUT:
            if all(v in new for v in node.inputs):  # else it lies behind the border alone
                new[node] = node.with_inputs(new[v] for v in node.inputs)
        elif node.side == side:
            new[node] = own[node["half"].name]
    return Graph(graph.inputs, {name: new[node] for name, node in graph.outputs})
