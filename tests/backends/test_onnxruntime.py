"""ONNX Runtime, held against the interpreter; its int8 kernels are the ones that run."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import burnish
from burnish.backends.expand import Expand
from burnish.backends.onnxruntime import OnnxRuntime
from burnish.errors import BuildError
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, scalar, weight
from burnish.graph.ops import Op
from burnish.host import Host
from burnish.inputs import Input
from burnish.recipe import Int8, Recipe, apply
from burnish.testing import dcn_v2, rows
from burnish.testing.backend_cases import BackendCases

pytest.importorskip("onnx", reason="the package onnx is not installed")
pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")
from burnish.backends.to_onnx import to_onnx


class TestOnnxRuntime(BackendCases):
    refused = {
        "linear in bfloat16": r"onnxruntime has no bfloat16 linear that accumulates in float32 on a CPU; .* at LINEAR\[9\]",
        "linear in float16": r"onnxruntime has no float16 linear",
    }

    @pytest.fixture
    def backend(self):
        return OnnxRuntime()


@pytest.fixture(scope="module")
def int8_graph():
    """A DCN-v2 whose linears are int8, with multipliers of one value and of several."""
    graph = dcn_v2(5, 7, 8, 2, (33, 17), 50)
    return apply(graph, Recipe((Int8(ranges="min-max", migration=0.5, narrowest=4),)), rows(graph, 300))


def test_int8_runs_in_the_int8_kernels_with_no_step_between_relu_and_quantize(int8_graph, tmp_path):
    """The model ONNX Runtime makes of ours, as it would run it: its own int8 products, and no float product but the one-wide last."""
    import onnx
    import onnxruntime as ort

    from burnish.backends.onnxruntime import DISABLED

    to_onnx(int8_graph, tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED)
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node)
    linears = sum(node.op is Op.QLINEAR for node in int8_graph.order)
    assert kinds["MatMulIntegerToFloat"] == linears == 4
    assert kinds["DequantizeLinear"] == 0
    assert kinds["Gemm"] + kinds["FusedGemm"] == 1
    between = [node for node in int8_graph.order if node.op is Op.QUANTIZE and node.inputs[0].op is Op.RELU]
    products = sum(node.op is Op.MUL for node in int8_graph.order)
    assert between and kinds["Mul"] == products + sum(node.op is Op.QUANTIZE for node in int8_graph.order) - len(between)


def test_large_constants_lie_beside_the_model_and_small_ones_in_it(tmp_path):
    graph = dcn_v2(5, 7, 8, 1, (33,), 5000)
    model, data = to_onnx(graph, tmp_path / "model.onnx")
    assert data.stat().st_size >= 7 * 5000 * 8 * 4 and model.stat().st_size < 30_000


def test_a_constant_has_no_name_of_a_value(tmp_path):
    """Both are numbered: a product of constants that nobody folded was once called as the product that reads it."""
    x = input_node(Input("x", "float32", (3,)))
    for i in range(3):
        x = Node(Op.MUL, (x, Node(Op.MUL, (scalar(2.0 + i), weight("k", np.arange(3, dtype=np.float32))))))
    graph = Graph((Input("x", "float32", (3,)),), {"y": x})
    program = OnnxRuntime().build(graph, Host.here(), tmp_path)
    table = rows(graph, 4)
    got = OnnxRuntime().open(tmp_path, program, graph.inputs, 1).rows(table, 4)["y"]
    np.testing.assert_allclose(got, interpret(graph, table)["y"], rtol=1e-6)


def test_request_values_are_written_between_the_candidates_columns():
    spec = (Input("x", "int64", (4,), ["candidate", "request", "candidate", "request"]), Input("r", "float32", (), "request"))
    table = Expand(spec)({"x": np.array([7, 8]), "r": np.float32(2.5)}, {"x": np.array([[1, 2], [3, 4], [5, 6]])}, 3)
    assert table["x"].tolist() == [[1, 7, 2, 8], [3, 7, 4, 8], [5, 7, 6, 8]]
    assert table["r"].tolist() == [2.5, 2.5, 2.5]


def test_columns_in_uneven_steps_are_written_where_they_belong():
    spec = (Input("x", "int64", (5,), ["request", "request", "candidate", "request", "candidate"]),)
    table = Expand(spec)({"x": np.array([1, 2, 4])}, {"x": np.array([[30, 50], [31, 51]])}, 2)
    assert table["x"].tolist() == [[1, 2, 30, 4, 50], [1, 2, 31, 4, 51]]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("burnish.backends.onnxruntime.find_spec", lambda name: None if name == "onnxruntime" else object())
    told = "the backend onnxruntime needs the package onnxruntime. Install it: pip install onnxruntime"
    assert OnnxRuntime().missing() == told
    with pytest.raises(BuildError, match=r"^the backend onnxruntime needs the package onnxruntime\."):
        burnish.compile(dcn_v2(2, 2, 2, 1, (3,)), "fp32", backend="onnxruntime")
