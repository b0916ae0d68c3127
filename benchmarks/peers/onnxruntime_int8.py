"""ONNX Runtime's static quantization with its defaults: QDQ, per-channel weights, MinMax calibration."""

from __future__ import annotations

from pathlib import Path

from peers import Rows, export_onnx
from peers.onnxruntime_fp32 import caller

__all__ = ["NAME", "caller", "prepare"]
NAME = "ONNX Runtime int8 (its defaults)"


def prepare(module: object, example: Rows, calibration: Rows, folder: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, ready, out = export_onnx(module, example, folder / "model.onnx"), folder / "ready.onnx", folder / "int8.onnx"
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            count = len(next(iter(calibration.values())))
            self.chunks = iter([{k: v[i : i + 512] for k, v in calibration.items()} for i in range(0, min(count, 8192), 512)])

        def get_next(self) -> Rows | None:
            return next(self.chunks, None)

    settings = {"quant_format": QuantFormat.QDQ, "per_channel": True, "op_types_to_quantize": ["Gemm", "MatMul"]}
    quantize_static(str(ready), str(out), Reader(), activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, **settings)
    return out
