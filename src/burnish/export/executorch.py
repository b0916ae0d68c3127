"""The .pte of an artifact that ExecuTorch runs: what apps with its runtime and XNNPACK load on a phone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from burnish.backends.executorch import FILE, MOST_ROWS
from burnish.errors import BuildError
from burnish.export.c import golden_files
from burnish.export.common import fresh, no_target
from burnish.runtime.artifact import Artifact, digest


def export(path: Path, target: str | None, out: Path) -> dict[str, Any]:
    """Write model.pte, golden rows and export.json into `out`; what the last says."""
    no_target("executorch", target)
    artifact = Artifact.read(path)
    if not any(FILE in program.files for program in artifact.manifest.programs):
        raise BuildError(
            f"the artifact at {path} is {artifact.manifest.programs[0].backend}'s and holds no ExecuTorch program. "
            "Compile the model with --backend executorch --recipe fp32"
        )
    fresh(out)
    shutil.copyfile(path / FILE, out / "model.pte")
    golden_files(artifact, out)
    told: dict[str, Any] = {
        "schema": 1,
        "format": "executorch",
        "inputs": [{"name": spec.name, "dtype": spec.dtype, "shape": spec.shape} for spec in artifact.manifest.inputs],
        "outputs": [{"name": made.name, "dtype": made.dtype, "shape": made.shape} for made in artifact.manifest.outputs],
        "most_rows": MOST_ROWS,  # of one call
        "total_bytes": (out / "model.pte").stat().st_size,
        "artifact_sha256": artifact.manifest.sha256,
        "files": {str(f.relative_to(out)): digest(f).sha256 for f in sorted(out.rglob("*")) if f.is_file()},
    }
    (out / "export.json").write_text(json.dumps(told, indent=1) + "\n")
    return told
