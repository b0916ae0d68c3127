"""OpenVINO with its bf16 inference precision, where the CPU has it."""

from __future__ import annotations

from pathlib import Path

from peers import Rows, openvino_fp32
from peers.openvino_fp32 import caller

__all__ = ["NAME", "caller", "prepare"]
NAME = "OpenVINO bf16"


def prepare(module: object, example: Rows, calibration: Rows, folder: Path) -> object:
    return openvino_fp32.prepare(module, example, calibration, folder, precision="bf16")
