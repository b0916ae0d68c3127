"""ONNX ops of the default domain on traced values, one row each; opset 13 and later."""

from burnish.capture.onnx_ops.call import Row
from burnish.capture.onnx_ops.layers import LAYERS
from burnish.capture.onnx_ops.tensors import TENSORS

ONNX: dict[str, Row] = {**TENSORS, **LAYERS}
