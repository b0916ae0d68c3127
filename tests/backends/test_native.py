"""The native backend against the interpreter: the suite of every backend on this machine's instruction set, the others beside it."""

from __future__ import annotations

import ctypes
import functools
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

from burnish import cli
from burnish.backends.native import Native, NativeEngine
from burnish.backends.table import Program
from burnish.errors import ArtifactError, BuildError, InputError
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, scalar, weight
from burnish.graph.ops import Op
from burnish.host import ISAS, Host
from burnish.inputs import Input
from burnish.native import floor, plan
from burnish.quantize.affine import quantize_rows
from burnish.recipe import FactorRequest, Int8, Recipe, apply, recipe
from burnish.testing.backend_cases import BackendCases, contiguous, opened
from burnish.testing.builders import Weights, as_request, concat, linear, lookup, one_request, rows, table
from burnish.testing.cases import model_cases, op_cases
from burnish.testing.models import dcn_v2

HERE = Host.here()


class Cases(BackendCases):
    isa = "scalar"
    float_bound = (4e-6, 1e-6)  # of the larger of 1 and the largest value
    half_bound = (1e-5, 2e-6)  # only the products are in half precision

    @pytest.fixture
    def backend(self) -> Native:
        if not HERE.runs(self.isa):
            pytest.skip(f"this machine has no {self.isa}")
        return Native(isa=self.isa)


class TestNative(Cases):
    isa = HERE.isa


class Fewer(Cases):
    models = ("dcn_v2 mixed columns", "din")
    seeds = range(2)


class TestAvx512(Fewer):
    isa = "avx512"


class TestAvx2(Fewer):
    isa = "avx2"


class TestScalar(Fewer):
    isa = "scalar"


@pytest.fixture(autouse=True)
def compiler() -> None:
    absent = Native().missing()
    if absent:
        pytest.skip(absent)


def built(graph: Graph, out: Path, **options: object) -> tuple[NativeEngine, Program]:
    backend = Native(**options)  # type: ignore[arg-type]
    program = backend.build(graph, HERE, out)
    return backend.open(out, program, graph.inputs, 1), program


def int8_dcn(**options: object) -> Graph:
    """A DCN-v2 of odd widths, quantized after its embeddings, before its last linear; nothing in between is rounded freely."""
    graph = dcn_v2(5, 7, 8, 2, (33, 17), 50, **options)  # type: ignore[arg-type]
    return apply(graph, Recipe((*recipe("int8-tables").steps[:-1],)), rows(graph, 300, seed=9))


@pytest.mark.parametrize("isa", [isa for isa in ISAS if HERE.runs(isa)])
def test_int8_agrees_with_the_interpreter_bit_for_bit(isa: str, tmp_path: Path) -> None:
    """Every integer, and every float32 that integers are made of, up to the last float32 linear."""
    x = Input("x", "float32", (37,), "candidate")
    w = Weights(3)

    def quantized(value: Node, n: int, zero_point: int, seed: int) -> Node:
        random = np.random.default_rng(seed)
        k = value.shape[-1]
        q, scale = quantize_rows(random.standard_normal((n, k)).astype(np.float32))
        multiplier = weight("m", random.uniform(8, 60, k).astype(np.float32)) if seed % 2 else scalar(30.0)
        bytes_ = Node(Op.QUANTIZE, (value, multiplier), zero_point=zero_point)
        return Node(Op.QLINEAR, (bytes_, weight("w", q), weight("s", scale / 30), w.normal(n)), zero_point=zero_point)

    value = input_node(x)
    cross = Node(Op.ADD, (Node(Op.MUL, (value, quantized(value, 37, 121, 1))), value))
    deep = Node(Op.RELU, (quantized(cross, 129, 128, 2),))
    wide = quantized(deep, 3, 0, 3)
    graph = Graph((x,), {"cross": cross, "deep": deep, "wide": wide, "narrow": quantized(deep, 70, 0, 4)})
    engine, _ = built(graph, tmp_path, isa=isa)
    for n in (1, 2, 5, 6, 7, 37, 48, 49, 128):
        given = rows(graph, n, seed=n)
        given["x"][0, :5] = [np.nan, np.inf, -np.inf, 1e30, -0.0]
        got, want = engine.rows(given, n), interpret(graph, given)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name], err_msg=f"{name}, {n} rows")


