"""OpenVINO on torch's export, latency hint, one thread; `precision` is its inference precision hint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from peers import Rows, export_onnx

NAME = "OpenVINO fp32"


def prepare(module: object, example: Rows, calibration: Rows, folder: Path, precision: str = "f32") -> object:
    import openvino

    return compiled(openvino.Core().read_model(export_onnx(module, example, folder / "model.onnx")), precision)


def compiled(model: object, precision: str) -> object:
    import openvino

    config = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
    return openvino.Core().compile_model(model, "CPU", {**config, "INFERENCE_PRECISION_HINT": precision})


def caller(prepared: object) -> Callable[[Rows], np.ndarray]:
    import openvino

    request = prepared.create_infer_request()  # type: ignore[attr-defined]
    output = prepared.output(0)  # type: ignore[attr-defined]

    def call(table: Rows) -> np.ndarray:
        for i, array in enumerate(table.values()):
            request.set_input_tensor(i, openvino.Tensor(array, shared_memory=True))
        request.infer()
        return request.get_tensor(output).data

    return call
