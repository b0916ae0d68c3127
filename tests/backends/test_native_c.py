"""The C face from C, and the generated code under sanitizers."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from burnish.backends.native import Native
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, weight
from burnish.graph.ops import Op
from burnish.host import ISAS, Host
from burnish.inputs import Input
from burnish.native import emit, pack, plan, toolchain
from burnish.testing.builders import concat, rows
from burnish.testing.cases import model_cases, op_cases
from burnish.testing.random_graphs import random_graph

EXAMPLE = Path(__file__).parents[2] / "examples" / "c" / "score.c"
HEADERS = str(resources.files("burnish.native.abi"))


@pytest.fixture(scope="module")
def score(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/c/score.c, compiled by the system's compiler."""
    if shutil.which("cc") is None:
        pytest.skip("there is no cc here")
    out = tmp_path_factory.mktemp("c") / "score"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-Wno-pedantic", "-O1"]
    subprocess.run(["cc", *flags, "-I", HEADERS, str(EXAMPLE), "-o", str(out), "-ldl"], check=True)
    return out


def run(program: Path, artifact: Path, graph: Graph, table: dict[str, np.ndarray], n: int, item: int) -> subprocess.CompletedProcess[bytes]:
    files = []
    for spec in graph.inputs:
        files.append(artifact / f"{spec.name}.bin")
        files[-1].write_bytes(np.ascontiguousarray(table[spec.name]).tobytes())
    return subprocess.run([str(program), str(artifact), str(n), str(item), *map(str, files)], capture_output=True)


def test_a_c_program_scores_what_python_scores(score: Path, tmp_path: Path) -> None:
    graph = model_cases()["dcn_v2 mixed columns"]
    backend = Native()
    program = backend.build(graph, Host.here(), tmp_path)
    table = rows(graph, 50, seed=1)
    done = run(score, tmp_path, graph, table, 50, 4)
    assert done.returncode == 0, done.stderr
    engine = backend.open(tmp_path, program, graph.inputs, 1)
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.float32), engine.rows(table, 50)["score"])
    told = json.loads(done.stderr)
    assert [spec["name"] for spec in told["inputs"]] == ["dense", "cat"] and told["outputs"][0]["name"] == "score"
    assert {half["side"] for half in told["halves"]} == {"request", "candidate"}
    table["cat"][33, 0] = 50
    done = run(score, tmp_path, graph, table, 50, 4)
    assert done.returncode == 1 and b"row 33 has an id outside its table" in done.stderr and done.stdout == b""


SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O1")


@pytest.fixture(scope="module")
def sanitized_score(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example under the address and undefined-behaviour sanitizers, whose runtimes come with the system's gcc."""
    if shutil.which("g++") is None or shutil.which("gcc") is None:
        pytest.skip("there is no gcc here, whose sanitizers this test uses")
    out = tmp_path_factory.mktemp("c") / "score"
    done = subprocess.run(["gcc", *SANITIZERS, "-I", HEADERS, str(EXAMPLE), "-o", str(out), "-ldl"], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"this gcc has no sanitizers: {done.stderr.splitlines()[-1]}")
    return out


def every_op() -> Graph:
    """All op cases, one behind another in one output."""
    cases = op_cases()
    values = [node for graph in cases.values() for _, node in graph.outputs]
    floats = [value if value.dtype == "float32" else Node(Op.CAST, (value,), dtype="float32") for value in values]
    whole = concat(Node(Op.RESHAPE, (value,), shape=(math.prod(value.shape),)) for value in floats)
    return Graph({spec.name: spec for graph in cases.values() for spec in graph.inputs}.values(), {"all": whole})


def overflowing() -> Graph:
    """Sums, differences and products of integers beyond their range wrap, as numpy's do."""
    ids = Input("ids", "int64", (5,), ("request", *["candidate"] * 4))
    value = input_node(ids)
    large = weight("large", np.full(5, 2**62, np.int64))
    made = [Node(op, (Node(Op.MUL, (value, large)), large)) for op in (Op.ADD, Op.SUB, Op.MUL)]
    return Graph((ids,), {"y": concat([*made, Node(Op.NEG, (Node(Op.MUL, (value, large)),))])})


SANITIZED = {
    "every op": every_op(),
    "integers that overflow": overflowing(),
    **{f"random graph {seed}": random_graph(seed) for seed in (100, 101, 102)},
    "din": model_cases()["din"],
    "dcn_v2 mixed columns": model_cases()["dcn_v2 mixed columns"],
}


@pytest.mark.parametrize("name", list(SANITIZED))
@pytest.mark.parametrize("isa", [Host.here().isa, "scalar"])
def test_sanitizers_find_nothing(name: str, isa: str, sanitized_score: Path, tmp_path: Path) -> None:
    graph = SANITIZED[name]
    # the example reads one output; the others are computed all the same
    graph = Graph(graph.inputs, dict(graph.outputs[:1]))
    planned = plan.make(graph, Host.here(), isa, rows=6)
    source = emit.emit(planned)
    library = toolchain.build(source.text, isa, "g++", SANITIZERS)
    (tmp_path / "program" / "native").mkdir(parents=True)
    shutil.copyfile(library, tmp_path / "program" / "native" / "ranker.so")
    pack.write(source.entries, tmp_path / "weights.bin")
    for n in (1, 13):
        table = rows(graph, n, seed=n)
        ((key, want),) = interpret(graph, table).items()
        done = run(sanitized_score, tmp_path, graph, table, n, want.nbytes // n)
        assert done.returncode == 0, f"{key}, {n} rows: {done.stderr.decode()[-2000:]}"
        got = np.frombuffer(done.stdout, want.dtype).reshape(want.shape)
        if want.dtype.kind == "f":
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("isa", [isa for isa, (arch, _) in ISAS.items() if arch in (Host.here().arch, "")])
def test_a_system_compiler_takes_the_text_of_every_instruction_set(isa: str, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ here")
    source = tmp_path / "ranker.cpp"
    source.write_text(emit.emit(plan.make(model_cases()["dcn_v2"], Host.here(), isa)).text)
    words = [word for word in toolchain.command(isa, source, tmp_path / "out", "g++", ()) if word != "-O3"]
    done = subprocess.run([*words, "-fsyntax-only"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_little_fuzzing_finds_nothing() -> None:
    """The short form of benchmarks/fuzz_native.py: a few graphs, all kinds of calls, through a Scorer under the sanitizers."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ here, whose sanitizers this test uses")
    driver = Path(__file__).parents[2] / "benchmarks" / "fuzz_native.py"
    done = subprocess.run([sys.executable, str(driver), "--minutes", "0.2", "--seed", "50"], capture_output=True, text=True)
    if "did not start" in done.stderr:
        pytest.skip("the sanitizers of this g++ cannot be loaded into Python")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert json.loads(done.stdout[done.stdout.index("{\n") :])["cases"] > 20
