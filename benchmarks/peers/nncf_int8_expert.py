"""NNCF as an expert sets it for such a model: the transformer scheme, which turns SmoothQuant on, alpha 0.5."""

from __future__ import annotations

from pathlib import Path

from peers import Rows, nncf_int8
from peers.openvino_fp32 import caller

__all__ = ["NAME", "caller", "prepare"]
NAME = "NNCF + OpenVINO int8 (an expert's SmoothQuant)"


def prepare(module: object, example: Rows, calibration: Rows, folder: Path) -> object:
    import nncf

    smooth = nncf.AdvancedQuantizationParameters(smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=0.5))
    return nncf_int8.prepare(module, example, calibration, folder, model_type=nncf.ModelType.TRANSFORMER, advanced_parameters=smooth)
