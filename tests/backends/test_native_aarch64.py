"""Programs for aarch64, cross-compiled and run by a C program under qemu's user mode: what they compute, not how fast."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from burnish.backends.native import Native
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, scalar, weight
from burnish.graph.ops import Op
from burnish.host import Host
from burnish.inputs import Input
from burnish.quantize.affine import quantize_rows
from burnish.recipe import apply, recipe
from burnish.testing.builders import Weights, rows
from burnish.testing.cases import model_cases

EXAMPLE = Path(__file__).parents[2] / "examples" / "c" / "score.c"
# instruction set -> a CPU of qemu that has it and none above it
CPUS = {"i8mm": "max", "dotprod": "neoverse-n1", "neon": "cortex-a72"}
LOADER = Path("/usr/aarch64-linux-gnu")
N = 50  # a whole block, and two rows


@pytest.fixture(scope="module")
def score(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/c/score.c for aarch64."""
    absent = Native().missing()
    if absent:
        pytest.skip(absent)
    if shutil.which("qemu-aarch64-static") is None or not LOADER.exists():
        pytest.skip("aarch64 programs run under qemu: apt-get install qemu-user-static libc6-arm64-cross")
    out = tmp_path_factory.mktemp("c") / "score"
    target = ["-target", "aarch64-linux-gnu.2.17"]
    headers = str(resources.files("burnish.native.abi"))
    subprocess.run([sys.executable, "-m", "ziglang", "cc", *target, "-O1", "-I", headers, str(EXAMPLE), "-o", str(out), "-ldl"], check=True)
    return out


def scores(program: Path, graph: Graph, isa: str, out: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The first output of `graph` for N rows as a program of `isa` computes it under qemu, beside those rows."""
    Native().build(graph, Host.target(isa), out)
    table, files = rows(graph, N, seed=1), []
    for spec in graph.inputs:
        files.append(out / f"{spec.name}.bin")
        files[-1].write_bytes(np.ascontiguousarray(table[spec.name]).tobytes())
    size = graph.outputs[0][1].shape[0] if graph.outputs[0][1].shape else 1
    run = ["qemu-aarch64-static", "-cpu", CPUS[isa], "-L", str(LOADER)]
    done = subprocess.run([*run, str(program), str(out), str(N), str(4 * size), *map(str, files)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert f'"isa": "{isa}"' in done.stderr.decode()
    return table, np.frombuffer(done.stdout, np.float32).reshape(N, -1)


def integers() -> Graph:
    """Quantized linears of odd, narrow and wide shapes, with zero points and infinities met: no float32 sum in it."""
    x = Input("x", "float32", (37,), "candidate")
    w = Weights(3)

    def quantized(value: Node, n: int, zero_point: int, seed: int) -> Node:
        random = np.random.default_rng(seed)
        k = value.shape[-1]
        q, scale = quantize_rows(random.standard_normal((n, k)).astype(np.float32))
        bytes_ = Node(Op.QUANTIZE, (value, scalar(30.0)), zero_point=zero_point)
        return Node(Op.QLINEAR, (bytes_, weight("w", q), weight("s", scale / 30), w.normal(n)), zero_point=zero_point)

    value = input_node(x)
    cross = Node(Op.ADD, (Node(Op.MUL, (value, quantized(value, 37, 121, 1))), value))
    deep = Node(Op.RELU, (quantized(cross, 129, 128, 2),))
    outputs = (cross, deep, quantized(deep, 3, 7, 3), quantized(deep, 70, 0, 4))
    whole = Node(Op.CONCAT, outputs, axis=0)
    return Graph((x,), {"all": whole})


@pytest.mark.parametrize("isa", list(CPUS))
def test_int8_on_aarch64_has_the_bits_of_the_interpreter(isa: str, score: Path, tmp_path: Path) -> None:
    graph = integers()
    table, got = scores(score, graph, isa, tmp_path)
    np.testing.assert_array_equal(got, interpret(graph, table)["all"])


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("dcn_v2 mixed columns", "fp32"),
        ("dcn_v2 mixed columns", "int8"),
        ("dlrm", "bf16"),
        ("deepfm", "int8-tables"),
        ("din", "int8"),
    ],
)
def test_models_on_aarch64_score_what_they_score_here(name: str, how: str, score: Path, tmp_path: Path) -> None:
    """int8 and bfloat16 from the same bits on; what is left to differ is the order of float32 sums, of which the int8 DCN-v2 has none."""
    graph = model_cases()[name]
    graph = apply(graph, recipe(how), rows(graph, 300, seed=9))
    table, got = scores(score, graph, "dotprod", tmp_path / "there")
    backend = Native()
    program = backend.build(graph, Host.here(), tmp_path / "here")
    engine = backend.open(tmp_path / "here", program, graph.inputs, 1)
    want = engine.rows(table, N)[graph.outputs[0][0]].reshape(N, -1)
    engine.close()
    bound = 0 if (name, how) == ("dcn_v2 mixed columns", "int8") else 2e-6
    np.testing.assert_allclose(got, want, rtol=bound, atol=bound)
