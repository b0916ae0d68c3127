"""An artifact as a Ray Serve application: app.py with a deployment, serve.yaml for `serve deploy`."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from burnish.export.common import NAME, fresh, no_target, planned, resources_of
from burnish.runtime.artifact import Artifact

ONGOING = 16  # requests that may wait at a replica; more are kept by Ray's router, which knows idle replicas


def export(path: Path, target: str | None, out: Path) -> dict[str, Any]:
    """Write app.py, serve.yaml and artifact/ into `out`."""
    no_target("ray-serve", target)
    values = {"name": NAME, "ongoing": ONGOING} | resources_of(Artifact.read(path)) | planned(path)
    fresh(out)
    shutil.copytree(path, out / "artifact")
    files = resources.files("burnish.export")
    for template, name in (("ray_app.py.txt", "app.py"), ("ray_serve.yaml", "serve.yaml")):
        (out / name).write_text(Template((files / template).read_text()).substitute(values))
    return {"schema": 1, "format": "ray-serve", **{key: values[key] for key in ("name", "replicas", "cpu")}}
