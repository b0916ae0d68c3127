"""Which linear loses what in int8: the report's guilty layers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from burnish.graph.interpret import interpret
from burnish.graph.node import Graph
from burnish.quantize.ptq import choose, quantized


class Layer(msgspec.Struct, frozen=True):
    """One linear in int8, all others in float32. Decibels are of signal to quantization noise: 10 more is a tenth of the noise's power."""

    name: str  # of its weight
    inputs: int
    outputs: int
    macs: int  # multiply-adds a row
    ranges: str  # what was chosen for it
    migration: float
    output_db: float  # of the linear's own output, on calibration rows
    score_db: float  # of the model's outputs when only this linear is int8; inf when they do not change


def sensitivity(
    graph: Graph,
    calibration: Mapping[str, np.ndarray],
    ranges: str = "auto",
    migration: float | str = "auto",
    bias_correction: bool = True,
    narrowest: int = 8,
    rows: int = 2048,
) -> tuple[Layer, ...]:
    """Every linear that Int8 with these fields would quantize, the one that harms the model's outputs most first.

    The outputs are judged on the first `rows` of the calibration rows; that takes one run of the model a linear.
    """
    choices = choose(graph, calibration, ranges, migration, bias_correction, narrowest)
    few = {name: array[:rows] for name, array in calibration.items()}
    exact = interpret(graph, few)
    found = []
    for choice in choices:
        node = choice.linear.node
        n, k = choice.linear.weight.shape
        found.append(
            Layer(
                name=choice.linear.name,
                inputs=k,
                outputs=n,
                macs=math.prod(node.shape[:-1]) * n * k,
                ranges=choice.scheme.ranges,
                migration=choice.scheme.migration,
                output_db=choice.sqnr_db,
                score_db=_decibels(exact, interpret(quantized(graph, [choice]), few)),
            )
        )
    return tuple(sorted(found, key=lambda layer: layer.score_db))


def _decibels(exact: Mapping[str, np.ndarray], changed: Mapping[str, np.ndarray]) -> float:
    """Signal to noise over all float outputs, each relative to its own variance; the worst of them."""
    worst = math.inf
    for name, y in exact.items():
        noise = float(np.mean((changed[name].astype(np.float64) - y) ** 2))
        if noise > 0:
            worst = min(worst, 10 * math.log10(max(float(np.var(y)), 1e-30) / noise))
    return worst