@pytest.mark.parametrize("name", ["dcn_v2 mixed columns", "deepfm", "din", "dlrm", "mmoe", "two_tower"])
def test_a_row_has_the_same_bits_in_any_company(name: str, tmp_path: Path) -> None:
    graph = model_cases()[name]
    engine, _ = built(graph, tmp_path)
    whole = one_request(graph, rows(graph, 128, seed=1))
    scores = engine.rows(whole, 128)
    request, _ = (contiguous(part) for part in as_request(graph, whole))
    for n, start in ((1, 0), (1, 127), (2, 63), (5, 43), (6, 6), (7, 47), (37, 90), (48, 1), (49, 79)):
        part = contiguous({key: array[start : start + n] for key, array in whole.items()})
        candidates = contiguous(as_request(graph, part)[1])
        for got in (engine.rows(part, n), engine.request(request, candidates, n)):
            for key, value in got.items():
                np.testing.assert_array_equal(value, scores[key][start : start + n], err_msg=f"{key}, rows {start} to {start + n}")


@pytest.mark.parametrize("name", ["deepfm", "din", "dlrm", "mmoe"])
def test_strips_of_a_block_change_no_bit(name: str, tmp_path: Path) -> None:
    """Where the nearest cache is small, what only a few steps use is kept for a few rows at a time."""
    graph = model_cases()[name]
    small = msgspec.structs.replace(HERE, cache_bytes=(2 << 10, 1 << 20))
    assert plan.make(graph, small).strips and not plan.make(graph, HERE, rows=6).strips
    backend = Native()
    narrow = backend.open(tmp_path / "a", backend.build(graph, small, tmp_path / "a"), graph.inputs, 1)
    whole, _ = built(graph, tmp_path / "b")
    for n in (1, 5, 48, 49, 128):
        given = one_request(graph, rows(graph, n, seed=n))
        request, candidates = (contiguous(part) for part in as_request(graph, given))
        want = whole.rows(given, n)
        for got in (narrow.rows(given, n), narrow.request(request, candidates, n)):
            for key, value in got.items():
                np.testing.assert_array_equal(value, want[key])


def test_a_bad_id_in_a_strip_is_told_with_its_row(tmp_path: Path) -> None:
    ids = Input("ids", "int64", (4,), "candidate")
    found = lookup(table(9, 64, Weights(0)), input_node(ids))
    graph = Graph((ids,), {"sum": Node(Op.SUM, (found,), axes=(0,))})
    backend, small = Native(), msgspec.structs.replace(HERE, cache_bytes=(2 << 10, 1 << 20))
    assert plan.make(graph, small).strips[0].rows == 1
    engine = backend.open(tmp_path, backend.build(graph, small, tmp_path), graph.inputs, 1)
    given = {"ids": np.zeros((60, 4), np.int64)}
    given["ids"][53, 2] = 9
    with pytest.raises(InputError, match=r"row 53 asks for entry 9 of"):
        engine.rows(given, 60)


