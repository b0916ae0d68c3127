"""What a model asks of the place it runs in, whatever the backend: arithmetic and weights of each side, and bytes that cross a network."""

from __future__ import annotations

import math

import msgspec

from burnish.graph.node import Graph, Node
from burnish.graph.ops import Op
from burnish.graph.show import BYTES, constant_bytes, cost
from burnish.passes.factor import factor_request


class Work(msgspec.Struct, frozen=True):
    """`request` is once a request, `candidate` for each candidate. The cut is what the candidates' part needs of the request's: what a
    split deployment sends to the device."""

    request_macs: int
    candidate_macs: int
    request_bytes: int  # inputs as they are sent
    candidate_bytes: int
    answer_bytes: int
    cut_bytes: int
    request_weights: float  # share of the weights' bytes that only the request's part reads


def work(graph: Graph) -> Work:
    """Of a captured model, with the request factored out as far as that goes."""
    split = factor_request(graph)
    costs, users = cost(split), split.users()
    cut = [node for node in split.order if node.side == "request" and any(user.side == "candidate" for user in users[node])]
    sizes = {"request": 0, "candidate": 0}
    for spec in graph.inputs:
        for half in spec.halves:
            sizes[half.side] += math.prod(half.shape) * int(BYTES[half.dtype])
    weights = [node for node in split.order if node.op is Op.WEIGHT]
    total = sum(constant_bytes(node) for node in weights)
    alone = sum(constant_bytes(node) for node in weights if _sides(node, split) == {"request"})
    return Work(
        request_macs=costs.request.macs,
        candidate_macs=costs.candidate.macs,
        request_bytes=sizes["request"],
        candidate_bytes=sizes["candidate"],
        answer_bytes=sum(math.prod(node.shape) * int(BYTES[node.dtype]) for _, node in graph.outputs),
        cut_bytes=sum(math.prod(node.shape) * int(BYTES[node.dtype]) for node in cut),
        request_weights=alone / total if total else 0.0,
    )


def _sides(node: Node, graph: Graph) -> set[str]:
    """The sides of what a constant is used for."""
    users, found, todo = graph.users(), set[str](), [node]
    while todo:
        for user in users[todo.pop()]:
            if user.side == "constant":
                todo.append(user)
            else:
                found.add(user.side)
    return found
