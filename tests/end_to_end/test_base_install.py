"""The wheel in an environment of its own, with the base dependencies alone: it scores, and there is no torch and no compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import burnish
from burnish.backends.table import backend
from burnish.testing import as_request, dcn_v2, one_request, rows

ROOT = Path(__file__).parents[2]
MOST_MEGABYTES = 130
ABSENT = ("torch", "ziglang", "onnx", "onnxruntime", "openvino", "nncf", "scipy", "polars", "pyarrow", "optuna", "altair", "hypothesis")
LIGHT = {"burnish", "numpy", "msgspec", "typing_extensions"}  # what `import burnish` may bring in beside the standard library
OFFLINE = ("Temporary failure in name resolution", "Failed to establish a new connection", "ConnectTimeout", "Network is unreachable")


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    isolation = ["--no-isolation"] if find_spec("hatchling") else []
    built = run(sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", out, ROOT)
    if any(told in built.stdout + built.stderr for told in OFFLINE):
        pytest.skip("the build backend is not installed, and no package index can be reached")
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of an environment that holds the wheel and what it depends on."""
    where = tmp_path_factory.mktemp("base")
    run(sys.executable, "-m", "venv", "--without-pip", where, check=True)
    python = where / "bin" / "python"
    done = run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--retries", "1", wheel)
    if any(told in done.stderr for told in OFFLINE):
        pytest.skip("no package index can be reached to install the base dependencies from")
    assert done.returncode == 0, done.stderr
    return python


def scored(python: Path, code: str, *args: object) -> dict:
    """What `code` printed as JSON, run with nothing on PATH: a compiler of the system would not be found either."""
    done = run(python, "-I", "-c", code, *args, env={"PATH": ""})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_wheel_is_pure_python_and_carries_its_licence(wheel):
    assert wheel.name == f"burnish-{burnish.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert "burnish/py.typed" in names and any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".so", ".pyd", ".o")) or name.startswith(("tests/", "src/"))]


def test_the_base_install_is_small_and_has_no_torch_and_no_compiler(python, capsys):
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    megabytes = sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) / 1e6
    with capsys.disabled():
        print(f" [base install: {megabytes:.0f} MB]", end="")
    assert megabytes <= MOST_MEGABYTES
    code = "import json, sys; from importlib.util import find_spec; print(json.dumps([m for m in sys.argv[1:] if find_spec(m)]))"
    assert scored(python, code, *ABSENT) == []


def test_importing_burnish_imports_no_heavy_module(python):
    code = """
import json, sys
import burnish
foreign = {name.partition(".")[0] for name, module in sys.modules.items() if "site-packages" in (getattr(module, "__file__", None) or "")}
print(json.dumps(sorted(foreign)))
"""
    assert set(scored(python, code)) <= LIGHT


@pytest.mark.parametrize("recipe", ["fp32", "int8-tables"])
def test_a_native_artifact_scores_the_same_bits_there(python, recipe, tmp_path):
    absent = backend("native").missing()
    if absent:
        pytest.skip(absent)
    graph = dcn_v2(3, 6, 8, 2, (32, 16), 100)
    path = burnish.compile(graph, recipe, calibration=rows(graph, 500)).save(tmp_path / "ranker").path
    table = one_request(graph, rows(graph, 37, seed=1))
    request, candidates = as_request(graph, table)
    np.savez(tmp_path / "given.npz", **{f"r:{k}": v for k, v in request.items()}, **{f"c:{k}": v for k, v in candidates.items()})
    code = """
import json, sys
import numpy as np, burnish
given = np.load(sys.argv[2])
request, candidates = ({name[2:]: given[name] for name in given.files if name.startswith(side)} for side in ("r:", "c:"))
with burnish.load(sys.argv[1], verify=True) as scorer:
    scores = scorer(request=request, candidates=candidates)
print(json.dumps({"scores": scores.view(np.uint32).tolist(), "modules": [m for m in sys.argv[3:] if m in sys.modules]}))
"""
    told = scored(python, code, path, tmp_path / "given.npz", *ABSENT)
    with burnish.load(path) as scorer:
        np.testing.assert_array_equal(np.array(told["scores"], np.uint32), scorer(request, candidates).view(np.uint32))
    assert told["modules"] == []


def test_the_command_line_verifies_an_artifact_there(python, tmp_path):
    absent = backend("native").missing()
    if absent:
        pytest.skip(absent)
    path = burnish.compile(dcn_v2(2, 3, 4, 1, (8,), 50), "fp32").save(tmp_path / "ranker").path
    command = python.parent / "burnish"
    done = run(command, "verify", path, env={**os.environ, "PATH": ""})
    assert done.returncode == 0, done.stderr
    weights = bytearray((path / "weights.bin").read_bytes())
    weights[100] ^= 1
    (path / "weights.bin").write_bytes(weights)
    done = run(command, "verify", path, env={**os.environ, "PATH": ""})
    assert done.returncode == 2
    assert "weights.bin in the artifact at" in " ".join((done.stdout + done.stderr).split())


def test_compiling_there_names_what_to_install(python):
    code = """
import json
import burnish
from burnish.testing import dcn_v2
told = {}
for backend in ("native", "onnxruntime", "openvino", "inductor", "eager"):
    try:
        burnish.compile(dcn_v2(2, 3, 4, 1, (8,), 50), "fp32" if backend != "eager" else "original", backend=backend)
    except burnish.BuildError as error:
        told[backend] = str(error)
print(json.dumps(told))
"""
    told = scored(python, code)
    assert set(told) == {"native", "onnxruntime", "openvino", "inductor", "eager"}
    for package, sentence in (
        ("onnx", told["onnxruntime"]),
        ("onnx", told["openvino"]),
        ("PyTorch", told["inductor"]),
        ("PyTorch", told["eager"]),
    ):
        assert package in sentence and "pip install" in sentence
    assert "pip install" in told["native"]
