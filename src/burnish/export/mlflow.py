"""An artifact as an MLflow model of the flavor python_function: `mlflow.pyfunc.load_model(DIR).predict(rows)`.

Rows are a plain table, input name -> array (rows, *shape), and so are the scores. MLflow imports this file again where it loads the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from burnish.errors import BuildError
from burnish.export.common import fresh, no_target
from burnish.host import versions
from burnish.runtime.artifact import Artifact
from burnish.runtime.scorer import Scorer, load


class Ranker:
    """What MLflow calls."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def predict(self, rows: Mapping[str, np.ndarray], params: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """Every output by its name, (rows,) or (rows, *shape)."""
        scores = self._scorer.rows(rows)
        return scores if isinstance(scores, dict) else {self._scorer.outputs[0].name: scores}


def _load_pyfunc(data_path: str) -> Ranker:
    """MLflow's entry point of a loader module."""
    return Ranker(load(data_path))


def export(path: Path, target: str | None, out: Path) -> dict[str, Any]:
    """Write an MLflow model with the artifact in it into `out`."""
    no_target("mlflow", target)
    try:
        import mlflow.pyfunc
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec
    except ImportError as error:
        raise BuildError(f"an MLflow model is written by MLflow, which lacks {error.name} here: pip install mlflow-skinny pandas") from None
    artifact = Artifact.read(path)
    manifest, (golden, _) = artifact.manifest, artifact.golden()
    inputs = Schema([TensorSpec(np.dtype(spec.dtype), (-1, *spec.shape), spec.name) for spec in manifest.inputs])
    outputs = Schema([TensorSpec(np.dtype(o.dtype), (-1, *(() if o.shape == (1,) else o.shape)), o.name) for o in manifest.outputs])
    fresh(out)
    mlflow.pyfunc.save_model(
        out,
        loader_module=__name__,
        data_path=str(path),
        signature=ModelSignature(inputs, outputs),
        input_example={name: rows[:2] for name, rows in golden.items()},
        pip_requirements=[f"burnish=={versions('burnish')['burnish']}"],
    )
    return {"schema": 1, "format": "mlflow", "mlflow": versions("mlflow", "mlflow-skinny")}
