"""NNCF's post-training quantization with its defaults, run by OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peers import Rows, export_onnx
from peers.openvino_fp32 import caller, compiled

__all__ = ["NAME", "caller", "prepare"]
NAME = "NNCF + OpenVINO int8 (its defaults)"


def prepare(module: object, example: Rows, calibration: Rows, folder: Path, **settings: Any) -> object:
    import nncf
    import openvino

    model = openvino.Core().read_model(export_onnx(module, example, folder / "model.onnx"))
    count = len(next(iter(calibration.values())))
    chunks = [{k: v[i : i + 128] for k, v in calibration.items()} for i in range(0, min(count, 128 * 150), 128)]
    return compiled(nncf.quantize(model, nncf.Dataset(chunks), subset_size=len(chunks), **settings), "f32")