def test_factoring_int8_changes_no_bit(tmp_path: Path) -> None:
    graph = dcn_v2(5, 7, 8, 2, (33, 17), 50, mixed=True, parallel=True)
    calibration = rows(graph, 300, seed=9)
    steps = (Int8(narrowest=4), FactorRequest())
    table_ = one_request(graph, rows(graph, 50, seed=2))
    request, candidates = (contiguous(part) for part in as_request(graph, table_))
    plain, _ = built(apply(graph, Recipe(steps[:1]), calibration), tmp_path / "plain")
    factored, _ = built(apply(graph, Recipe(steps), calibration), tmp_path / "factored")
    want = plain.rows(table_, 50)["score"]
    # the last linear is float32: factored, its sums are taken in another order
    np.testing.assert_allclose(factored.rows(table_, 50)["score"], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(factored.rows(table_, 50)["score"], factored.request(request, candidates, 50)["score"])
    np.testing.assert_array_equal(plain.request(request, candidates, 50)["score"], want)


def test_ids_outside_are_refused_with_the_inputs_sentence(tmp_path: Path) -> None:
    graph = model_cases()["dcn_v2 mixed columns"]
    engine, _ = built(graph, tmp_path)
    given = rows(graph, 60, seed=0)
    for bad in (50, -1, 2**62):
        wrong = {**given, "cat": given["cat"].copy()}
        wrong["cat"][57, 3] = bad
        with pytest.raises(InputError, match=rf"input 'cat' has id {bad} at row 57, column 3; ids there lie in \[0, 50\)"):
            engine.rows(wrong, 60)
        request, candidates = (contiguous(part) for part in as_request(graph, one_request(graph, given)))
        candidates["cat"][40, 0] = bad
        column = graph.inputs[1].halves[1].columns[0]  # type: ignore[index]
        with pytest.raises(InputError, match=rf"input 'cat' has id {bad} at row 40, column {column}; ids there lie in"):
            engine.request(request, candidates, 60)
    assert np.isfinite(engine.rows(given, 60)["score"]).all()  # and the next call is sound


def test_ids_that_the_model_itself_makes_are_checked(tmp_path: Path) -> None:
    x = Input("x", "float32", (3,), "candidate")
    t = table(10, 4)
    graph = Graph((x,), {"y": lookup(t, Node(Op.CAST, (input_node(x),), dtype="int64"))})
    engine, _ = built(graph, tmp_path)
    given = {"x": np.ones((70, 3), np.float32)}
    assert engine.rows(given, 70)["y"].shape == (70, 3, 4)
    for bad, met in ((10.0, "10"), (-3.0, "-3"), (np.float32(np.nan), r"-?\d+")):
        given["x"][:] = 1
        given["x"][66, 1] = bad
        with pytest.raises(InputError, match=rf"row 66 asks for entry {met} of table 'table1', which has no such entry"):
            engine.rows(given, 70)


def test_ids_in_a_float_matrix_are_checked_against_their_column(tmp_path: Path) -> None:
    x = Input("x", "float32", (2,), "candidate", (None, 10))
    ids = Node(Op.CAST, (Node(Op.SLICE, (input_node(x),), axis=0, start=1, stop=2),), dtype="int64")
    engine, _ = built(Graph((x,), {"y": lookup(table(10, 4), ids)}), tmp_path)
    engine.rows({"x": np.array([[-1e9, 9.0], [1e9, 0.0]], np.float32)}, 2)
    with pytest.raises(InputError, match=r"input 'x' has id 10.0 at row 1, column 1; ids there lie in \[0, 10\)"):
        engine.rows({"x": np.array([[0.0, 9.0], [0.0, 10.0]], np.float32)}, 2)


def test_the_first_part_of_a_concat_may_be_written_last(tmp_path: Path) -> None:
    """Its last vector must not run over into the part behind it. Met on random graph 1017."""
    spec = Input("x", "float32", (12,), "candidate")
    first = Node(Op.SQRT, (Node(Op.ABS, (input_node(spec),)),))
    second = Node(Op.SQRT, (Node(Op.SOFTMAX, (first,), axis=0),))
    graph = Graph((spec,), {"y": concat([second, first])})
    engine, _ = built(graph, tmp_path)
    given = rows(graph, 7, seed=1)
    np.testing.assert_allclose(engine.rows(given, 7)["y"], interpret(graph, given)["y"], rtol=1e-6)


def test_many_tables_and_the_widest_rows(tmp_path: Path) -> None:
    ids = Input("ids", "int64", (6,), "candidate", 5)
    value, w = input_node(ids), Weights(1)
    parts = [
        lookup(table(5, width, w), Node(Op.SLICE, (value,), axis=0, start=i, stop=i + 1)) for i, width in enumerate((1, 3, 16, 33, 300))
    ]
    flat = [Node(Op.RESHAPE, (part,), shape=(part.shape[-1],)) for part in parts]
    graph = Graph((ids,), {"y": linear(concat(flat), 65, w), "x": concat(flat)})
    engine, _ = built(graph, tmp_path)
    given = rows(graph, 50, seed=1)
    got, want = engine.rows(given, 50), interpret(graph, given)
    np.testing.assert_array_equal(got["x"], want["x"])
    np.testing.assert_allclose(got["y"], want["y"], rtol=0, atol=2e-6 * np.abs(want["y"]).max())


FUNCTIONS: dict[Op, tuple[Callable[[np.ndarray], np.ndarray], float, float]] = {
    Op.EXP: (np.exp, -87, 88),
    Op.LOG: (np.log, 1e-6, 1e6),
    Op.TANH: (np.tanh, -12, 12),
    Op.SIGMOID: (lambda x: 1 / (1 + np.exp(-x)), -80, 80),
    Op.SIN: (np.sin, -3000, 3000),
    Op.COS: (np.cos, -3000, 3000),
    Op.ERF: (np.vectorize(math.erf), -5, 5),
}


def test_functions_are_near_the_true_ones_and_the_same_on_every_instruction_set(tmp_path: Path) -> None:
    """3 units in the last place of the true value; NaN, infinities and zeros as numpy has them."""
    spec = Input("x", "float32", (64,), "candidate")
    graph = Graph((spec,), {op.name: Node(op, (input_node(spec),)) for op in FUNCTIONS})
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 200, -200, 1e30, 9000] + [0.5] * 54, np.float32)
    scores = []
    for isa in [isa for isa in ISAS if HERE.runs(isa)]:
        engine, _ = built(graph, tmp_path / isa, isa=isa)
        found = {}
        for op, (true, low, high) in FUNCTIONS.items():
            x = np.linspace(low, high, 64 * 500).astype(np.float32).reshape(-1, 64)
            found[op] = got = engine.rows({"x": x}, len(x))[op.name]
            want = true(x.astype(np.float64))
            off = np.abs(got - want) / np.spacing(np.abs(want).astype(np.float32))
            near = np.abs(want) > 1e-3  # beside a zero of the function a unit in the last place is nothing
            assert off[near].max() < 3, (isa, op)
            assert np.abs(got - want)[~near].max(initial=0) < 1e-6, (isa, op)
            with np.errstate(all="ignore"):
                np.testing.assert_allclose(engine.rows({"x": special[None]}, 1)[op.name][0], true(special), rtol=1e-6, atol=1e-6)
        scores.append(found)
        for op in FUNCTIONS:
            np.testing.assert_array_equal(found[op], scores[0][op], err_msg=f"{op.name} on {isa}")


