"""ONNX Runtime on torch's export, one thread, all graph optimizations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from peers import Rows, export_onnx

NAME = "ONNX Runtime fp32"


def prepare(module: object, example: Rows, calibration: Rows, folder: Path) -> Path:
    return export_onnx(module, example, folder / "model.onnx")


def caller(prepared: Path) -> Callable[[Rows], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(prepared), options, providers=["CPUExecutionProvider"])
    return lambda table: session.run(None, table)[0]
