"""A small part of benchmarks/coverage.py: two or three models of each library, captured, built natively, and equal to the library's own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.backends.native import Native

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def _script(name: str) -> Any:
    """By path: a package named coverage may be installed."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))  # the script's own neighbours
coverage = _script("coverage")
zoo = importlib.import_module("zoo")

CHOSEN = ("deepctr-torch: DeepFM", "deepctr-torch: DIEN, AUGRU", "torch-rechub: DIEN", "torchrec: DLRM", "burnish's benchmarks: BST")
REFUSED = "pytorch-widedeep: SAINT"
BY_NAME = {f"{entry.library}: {entry.name}": entry for entry in zoo.entries()}


def covered(name: str):
    if Native().missing():
        pytest.skip(str(Native().missing()))
    torch.set_num_threads(1)
    try:
        return coverage.cover(BY_NAME[name], seconds=0.002)
    except zoo.Absent as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", CHOSEN)
def test_a_librarys_ranker_is_built_and_equal(name):
    row = covered(name)
    assert row.refused == ""
    assert row.off <= coverage.ALLOWED and row.nodes > 10 and row.macs > 1000
    assert {"native fp32", "native int8"} <= set(row.us)
    assert any(row.name in line for line in coverage.table([row]))


def test_a_model_that_mixes_rows_is_in_the_table_with_its_sentence():
    row = covered(REFUSED)
    assert "mixes the rows of a batch" in row.refused and "_attention_layers.py:" in row.refused
    assert any("is refused" in line for line in coverage.table([row]))


def test_a_library_that_is_absent_is_named_with_its_line():
    def build():
        raise ModuleNotFoundError("No module named 'deepctr_torch'")

    with pytest.raises(zoo.Absent, match=r"No module named 'deepctr_torch'\. Install it: pip install --no-deps deepctr-torch"):
        zoo.Entry("deepctr-torch", "WDL", build).make()
