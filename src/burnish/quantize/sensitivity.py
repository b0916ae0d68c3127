"""What each linear loses in int8 and what it saves: the report's guilty layers, and the frontier from all int8 to all float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from burnish.graph.node import Graph, Node
from burnish.graph.ops import Op
from burnish.quantize.ptq import FASTER, Linear, affordable, choose, judge_of, linears, quantized


class Layer(msgspec.Struct, frozen=True):
    """One linear. `loss` is the expected relative loss of AUC when it alone is int8 (docs/quantization.md)."""

    name: str  # of its weight
    loss: float
    macs: float  # multiply-adds a candidate, with its share of what is done once a request
    kept: bool  # left in float32


class Point(msgspec.Struct, frozen=True):
    """One choice of the linears to leave in float32: what the model is expected to lose, measured with all others in int8 together, and
    the time of its linears, that of all of them in float32 being 1."""

    kept: tuple[str, ...]
    loss: float
    time: float


def sensitivity(graph: Graph, calibration: Mapping[str, np.ndarray], loss: float = 0.0001, **options: Any) -> tuple[Layer, ...]:
    """Every linear of `choose(graph, calibration, **options)`, the one that loses most first; `kept` is what Int8(loss) leaves."""
    choices = choose(graph, calibration, **options)
    judge = judge_of(graph, calibration)
    chosen = {choice.linear.name for choice in affordable(graph, choices, calibration, loss)}
    layers = [Layer(c.linear.name, judge.loss(quantized(graph, [c])), c.linear.macs, c.linear.name not in chosen) for c in choices]
    return tuple(sorted(layers, key=lambda layer: -layer.loss))


def frontier(graph: Graph, calibration: Mapping[str, np.ndarray], **options: Any) -> tuple[Point, ...]:
    """From all linears in int8 to none: each point leaves one more in float32, the one that loses most for the time it saves."""
    choices = choose(graph, calibration, **options)
    judge = judge_of(graph, calibration)
    whole = sum(choice.linear.macs for choice in choices) or 1.0
    dear = sorted(choices, key=lambda c: -judge.loss(quantized(graph, [c])) / max(c.linear.macs, 1.0))
    points = []
    for i in range(len(dear) + 1):
        kept, narrow = dear[:i], dear[i:]
        time = sum(c.linear.macs for c in kept) + sum(c.linear.macs for c in narrow) / FASTER
        points.append(Point(tuple(c.linear.name for c in kept), judge.loss(quantized(graph, narrow)), time / whole))
    return tuple(points)


def layers(before: Graph, after: Graph, calibration: Mapping[str, np.ndarray]) -> tuple[Layer, ...]:
    """What Int8 did to a graph, the linear that loses most first: of those that it left too what they would have lost."""
    narrow = {node.inputs[1]["weight"].name.removesuffix(".int8"): node for node in after.order if node.op is Op.QLINEAR}
    judge = judge_of(before, calibration)
    left = [one for one in linears(before) if one.name not in narrow]
    skip = [one.name for one in linears(before) if one.name in narrow]
    would = {c.linear.name: judge.loss(quantized(before, [c])) for c in (choose(before, calibration, skip=skip) if left else ())}
    found = [
        Layer(
            one.name,
            would[one.name] if one.name in would else judge.loss(_alone(before, one, narrow[one.name])),
            one.macs,
            one.name in would,
        )
        for one in linears(before)
    ]
    return tuple(sorted(found, key=lambda layer: -layer.loss))


def _alone(graph: Graph, one: Linear, narrow: Node) -> Graph:
    """The graph with that linear as the QLINEAR that another graph has for it."""
    quantize, w, scale, bias = narrow.inputs[:4]

    def change(node: Node, operands: tuple[Node, ...]) -> Node:
        if node is not one.node:
            return node if operands == node.inputs else node.with_inputs(operands)
        y = Node(Op.QLINEAR, (quantize.with_inputs((operands[0], quantize.inputs[1])), w, scale, bias), zero_point=narrow["zero_point"])
        return Node(Op.ADD, (y, operands[3])) if len(operands) > 3 else y

    return graph.map(change)
