"""OpenVINO, held against the interpreter; its int8 and bfloat16 kernels are the ones that run."""

from __future__ import annotations

import numpy as np
import pytest

from burnish.backends.openvino import OpenVino
from burnish.errors import BuildError
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, weight
from burnish.graph.ops import Op
from burnish.host import Host
from burnish.inputs import Input
from burnish.recipe import FactorRequest, Int8, Recipe, apply, recipe
from burnish.testing import dcn_v2, linear, rows
from burnish.testing.backend_cases import BackendCases, opened

pytest.importorskip("openvino", reason="the package openvino is not installed")


class TestOpenVino(BackendCases):
    refused = {"cast to bfloat16": r"openvino drops the rounding of CAST\[7\] bfloat16 candidate, a CAST to bfloat16"}
    alone = ("gru",)  # two GRUs over the same steps, one from a state that varies: OpenVINO 2026.4 computes the other wrongly

    @pytest.fixture
    def backend(self):
        return OpenVino()


def kernels(graph, tmp_path):
    """The kernel and the precision of each product of a graph, as OpenVINO runs it."""
    program = OpenVino().build(graph, Host.here(), tmp_path)
    engine = OpenVino().open(tmp_path, program, graph.inputs, 1)
    facts = [node.get_rt_info() for node in engine.compiled.get_runtime_model().get_ordered_ops()]
    return [(info["primitiveType"].value, info["runtimePrecision"].value) for info in facts if info["layerType"].value == "FullyConnected"]


def test_int8_linears_run_in_int8_kernels(tmp_path):
    graph = dcn_v2(5, 7, 8, 2, (33, 17), 50)
    changed = apply(graph, Recipe((Int8(ranges="min-max", migration=0.5, narrowest=4),)), rows(graph, 300))
    found = kernels(changed, tmp_path)
    assert sum(precision == "u8" and "I8" in name.upper() for name, precision in found) == 4, found
    assert len(found) == 5


def test_float32_is_computed_in_float32_where_the_cpu_has_bfloat16(tmp_path):
    assert {precision for _, precision in kernels(dcn_v2(5, 7, 8, 2, (33, 17), 50), tmp_path)} == {"f32"}


@pytest.mark.skipif("avx512_bf16" not in Host.here().flags, reason="this CPU has no bfloat16")
def test_bfloat16_is_computed_in_bfloat16(tmp_path):
    graph = apply(dcn_v2(5, 7, 8, 2, (33, 17), 50), recipe("bf16").without(FactorRequest))
    assert "bf16" in {precision for _, precision in kernels(graph, tmp_path)}


def test_a_reduction_before_a_quantize_by_channel_is_not_fused_wrongly(tmp_path):
    """OpenVINO 2026.4 applied channel 0's multiplier to all of them when the summed axis was dropped by the reduction."""
    x = input_node(Input("x", "float32", (4, 32)))
    total = Node(Op.SUM, (Node(Op.ABS, (x,)),), axes=(0,))
    multiplier = weight("m", np.linspace(5, 40, 32, dtype=np.float32))
    quantized = Node(Op.QUANTIZE, (total, multiplier), zero_point=0)
    graph = Graph([Input("x", "float32", (4, 32))], {"y": Node(Op.CAST, (quantized,), dtype="float32")})
    table = rows(graph, 37)
    with opened(OpenVino(), graph, tmp_path) as engine:
        assert np.abs(engine.rows(table, 37)["y"] - interpret(graph, table)["y"]).max() <= 1


def test_two_float_precisions_in_one_model_are_refused(tmp_path):
    x = input_node(Input("x", "float32", (4,)))
    both = {dtype: linear(x, 3, compute=dtype) for dtype in ("bfloat16", "float16")}
    with pytest.raises(
        BuildError, match="openvino has one float precision for a whole model; the graph has linears in bfloat16 and float16"
    ):
        OpenVino().build(Graph([Input("x", "float32", (4,))], both), Host.here(), tmp_path)
