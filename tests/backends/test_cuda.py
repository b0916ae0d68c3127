"""The backend cuda: all but the capture on tensors of the CPU, held against the interpreter; on a card where there is one."""

from __future__ import annotations

import runpy
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import burnish
from burnish.backends import cuda, graph_file
from burnish.backends.cuda import SIZES, Cuda, half_product, int8_dot, int8_weight
from burnish.errors import ArtifactError, BuildError
from burnish.graph.interpret import interpret, interpret_request
from burnish.graph.node import Graph, Node, input_node
from burnish.graph.ops import Op
from burnish.host import Host
from burnish.inputs import Input
from burnish.quantize import affine
from burnish.recipe import FactorRequest, Int8, Recipe, apply
from burnish.runtime.artifact import difference
from burnish.testing import as_request, dcn_v2, op_cases, rows
from burnish.testing.backend_cases import BackendCases, contiguous, opened
from burnish.testing.builders import Weights, lookup, mlp, table

torch = pytest.importorskip("torch", reason="torch is not installed")

NO_GPU = r"^the backend cuda needs an NVIDIA GPU that PyTorch can use, and there is none here\. Use the backend native on this machine$"
needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="skipped: no GPU")


class TestOnCpuTensors(BackendCases):
    @pytest.fixture
    def backend(self, monkeypatch):
        monkeypatch.setattr("burnish.build._tool", lambda name, source: Cuda("cpu"))  # by name it would ask for a card
        return Cuda("cpu")


@needs_card
class TestOnACard(BackendCases):
    @pytest.fixture
    def backend(self):
        return Cuda()


def factored_int8() -> Graph:
    graph = dcn_v2(6, 6, 8, 2, (32, 16), 50, seed=3)
    return apply(graph, Recipe((Int8(ranges="min-max", narrowest=4), FactorRequest())), rows(graph, 200, seed=3))


def test_the_request_is_computed_on_one_row_whatever_the_number_of_candidates(tmp_path, monkeypatch):
    graph = factored_int8()
    seen = []
    monkeypatch.setattr(cuda, "int8_dot", lambda q, *weight: (seen.append(q.shape[0]), int8_dot(q, *weight))[1])
    with opened(Cuda("cpu"), graph, tmp_path) as engine:
        request, candidates = (contiguous(part) for part in as_request(graph, rows(graph, 100, seed=1)))
        got = engine.request(request, candidates, 100)
    want = interpret_request(graph, request, candidates)
    assert difference(got["score"], want["score"])[0] <= 1e-2
    assert set(seen) == {1, 128}  # the request's share on its row, the candidates padded to a size
    assert any(node.op is Op.QDOT and node.side == "request" for node in graph.order)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 3), (5, 7, 16), (40, 24, 33), (64, 16, 64)])
@pytest.mark.parametrize("zero_point", [0, 113, 128, 255])
def test_int8_products_are_the_interpreters_integers(m, n, k, zero_point):
    random = np.random.default_rng(m * n)
    q, w = random.integers(0, 256, (m, 2, k), np.uint8), random.integers(-128, 128, (n, k)).astype(np.int8)
    got = int8_dot(*map(torch.from_numpy, (q, *int8_weight(w, zero_point))))
    assert got.dtype == torch.int32
    np.testing.assert_array_equal(got.numpy(), affine.dot(q, w, zero_point))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_products_round_their_operands_and_nothing_else(dtype):
    x, w = torch.randn(9, 3, 20, generator=torch.manual_seed(0)), torch.randn(5, 20, generator=torch.manual_seed(1))
    want = x.to(getattr(torch, dtype)).double() @ w.to(getattr(torch, dtype)).double().T
    assert (half_product(x, w, dtype).double() - want).abs().max() < 1e-5


