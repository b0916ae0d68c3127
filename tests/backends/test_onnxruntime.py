"""ONNX Runtime, held against the interpreter; its int8 kernels are the ones that run."""

from __future__ import annotations

import pytest

from burnish.backends.onnxruntime import OnnxRuntime
from burnish.testing.backend_cases import BackendCases


class TestOnnxRuntime(BackendCases):
    refused = {
        "linear in bfloat16": r"onnxruntime has no bfloat16 linear on a CPU; the graph asks for it at LINEAR\[9\]",
        "linear in float16": r"onnxruntime has no float16 linear on a CPU",
    }

    @pytest.fixture
    def backend(self):
        return OnnxRuntime()
