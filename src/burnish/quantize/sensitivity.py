"""Which linear loses what in int8: the report's guilty layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from burnish.graph.node import Graph
from burnish.quantize.ptq import choose, score_db


class Layer(msgspec.Struct, frozen=True):
    """One linear in int8, all others in float32. Decibels are of signal to quantization noise: 10 more is a tenth of the noise's power."""

    name: str  # of its weight
    inputs: int
    outputs: int
    macs: int  # multiply-adds a row
    ranges: str  # what was chosen for it
    migration: float
    rounding: str
    output_db: float  # of the linear's own output, on calibration rows
    score_db: float  # of the model's outputs when only this linear is int8; inf when they do not change


def sensitivity(graph: Graph, calibration: Mapping[str, np.ndarray], **options: Any) -> tuple[Layer, ...]:
    """Every linear of `choose(graph, calibration, **options)`, the one that harms the model's outputs most first."""
    choices = choose(graph, calibration, **options)
    layers = [
        Layer(
            name=choice.linear.name,
            inputs=choice.linear.weight.shape[1],
            outputs=choice.linear.weight.shape[0],
            macs=math.prod(choice.linear.node.shape[:-1]) * choice.linear.weight.size,
            ranges=choice.scheme.ranges,
            migration=choice.scheme.migration,
            rounding=choice.rounding,
            output_db=choice.sqnr_db,
            score_db=db,
        )
        for choice, db in zip(choices, score_db(graph, choices, calibration))
    ]
    return tuple(sorted(layers, key=lambda layer: layer.score_db))