@pytest.mark.parametrize("op", [Op.SUM, Op.MEAN, Op.MAX, Op.MIN, Op.PROD])
def test_reductions_over_axes_that_are_not_adjacent(op: Op, tmp_path: Path) -> None:
    spec = Input("x", "float32", (3, 5, 2, 4), "candidate")
    x = input_node(spec)
    outputs = {str(axes): Node(op, (x,), axes=axes) for axes in ((0, 2), (1, 3), (0, 1, 3))}
    graph = Graph((spec,), outputs | {"kept": Node(op, (x,), axes=(0, 3), keepdims=True)})
    engine, _ = built(graph, tmp_path)
    given = rows(graph, 7, seed=1)
    got, want = engine.rows(given, 7), interpret(graph, given)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("isa", ["neon", "dotprod"])
def test_code_for_aarch64_compiles_here(isa: str) -> None:
    from burnish.native import emit, toolchain

    host = Host.target(isa)
    planned = plan.make(int8_dcn(), host)
    assert toolchain.build(emit.emit(planned).text, isa, "zig").read_bytes()[18] == 0xB7  # ELF's machine: aarch64


@pytest.mark.parametrize("isa", [isa for isa in ISAS if HERE.runs(isa)])
def test_the_floor_of_this_core_is_plausible(isa: str) -> None:
    found = floor.measure(isa, rounds=3)
    assert min(found.int8_macs, found.bf16_macs, found.fp32_macs, found.memory_bytes) > 1e8
    assert len(found.cache_bytes) == len(HERE.cache_bytes) and min(found.cache_bytes, default=1e9) > 1e8


