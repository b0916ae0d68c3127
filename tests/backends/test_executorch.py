"""ExecuTorch's programs, held against the interpreter, and their export as a .pte."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import burnish
from burnish.backends.executorch import MOST_ROWS, ExecuTorch
from burnish.errors import BuildError
from burnish.export import export
from burnish.graph.interpret import interpret
from burnish.recipe import Recipe
from burnish.testing import dcn_v2, model_cases, op_cases, rows
from burnish.testing.backend_cases import BackendCases, opened

here = pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="executorch is not installed: pip install executorch")


@here
class TestExecuTorch(BackendCases):
    """Whole models; of ops, those that rankers in float32 are made of."""

    models = ("dcn_v2 mixed columns", "two_tower")
    test_each_op_agrees_with_the_interpreter = test_ops_that_need_a_graph_of_their_own_agree_with_the_interpreter = None
    test_int8_models_agree_with_the_interpreter = test_random_graphs_agree_with_the_interpreter = None
    refused = {
        "linear in bfloat16": r"executorch has no bfloat16 linear that accumulates in float32 on a CPU",
        "cast to bfloat16": r"executorch drops the rounding of CAST\[7\] bfloat16 candidate",
        "qlinear": r"executorch has no QUANTIZE of static int8 with float32 sums: .*\. Use the recipe fp32",
    }

    @pytest.fixture
    def backend(self) -> ExecuTorch:
        return ExecuTorch()


@here
def test_more_rows_than_a_program_takes_are_scored_in_parts(tmp_path: Path) -> None:
    graph = model_cases()["dcn_v2"]
    with opened(ExecuTorch(), graph, tmp_path) as engine:
        table = rows(graph, 2 * MOST_ROWS + 3, seed=1)
        got = engine.rows(table, 2 * MOST_ROWS + 3)["score"]
        np.testing.assert_allclose(got, interpret(graph, table)["score"], rtol=1e-5, atol=1e-6)


@here
def test_the_export_is_run_by_its_own_runtime(tmp_path: Path) -> None:
    import torch
    from executorch.runtime import Runtime

    graph = dcn_v2(5, 7, 8, 2, (33, 17), 50)
    artifact = burnish.compile(graph, "fp32", backend="executorch").save(tmp_path / "artifact")
    told = export(artifact.path, "executorch", out=tmp_path / "out")
    method = Runtime.get().load_program(tmp_path / "out" / "model.pte").load_method("forward")
    table, golden = artifact.golden()
    (got,) = method.execute([torch.from_numpy(table[spec["name"]]) for spec in told["inputs"]])
    np.testing.assert_array_equal(got.numpy(), golden["score"])
    kept = np.fromfile(tmp_path / "out" / "golden" / "output_0.bin", np.float32)
    np.testing.assert_array_equal(kept, golden["score"].ravel())


def test_an_artifact_of_another_engine_is_no_pte(tmp_path: Path) -> None:
    artifact = burnish.compile(op_cases()["linear"], Recipe(backend="onnxruntime")).save(tmp_path / "artifact")
    with pytest.raises(BuildError, match=r"is onnxruntime's and holds no ExecuTorch program\. Compile the model with --backend executorch"):
        export(artifact.path, "executorch", out=tmp_path / "out")
    with pytest.raises(BuildError, match=r"^executorch carries the artifact as it is and takes no target"):
        export(artifact.path, "executorch", "avx2", tmp_path / "out")


def test_a_missing_executorch_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.backends.executorch.find_spec", lambda name: None)
    with pytest.raises(
        BuildError, match=r"^the backend executorch needs PyTorch and ExecuTorch\. Install them: pip install torch executorch"
    ):
        burnish.compile(op_cases()["relu"], Recipe(backend="executorch"))
