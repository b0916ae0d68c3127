"""The native backend before there is a compiler: plans, packed weights, the text of two graphs, what a missing compiler says."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import msgspec
import numpy as np
import pytest

from burnish.errors import BuildError
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, scalar, weight
from burnish.graph.ops import OPS, Op
from burnish.graph.weights import from_bfloat16, to_bfloat16
from burnish.host import ISAS, Host
from burnish.inputs import Input
from burnish.native import emit, pack, plan, toolchain
from burnish.native.kernels import linear, table, vector
from burnish.quantize.affine import dot, quantize_rows
from burnish.testing.builders import Weights, column, concat, lookup, reshape
from burnish.testing.builders import linear as linear_node
from burnish.testing.builders import table as random_table
from burnish.testing.models import dcn_v2

HOST = Host.target("avx512vnni")
GOLDEN = Path(__file__).parents[1] / "golden"


def quantized(x: Node, n: int, seed: int = 0) -> Node:
    """A linear in int8 over x, activations quantized with scale 1/32 around 128."""
    q, scale = quantize_rows(np.random.default_rng(seed).standard_normal((n, x.shape[-1])).astype(np.float32))
    bytes_ = Node(Op.QUANTIZE, (x, scalar(32.0)), zero_point=128)
    bias = weight("b", np.linspace(-1, 1, n, dtype=np.float32))
    return Node(Op.QLINEAR, (bytes_, weight("w", q), weight("s", scale / np.float32(32)), bias), zero_point=128)


def two_fields() -> Graph:
    """Two embeddings and a dense value, a cross layer in int8, a product of fields and a score."""
    specs = (Input("dense", "float32", (5,), "request"), Input("cat", "int64", (2,), "candidate", 50))
    dense, cat = (input_node(spec) for spec in specs)
    w = Weights(0)
    x = concat([dense, *(lookup(random_table(50, 16, w), column(cat, i)) for i in range(2))])
    crossed = Node(Op.ADD, (Node(Op.MUL, (x, quantized(x, 37))), x))
    return Graph(specs, {"score": Node(Op.SIGMOID, (reshape(linear_node(crossed, 1, w)),))})


def gated() -> Graph:
    """A linear with a fused gate that broadcasts, a softmax, and a masked mean."""
    specs = (Input("x", "float32", (3, 4), "candidate"), Input("mask", "bool", (3, 1), "request"))
    x, mask = (input_node(spec) for spec in specs)
    hidden = Node(Op.TANH, (linear_node(x, 6, Weights(1)),))
    kept = Node(Op.WHERE, (mask, hidden, scalar(0.0)))
    gate = Node(Op.SOFTMAX, (kept,), axis=1)
    return Graph(specs, {"y": Node(Op.MEAN, (Node(Op.MUL, (gate, kept)),), axes=(0,))})


def steps(graph: Graph) -> list[list[str]]:
    return [[node.op.name for node in step.nodes] for step in plan.make(graph, HOST).steps]


def test_a_cross_layer_is_one_step_from_bytes_to_bytes() -> None:
    specs = (Input("x", "float32", (37,), "candidate"),)
    x0 = input_node(specs[0])
    x1 = Node(Op.ADD, (Node(Op.MUL, (x0, quantized(x0, 37))), x0))
    x2 = Node(Op.ADD, (Node(Op.MUL, (x0, quantized(x1, 37, 1))), x1))
    made = plan.make(Graph(specs, {"y": x2}), HOST)
    assert steps(made.graph) == [["INPUT"], ["QUANTIZE"], ["QLINEAR", "MUL", "ADD", "QUANTIZE"], ["QLINEAR", "MUL", "ADD"]]
    first = made.steps[2]
    assert {node.op for node in first.stored} == {Op.ADD, Op.QUANTIZE}  # float32 for the next sum, bytes for the next product
    assert {node.op for node in made.steps[3].stored} == {Op.ADD}


def test_lookups_write_into_their_concat() -> None:
    made = plan.make(two_fields(), HOST)
    whole = next(node for node in made.graph.order if node.op is Op.CONCAT)
    places = [made.places[node] for node in made.graph.order if node.op is Op.LOOKUP]
    assert [(p.buffer, p.at) for p in places] == [(made.places[whole].buffer, 5), (made.places[whole].buffer, 21)]
    dense = next(node for node in made.graph.order if node.op is Op.INPUT and node.side == "request")
    assert made.places[dense].buffer != made.places[whole].buffer  # one row for all candidates: it is copied beside each


def test_the_requests_steps_come_first_and_their_results_outlive_the_blocks() -> None:
    made = plan.make(dcn_v2(5, 7, 8, 2, (33, 17), 50), HOST)
    sides = [step.side for step in made.steps]
    assert sides == sorted(sides, reverse=True) and set(sides) == {"request", "candidate"}
    request = {made.places[node].buffer for step in made.steps if step.side == "request" for node in step.stored}
    candidate = {made.places[node].buffer for step in made.steps if step.side == "candidate" for node in step.stored}
    spans = [
        (b.offset, b.offset + made.rows * b.stride * plan.SIZES[b.ctype] + plan.SLACK)
        for b in (made.buffers[i] for i in sorted(request))
        if any(
            made.places[v].buffer == b.index
            for s in made.steps
            if s.side == "candidate"
            for n in s.nodes
            for v in n.inputs
            if v in made.places
        )
    ]
    for index in candidate:
        b = made.buffers[index]
        begin, end = b.offset, b.offset + made.rows * b.stride * plan.SIZES[b.ctype]
        assert all(end <= low or high <= begin for low, high in spans)


def test_buffers_that_live_together_do_not_overlap_and_others_share() -> None:
    made = plan.make(dcn_v2(5, 7, 16, 3, (128, 64), 50, request=0.0), HOST)
    alone = sum(made.rows * b.stride * plan.SIZES[b.ctype] for b in made.buffers)
    assert made.arena_bytes < 0.7 * alone


def test_blocks_shrink_until_the_arena_fits_the_second_cache() -> None:
    small = plan.make(dcn_v2(5, 7, 8, 2, (33, 17), 50), HOST)
    wide = plan.make(dcn_v2(13, 26, 128, 3, (4096, 1024), 50), HOST)
    assert small.rows == 48 and wide.rows < 48
    assert wide.arena_bytes <= HOST.cache_bytes[1]


def test_blocks_grow_when_their_weights_come_from_memory() -> None:
    graph = dcn_v2(13, 26, 128, 3, (4096, 1024), 50)  # 48 million weights of 4 bytes
    small, large = (msgspec.structs.replace(HOST, cache_bytes=(32 << 10, 1 << 20, third << 20)) for third in (32, 1024))
    assert plan.make(graph, small).rows == 192
    assert plan.make(graph, large).rows == plan.make(graph, HOST).rows < 48


def test_every_op_has_a_kernel_or_is_pointwise_or_stands_in_a_table() -> None:
    assert set(OPS) - set(table.KERNELS) - plan.ELEMENTWISE == {Op.WEIGHT, Op.DEQUANTIZE}


@pytest.mark.parametrize("graph", [two_fields(), gated()], ids=["two_fields", "gated"])
def test_the_text_of_small_graphs_is_the_golden_one(graph: Graph, request: pytest.FixtureRequest) -> None:
    """A refactor shows an empty diff; BURNISH_GOLDEN=1 writes the files anew."""
    name = request.node.callspec.id
    text = emit.emit(plan.make(graph, HOST, rows=48)).model
    path = GOLDEN / f"native_{name}.cpp"
    if os.environ.get("BURNISH_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_the_text_is_the_same_for_every_instruction_set() -> None:
    """So one artifact can be compiled for another machine from what it holds, and its programs share one weights.bin."""
    texts = {emit.emit(plan.make(dcn_v2(5, 7, 8, 2, (33, 17), 50), Host.target(isa))).text for isa in ISAS}
    assert len(texts) == 1


def test_the_text_depends_on_shapes_alone() -> None:
    texts = {emit.emit(plan.make(dcn_v2(5, 7, 8, 2, (33, 17), 50 + seed, seed=seed), HOST)).text for seed in range(3)}
    assert len(texts) == 1


@pytest.mark.parametrize("n", [1, 15, 16, 17, 48, 63, 64, 65, 130])
@pytest.mark.parametrize("k", [1, 3, 4, 37])
def test_packed_panels_multiply_as_the_weight_does(n: int, k: int) -> None:
    random = np.random.default_rng(n * 100 + k)
    w = random.integers(-127, 128, (n, k)).astype(np.int8)
    q = random.integers(0, 256, (5, k)).astype(np.uint8)
    packed = linear.pack_panels(w, 4)
    assert packed.size == -(-n // 16) * 16 * -(-k // 4) * 4
    begin = linear.zero_point_sums(w, 121)
    np.testing.assert_array_equal(linear.twin(q.astype(np.int32), packed, n) + begin[0], dot(q, w, 121))
    np.testing.assert_array_equal(linear.twin(q.astype(np.int32) - 128, packed, n) + begin[1], dot(q, w, 121))
    x, wf = random.standard_normal((5, k), np.float32), random.standard_normal((n, k), np.float32)
    np.testing.assert_allclose(linear.twin(x, linear.pack_panels(wf, 1), n), x @ wf.T, rtol=1e-5, atol=1e-5)


def test_bfloat16_panels_hold_pairs_of_inputs() -> None:
    w = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
    packed = from_bfloat16(linear.pack_panels(to_bfloat16(w), 2)).reshape(2, 16, 2)
    np.testing.assert_array_equal(packed[0], w[:, :2])
    np.testing.assert_array_equal(packed[1], np.stack([w[:, 2], np.zeros(16, np.float32)], axis=1))


def test_the_twin_of_exp_is_within_two_units_in_the_last_place() -> None:
    x = np.linspace(-87, 88, 200_001, dtype=np.float32)
    got, want = vector.twin_exp(x).astype(np.float64), np.exp(x.astype(np.float64))
    assert (np.abs(got - want) / np.spacing(want.astype(np.float32))).max() < 2
    np.testing.assert_array_equal(
        vector.twin_exp(np.array([np.nan, np.inf, -np.inf, 0, -200, 100], np.float32)), [np.nan, np.inf, 0, 1, 0, np.inf]
    )


def test_the_packed_file_is_aligned_and_says_what_it_is(tmp_path: Path) -> None:
    source = emit.emit(plan.make(two_fields(), HOST))
    size = pack.write(source.entries, tmp_path / "weights.bin")
    data = (tmp_path / "weights.bin").read_bytes()
    magic, version, count, signature, whole = struct.unpack_from(pack.HEAD, data)
    assert len(data) == size == whole and size % 64 == 0
    assert (magic, version, count) == (b"BURNISHW", pack.VERSION, len(source.entries)) and signature == pack.signature(source.entries)
    for i, entry in enumerate(source.entries):
        offset, rows = struct.unpack_from("<QQ", data, 40 + 16 * i)
        assert offset % 64 == 0
        if entry.layout == "table":
            held = entry.nodes[0]["weight"].array
            assert rows == len(held)
            np.testing.assert_array_equal(np.frombuffer(data, held.dtype, held.size, offset).reshape(held.shape), held)


def test_a_large_mapped_table_is_packed_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = np.memmap(tmp_path / "table.bin", np.float32, "w+", shape=(1000, 4))
    mapped[:] = np.arange(4000).reshape(1000, 4)
    monkeypatch.setattr(pack, "CHUNK", 1 << 10)
    ids = Input("ids", "int64", (), "candidate", 1000)
    source = emit.emit(plan.make(Graph((ids,), {"y": lookup(weight("t", mapped), input_node(ids))}), HOST))
    pack.write(source.entries, tmp_path / "weights.bin")
    at = struct.unpack_from("<QQ", (tmp_path / "weights.bin").read_bytes(), 40 + 16 * [e.layout for e in source.entries].index("table"))[0]
    np.testing.assert_array_equal(np.fromfile(tmp_path / "weights.bin", np.float32, 4000, offset=at).reshape(1000, 4), mapped)


def test_a_missing_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    sentence = "the native backend needs a compiler: pip install ziglang (it brings clang), or name a system compiler with BURNISH_CXX"
    assert toolchain.missing("zig") == sentence
    with pytest.raises(BuildError, match=r"pip install ziglang"):
        toolchain.build("int x;", "scalar", "zig")
    assert toolchain.missing("no-such-c++") == (
        "the compiler 'no-such-c++' is not on the PATH. Install it, or unset BURNISH_CXX and pip install ziglang"
    )


def test_code_for_another_machine_uses_its_flags_alone() -> None:
    for isa in ("avx512vnni", "avx2", "i8mm", "dotprod", "neon", "scalar"):
        made = plan.make(two_fields(), Host.target(isa))
        assert made.isa == isa
        words = toolchain.command(isa, Path("a.cpp"), Path("a.so"), "zig")
        assert ("-mavx512vnni" in words) == (isa == "avx512vnni") and "-march=native" not in words
        assert isinstance(words, list) and ("aarch64-linux-gnu.2.17" in words) == (isa in ("i8mm", "dotprod", "neon"))


def test_an_unknown_dtype_is_refused_by_name() -> None:
    spec = Input("x", "float64", (3,), "candidate")
    x = input_node(spec)
    with pytest.raises(BuildError, match=r"the native backend has no MATMUL of float64: MATMUL\[1, 1\] float64 candidate"):
        plan.make(Graph((spec,), {"y": Node(Op.MATMUL, (reshape(x, 1, 3), reshape(x, 3, 1)))}), HOST)


def test_the_reference_agrees_with_the_golden_graphs() -> None:
    """The golden graphs are sound: they compute something finite."""
    x = np.zeros((4, 3, 4), np.float32)
    assert np.isfinite(interpret(gated(), {"x": x, "mask": np.ones((4, 3, 1), bool)})["y"]).all()


def test_the_code_in_the_docs_is_the_golden_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "native.md").read_text()
    golden = (GOLDEN / "native_two_fields.cpp").read_text().splitlines()
    (block,) = re.findall(r"```cpp\n(.*?)```", page, re.S)
    shown = [line for line in block.splitlines() if line.strip() != "..."]
    assert shown and [line for line in shown if line not in golden] == []
