"""Programs for WebAssembly, run by wasmtime: the suite of every backend, and the very bits of this machine's own program."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from burnish.backends.native import Native
from burnish.backends.table import BACKENDS
from burnish.errors import InputError
from burnish.graph.node import Graph
from burnish.recipe import apply, recipe
from burnish.testing.backend_cases import BackendCases, opened
from burnish.testing.builders import one_request, rows
from burnish.testing.cases import model_cases
from burnish.testing.wasm_backend import Wasm


@pytest.fixture(autouse=True)
def installed() -> None:
    absent = Wasm().missing()
    if absent:
        pytest.skip(absent)


class TestWasm(BackendCases):
    models = ("dcn_v2 mixed columns", "din")
    seeds: ClassVar[range] = range(2)
    float_bound = (4e-6, 1e-6)

    @pytest.fixture
    def backend(self, monkeypatch: pytest.MonkeyPatch) -> Wasm:
        monkeypatch.setitem(BACKENDS, "wasm", "burnish.testing.wasm_backend:Wasm")
        return Wasm()

    @pytest.mark.skip("an artifact for WebAssembly cannot be loaded here: the export's tests run it")
    def test_an_artifact_scores_the_same_after_it_was_saved_and_loaded(self) -> None:  # type: ignore[override]
        pass


@pytest.mark.parametrize("how", ["int8", "int8-tables"])
def test_an_int8_dcn_has_the_bits_of_this_machine(how: str, tmp_path: Path) -> None:
    """Its last linear is float32, whose sums run in one order and are rounded product by product everywhere."""
    graph = model_cases()["dcn_v2 mixed columns"]
    _compare(apply(graph, recipe(how), rows(graph, 300, seed=9)), tmp_path, 0)


@pytest.mark.parametrize("name", ["deepfm", "two_tower", "mmoe"])
def test_other_int8_models_have_them_up_to_float32_sums(name: str, tmp_path: Path) -> None:
    graph = model_cases()[name]
    _compare(apply(graph, recipe("int8"), rows(graph, 300, seed=9)), tmp_path, 4e-6)


def _compare(graph: Graph, tmp_path: Path, bound: float) -> None:
    table = one_request(graph, rows(graph, 50, seed=1))
    with opened(Native(), graph, tmp_path / "here") as here, opened(Wasm(), graph, tmp_path / "wasm") as there:
        want, got = here.rows(table, 50), there.rows(table, 50)
        for key in want:
            np.testing.assert_allclose(got[key], want[key], rtol=bound, atol=bound, err_msg=key)


def test_a_bad_id_is_found_in_wasm_too(tmp_path: Path) -> None:
    graph = model_cases()["dcn_v2"]
    with opened(Wasm(), graph, tmp_path) as engine:
        table = rows(graph, 5, seed=1)
        table["cat"][3, 0] = 50
        with pytest.raises(InputError, match="error 2 of ranker_rows"):
            engine.rows(table, 5)
