"""The ONNX graph of an artifact that ONNX Runtime or OpenVINO runs, quantized parts as standard QDQ: what any ONNX tool reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from burnish.errors import BuildError
from burnish.export.common import fresh, no_target
from burnish.runtime.artifact import Artifact

MODEL = "model.onnx"


def export(path: Path, target: str | None, out: Path) -> dict[str, Any]:
    """Write model.onnx, and the files of its tables where it has such, into `out`."""
    no_target("onnx", target)
    artifact = Artifact.read(path)
    model = next((path / name for program in artifact.manifest.programs for name in program.files if Path(name).name == MODEL), None)
    if model is None:
        raise BuildError(
            f"the artifact at {path} is {artifact.manifest.programs[0].backend}'s and holds no ONNX graph. "
            "Compile the model with --backend onnxruntime, by the same recipe"
        )
    fresh(out)
    files = [file for file in sorted(model.parent.iterdir()) if file.is_file()]
    for file in files:
        shutil.copyfile(file, out / file.name)
    return {"schema": 1, "format": "onnx", "files": [file.name for file in files], "total_bytes": sum(f.stat().st_size for f in files)}
