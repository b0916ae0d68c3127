"""An artifact as what other engines and platforms run. FORMATS is the whole registration."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from burnish.errors import BuildError

FORMATS = {
    "c": "burnish.export.c:export",
    "executorch": "burnish.export.executorch:export",
    "k8s": "burnish.export.kubernetes:kubernetes",
    "kserve": "burnish.export.kubernetes:kserve",
    "mlflow": "burnish.export.mlflow:export",
    "onnx": "burnish.export.onnx:export",
    "ray-serve": "burnish.export.ray_serve:export",
    "triton": "burnish.export.triton:export",
    "wasm": "burnish.export.wasm:export",
}


def export(artifact: str | Path, to: str = "c", target: str | None = None, out: str | Path = "export") -> dict[str, Any]:
    """Write the artifact at a path as `to` for `target` (host.Host.target) into `out`, a new or empty directory; what export.json says.

    BuildError when there is no such format, the artifact cannot become it, or `out` holds something.
    """
    if to not in FORMATS:
        raise BuildError(f"no format {to!r} to export to. Use one of {', '.join(FORMATS)}")
    module, _, name = FORMATS[to].partition(":")
    told: dict[str, Any] = getattr(importlib.import_module(module), name)(Path(artifact), target, Path(out))
    return told