def test_the_floor_of_a_model_is_the_longer_of_products_and_bytes() -> None:
    host = msgspec.structs.replace(HERE, cache_bytes=(1000, 10_000))
    found = floor.Floor(host, "avx2", int8_macs=1e9, bf16_macs=5e8, fp32_macs=1e8, cache_bytes=(1e9, 1e8), memory_bytes=1e7)
    assert found.us(1000, 500, "int8") == 1 and found.us(1000, 500, "fp32") == 10
    assert found.us(1, 501, "int8") == pytest.approx(5.01), "more than half of the first level comes from the second"
    assert found.us(1, 5001, "int8") == pytest.approx(500.1), "and more than half of the last from memory"


def test_bench_prints_the_floor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "measure", functools.partial(floor.measure, rounds=2))
    assert cli.main(["bench", "--floor", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert list(content["gmacs"]) == ["int8", "bf16", "fp32"] and list(content["gbytes"])[-1] == "memory"
    assert cli.main(["bench", "--floor"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"One core of {HERE.cpu}, {HERE.isa}" and len(told) == 1 + 3 + len(HERE.cache_bytes) + 1


def test_tables_of_other_dtypes_are_looked_up(tmp_path: Path) -> None:
    """A table of integers, one of float64, and one that is computed."""
    ids = Input("ids", "int64", (3,), "candidate", 9)
    value, w = input_node(ids), Weights(2)
    whole = weight("i", np.arange(18).reshape(9, 2) << 33)
    double = weight("d", np.random.default_rng(0).standard_normal((9, 5)))
    made = Node(Op.MUL, (w.normal(9, 20), scalar(3.0)))
    outputs = {"whole": lookup(whole, value), "double": lookup(double, value), "made": lookup(made, value)}
    graph = Graph((ids,), outputs)
    engine, _ = built(graph, tmp_path / "a")
    given = rows(graph, 50, seed=1)
    got, want = engine.rows(given, 50), interpret(graph, given)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    with pytest.raises(BuildError, match=r"the native backend has no BAG of int64 rows"):
        Native().build(Graph((ids,), {"y": Node(Op.BAG, (whole, value), mode="sum")}), HERE, tmp_path / "b")


def test_what_has_no_kernel_is_refused_by_name(tmp_path: Path) -> None:
    x = Input("x", "float64", (3,), "candidate")
    with pytest.raises(
        BuildError, match=r"the native backend has no EXP of float64: EXP\[3\] float64 candidate. Cast its operands to float32"
    ):
        Native().build(Graph((x,), {"y": Node(Op.EXP, (input_node(x),))}), HERE, tmp_path)
    with pytest.raises(BuildError, match=r"the native backend has no SOFTMAX of float64"):
        Native().build(Graph((x,), {"y": Node(Op.SOFTMAX, (input_node(x),), axis=0)}), HERE, tmp_path)


def test_float64_inputs_are_cast_and_added(tmp_path: Path) -> None:
    x = Input("x", "float64", (19,), "candidate")
    value = input_node(x)
    graph = Graph(
        (x,),
        {
            "sum": Node(Op.ADD, (value, value)),
            "narrow": Node(Op.CAST, (value,), dtype="float32"),
            "total": Node(Op.SUM, (value,), axes=(0,)),
        },
    )
    engine, _ = built(graph, tmp_path)
    given = {"x": np.random.default_rng(0).standard_normal((50, 19))}
    got, want = engine.rows(given, 50), interpret(graph, given)
    np.testing.assert_array_equal(got["sum"], want["sum"])
    np.testing.assert_array_equal(got["narrow"], want["narrow"])
    np.testing.assert_allclose(got["total"], want["total"], rtol=1e-12)


def test_instructions_that_are_missing_are_named(tmp_path: Path) -> None:
    graph = op_cases()["relu"]
    _, program = built(graph, tmp_path)
    import msgspec

    foreign = msgspec.structs.replace(program, cpu_flags=(*program.cpu_flags, "amx_int8"), target="amx")
    with pytest.raises(ArtifactError, match=r"was compiled for amx, and this machine lacks amx_int8. Compile it for this machine, or"):
        Native().open(tmp_path, foreign, graph.inputs, 1)


def test_weights_of_another_program_are_refused(tmp_path: Path) -> None:
    graph = op_cases()["linear"]
    engine, program = built(graph, tmp_path / "a")
    engine.close()
    _, _ = built(op_cases()["linear of fields"], tmp_path / "b")
    (tmp_path / "a" / "weights.bin").write_bytes((tmp_path / "b" / "weights.bin").read_bytes())
    with pytest.raises(
        ArtifactError, match=r"weights.bin was not packed for the program beside it, or is cut short. Compile the artifact again"
    ):
        Native().open(tmp_path / "a", program, graph.inputs, 1)
    weights = tmp_path / "a" / "weights.bin"
    Native().build(graph, HERE, tmp_path / "a")
    weights.write_bytes(weights.read_bytes()[:-64])
    with pytest.raises(ArtifactError, match=r"weights.bin was not packed for the program beside it, or is cut short"):
        Native().open(tmp_path / "a", program, graph.inputs, 1)
    Native().build(graph, HERE, tmp_path / "a")
    whole = weights.read_bytes()
    for at in (40, 48, 53):  # where the first array lies, how many rows it has: beyond the file, its calls would read elsewhere
        weights.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
        with pytest.raises(ArtifactError, match=r"weights.bin was not packed for the program beside it, or is cut short"):
            Native().open(tmp_path / "a", program, graph.inputs, 1)
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"weights.bin cannot be opened. Is the artifact whole\?"):
        Native().open(tmp_path / "a", program, graph.inputs, 1)


def test_a_retrained_checkpoint_reuses_the_library(tmp_path: Path) -> None:
    """Other weights and larger tables of the same model: the same C++, so nothing is compiled."""
    for i in range(2):
        Native().build(dcn_v2(5, 7, 8, 2, (33, 17), 50 + i, seed=i), HERE, tmp_path / str(i))
    sources = [(tmp_path / str(i) / "program" / "native" / "ranker.cpp").read_text() for i in range(2)]
    assert sources[0] == sources[1]


def test_calls_from_several_threads_run_side_by_side(tmp_path: Path) -> None:
    graph = model_cases()["dcn_v2"]
    engine, _ = built(graph, tmp_path)
    tables = [rows(graph, 64, seed=i) for i in range(8)]
    want = [engine.rows(given, 64)["score"] for given in tables]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for got, expected in zip(pool.map(lambda given: engine.rows(given, 64)["score"], tables), want):
                np.testing.assert_array_equal(got, expected)
    assert len(engine._free) <= 4  # as many handles as calls ever ran at once
    engine.close()


@pytest.mark.parametrize("n", [1, 95, 96, 97, 145, 500])
def test_a_call_shared_by_threads_gives_the_same_bits(n: int, tmp_path: Path) -> None:
    graph = model_cases()["dcn_v2 mixed columns"]
    backend = Native()
    program = backend.build(graph, HERE, tmp_path)
    one, three = (backend.open(tmp_path, program, graph.inputs, threads) for threads in (1, 3))
    given = one_request(graph, rows(graph, n, seed=n))
    request, candidates = (contiguous(part) for part in as_request(graph, given))
    want = one.rows(given, n)["score"]
    np.testing.assert_array_equal(three.rows(given, n)["score"], want)
    np.testing.assert_array_equal(three.request(request, candidates, n)["score"], want)
    given["cat"][n - 1, 6] = 50
    with pytest.raises(InputError, match=rf"input 'cat' has id 50 at row {n - 1}, column 6"):
        three.rows(given, n)
    three.close()
    one.close()


def test_several_requests_in_one_call_score_as_each_alone(tmp_path: Path) -> None:
    """Through the C face: 3 requests with 50, no and 7 candidates."""
    graph = model_cases()["dcn_v2 mixed columns"]
    engine, _ = built(graph, tmp_path)
    counts, offsets = (50, 0, 7), np.array([0, 50, 50, 57], np.int64)
    pairs = []
    for i, n in enumerate(counts):
        table_ = one_request(graph, rows(graph, max(n, 1), seed=i))
        pairs.append([contiguous(part) for part in as_request(graph, table_)])
    arrays = []
    for half in engine.halves:
        if half.side == "request":
            arrays.append(np.stack([request[half.name] for request, _ in pairs]))
        else:
            arrays.append(np.concatenate([candidates[half.name][:n] for (_, candidates), n in zip(pairs, counts)]))
    pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
    scores = np.zeros(57, np.float32)
    out = (ctypes.c_void_p * 1)(scores.ctypes.data)
    handle = engine.library.ranker_open(str(tmp_path / "weights.bin").encode(), None)
    failed = engine.library.ranker_requests(handle, 3, offsets.ctypes.data, ctypes.addressof(pointers), ctypes.addressof(out))
    engine.library.ranker_close(handle)
    assert failed == 0
    want = [engine.request(*pair, n)["score"] for pair, n in zip(pairs, counts) if n]
    np.testing.assert_array_equal(scores, np.concatenate(want))


def test_another_system_compiler_gives_the_same_int8_bits(tmp_path: Path) -> None:
    import shutil

    if shutil.which("g++") is None:
        pytest.skip("there is no g++ here")
    graph = int8_dcn()
    given = rows(graph, 37, seed=1)
    ours, _ = built(graph, tmp_path / "zig")
    theirs, _ = built(graph, tmp_path / "gcc", compiler="g++")
    np.testing.assert_allclose(ours.rows(given, 37)["score"], theirs.rows(given, 37)["score"], rtol=1e-6)


def test_blocks_of_any_height_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    graph = model_cases()["dcn_v2"]
    given = rows(graph, 50, seed=1)
    scores = []
    for height in (48, 6, 1):
        monkeypatch.setattr(plan, "BLOCKS", (height,))
        with opened(Native(), graph, tmp_path / str(height)) as engine:
            scores.append(engine.rows(given, 50)["score"])
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])


@pytest.mark.parametrize("op", [Op.SIN, Op.COS])
def test_an_angle_far_out_changes_no_other_row(op: Op, tmp_path: Path) -> None:
    """Beyond 8192 the C library computes it, and that of this row alone. Found by fuzzing."""
    x = Input("x", "float32", (3,), "candidate")
    graph = Graph((x,), {"y": Node(op, (input_node(x),))})
    engine, _ = built(graph, tmp_path)
    given = rows(graph, 40, seed=1)
    before = engine.rows(given, 40)["y"]
    far = {"x": given["x"].copy()}
    far["x"][::4, 1] = [1e6, np.inf, np.nan, -8193, 3e38] * 2
    after = engine.rows(far, 40)["y"]
    kept = far["x"] == given["x"]
    np.testing.assert_array_equal(after[kept], before[kept])
    np.testing.assert_allclose(after, interpret(graph, far)["y"], atol=1e-6)