@pytest.mark.parametrize("n", [SIZES[-1], SIZES[-1] + 1])
def test_a_call_larger_than_the_largest_size_is_made_in_parts(n, tmp_path):
    graph = dcn_v2(2, 3, 4, 1, (8,), 50)
    with opened(Cuda("cpu"), graph, tmp_path) as engine:
        given = rows(graph, n)
        assert difference(engine.rows(given, n)["score"], interpret(graph, given)["score"])[0] <= 1e-5
        request, candidates = (contiguous(part) for part in as_request(graph, given))
        want = interpret_request(graph, request, candidates)["score"]
        assert difference(engine.request(request, candidates, n)["score"], want)[0] <= 1e-5


def test_rows_that_an_earlier_call_left_behind_those_given_change_nothing(tmp_path):
    graph = factored_int8()
    with opened(Cuda("cpu"), graph, tmp_path) as engine:
        few, many = rows(graph, 3, seed=1), rows(graph, 16, seed=2)
        before = engine.rows(few, 3)["score"]
        engine.rows(many, 16)
        np.testing.assert_array_equal(engine.rows(few, 3)["score"], before)


def test_a_captured_call_is_fed_from_its_staging_and_replayed_not_computed_again(monkeypatch):
    """With stand-ins for a card: their graph runs what was captured when it is replayed, on what lies at the places then."""
    place, found, told = ("x", "candidate"), torch.zeros(4), []
    buffers = {place: torch.zeros(4)}

    def compute(x):
        told.append("compute")
        return [found.copy_(x * 2)]

    card = SimpleNamespace(replay=lambda: (told.append("replay"), found.copy_(buffers[place] * 2)))
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        "Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda beside: nullcontext(),
        "CUDAGraph": lambda: card, "graph": lambda captured, pool: nullcontext(),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    call = cuda._Call(buffers, compute, pool=object())
    assert told == ["compute"] * 3  # two to warm up, one that is captured
    assert call({place: np.array([1, 2, 3], np.float32)})[0].tolist() == [2, 4, 6, 0]
    assert call({place: np.array([5], np.float32)})[0].tolist() == [10, 4, 6, 0]
    assert told[3:] == ["replay"] * 2


def test_a_table_that_both_parts_read_lies_on_the_device_once(tmp_path):
    w, user, item = Weights(0), Input("user", "int64", (), "request", 50), Input("item", "int64", (), "candidate", 50)
    shared = table(50, 8, w)
    one, other = (lookup(shared, input_node(spec)) for spec in (user, item))
    graph = Graph((user, item), {"score": Node(Op.SUM, (Node(Op.MUL, (mlp(one, (8,), w), other)),), axes=(0,))})
    with opened(Cuda("cpu"), graph, tmp_path) as engine:
        tables = [b for module in (engine._user, engine._rest) for b in module.buffers() if b.shape == (50, 8)]
    assert len(tables) == 2 and tables[0].data_ptr() == tables[1].data_ptr()


def test_a_graph_comes_back_from_its_files_as_the_same_nodes(tmp_path):
    for name, graph in op_cases().items():
        (tmp_path / name).mkdir()
        graph_file.write(graph, tmp_path / name)
        given = rows(graph, 3)
        again = interpret(graph_file.read(tmp_path / name, graph.inputs), given)
        for key, value in interpret(graph, given).items():
            np.testing.assert_array_equal(again[key], value, err_msg=name)


def test_float32_products_are_not_tf32_and_the_callers_choice_comes_back():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with cuda._without_tf32(torch):
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_one_sentence(tmp_path):
    graph = dcn_v2(2, 2, 2, 1, (3,), 20)
    with pytest.raises(BuildError, match=NO_GPU):
        burnish.compile(graph, "fp32", backend="cuda")
    program = Cuda().build(graph, Host.here(), tmp_path)
    with pytest.raises(ArtifactError, match=NO_GPU):
        Cuda().open(tmp_path, program, graph.inputs, 1)


def test_the_benchmark_checks_and_times_each_engine(capsys):
    main = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/gpu.py"))["main"]
    assert main(["--device", "cpu", "--short"]) == 0
    table = capsys.readouterr().out
    assert all(table.count(f"| {engine} |") == 2 for engine in ("eager", "burnish fp32", "burnish bf16", "burnish int8"))
