"""torchao's int8 of weights and activations with its defaults: linears, weights per channel, activations per row as they come."""

from __future__ import annotations

import copy
from pathlib import Path

from peers import Rows
from peers.eager import caller

__all__ = ["NAME", "caller", "prepare"]
NAME = "torchao int8 (its defaults)"


def prepare(module: object, example: Rows, calibration: Rows, folder: Path) -> object:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    changed = copy.deepcopy(module)
    quantize_(changed, Int8DynamicActivationInt8WeightConfig())
    return changed
