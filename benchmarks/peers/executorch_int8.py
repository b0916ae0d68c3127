"""ExecuTorch through XNNPACK with its quantizer's dynamic int8: weights per channel, activations measured and quantized in each call."""

from __future__ import annotations

from pathlib import Path

from peers import Rows
from peers.executorch_fp32 import caller, lowered

__all__ = ["NAME", "caller", "prepare"]
NAME = "ExecuTorch int8 (XNNPACK, dynamic)"


def prepare(module: object, example: Rows, calibration: Rows, folder: Path) -> Path:
    return lowered(module, example, folder / "int8.pte", quantize=True)
