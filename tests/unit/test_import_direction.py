"""Imports go one way, in the order of docs/architecture.md, and serving imports no torch and no compiler."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import burnish

ROOT = Path(burnish.__file__).parent

# Each part may import those before it. `quantize.affine` is arithmetic on arrays, known to the graph's interpreter.
ORDER = (
    "errors", "inputs", "host", "quantize.affine", "graph", "capture", "passes", "quantize", "recipe", "train", "decided", "native",
    "backends", "runtime", "build", "rows", "trace", "job", "measure", "place", "report", "search", "terminal", "serve", "export",
    "testing", "cli",
)  # fmt: skip

# Imports inside functions that go against the order, each with its reason.
AGAINST = {
    ("backends", "capture"): "eager serves the model as it came, so it loads it as capture does",
    ("search", "serve"): "bench measures a server over the wire, which its client knows how to call",
}

# What serving and measuring must not load with their modules; HEAVY inside a function is fine.
LIGHT = (
    "errors", "inputs", "host", "graph", "passes", "quantize", "recipe", "runtime", "rows", "trace", "job", "measure", "place",
    "terminal", "serve", "cli",
)  # fmt: skip
HEAVY = (
    "torch", "onnx", "onnx_ir", "onnxruntime", "openvino", "nncf", "ziglang", "scipy", "polars", "pyarrow", "altair", "optuna",
    "mlperf_loadgen",
)  # fmt: skip
EXCEPT = ("graph.to_torch",)  # the one file of graph/ that needs torch


class Import(NamedTuple):
    file: str
    line: int
    name: str
    lazy: bool


def imports_of(path: Path) -> Iterator[Import]:
    """Every import of a file but those for type checkers; lazy when inside a function."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                names = [_whole(child.module or "", alias.name) for alias in child.names]
            else:
                names = []
            for name in names:
                yield Import(str(path.relative_to(ROOT)), child.lineno, name, lazy)
            yield from visit(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from visit(ast.parse(path.read_text()), False)


def _whole(package: str, name: str) -> str:
    """`from burnish.quantize import affine` imports burnish.quantize.affine; `from burnish.graph.node import Node` burnish.graph.node."""
    is_file = (ROOT / "/".join(package.split(".")[1:]) / f"{name}.py").exists()
    return f"{package}.{name}" if package == "burnish" or (package.startswith("burnish.") and is_file) else package


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def part(name: str) -> str:
    """graph.node -> graph; quantize.affine stays."""
    return name if name in ORDER else name.split(".")[0]


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def test_every_part_has_its_place_in_the_order():
    assert {part(module(path)) for path in FILES} <= set(ORDER)


@pytest.mark.parametrize("lazy", [False, True], ids=["with the module", "inside functions"])
def test_imports_go_one_way(lazy):
    wrong = []
    for path in FILES:
        here = part(module(path))
        for found in imports_of(path):
            there = part(found.name.removeprefix("burnish."))
            if found.lazy is not lazy or not found.name.startswith("burnish.") or there not in ORDER or there == here:
                continue
            if ORDER.index(there) > ORDER.index(here) and not (lazy and (here, there) in AGAINST):
                wrong.append(f"{found.file}:{found.line} imports {found.name}; {here} comes before {there} in docs/architecture.md")
    assert not wrong, "\n".join(wrong)


def test_the_table_of_exceptions_has_no_row_too_many():
    used = set()
    for path in FILES:
        for found in imports_of(path):
            used.add((part(module(path)), part(found.name.removeprefix("burnish."))))
    assert set(AGAINST) <= used


def test_the_runtime_knows_of_backends_only_their_table():
    known = {
        found.name for path in (ROOT / "runtime").glob("*.py") for found in imports_of(path) if found.name.startswith("burnish.backends")
    }
    assert known <= {"burnish.backends.table"}


def test_light_parts_load_nothing_heavy_with_their_modules():
    wrong = []
    for path in FILES:
        if part(module(path)) not in LIGHT or module(path) in EXCEPT:
            continue
        for found in imports_of(path):
            if not found.lazy and found.name.split(".")[0] in HEAVY:
                wrong.append(f"{found.file}:{found.line} loads {found.name}; import it inside the function that needs it")
    assert not wrong, "\n".join(wrong)


def test_serving_loads_no_torch_no_compiler_and_no_data_library():
    code = f"""
import sys, burnish, burnish.runtime.scorer, burnish.runtime.artifact, burnish.serve.server
import burnish.measure.latency, burnish.measure.quality
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_importing_burnish_loads_numpy_and_msgspec_and_no_more():
    code = "import sys; before = set(sys.modules); import burnish; print(sorted({n.split('.')[0] for n in set(sys.modules) - before}))"
    loaded = ast.literal_eval(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert set(loaded) - set(sys.stdlib_module_names) <= {"burnish", "numpy", "msgspec", "typing_extensions"}
