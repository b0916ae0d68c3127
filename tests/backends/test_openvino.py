"""OpenVINO, held against the interpreter; its int8 and bfloat16 kernels are the ones that run."""

from __future__ import annotations

import pytest

from burnish.backends.openvino import OpenVino
from burnish.testing.backend_cases import BackendCases


class TestOpenVino(BackendCases):
    refused = {"cast to bfloat16": r"openvino drops the rounding of CAST\[7\] bfloat16 candidate, a CAST to bfloat16"}

    @pytest.fixture
    def backend(self):
        return OpenVino()
