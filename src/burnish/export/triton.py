"""An artifact as a model repository of Triton Inference Server, run by its Python backend.

Triton's own batching has no place here: a request is one request-side row beside its candidates, so tensors are told with all their
dimensions, and an input with columns on both sides appears as its two halves, as `burnish serve` has them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from burnish.export.common import NAME, fresh, no_target
from burnish.runtime.artifact import Artifact
from burnish.serve.protocol import Signature

TYPES = {"float32": "TYPE_FP32", "float64": "TYPE_FP64", "int64": "TYPE_INT64", "int32": "TYPE_INT32", "bool": "TYPE_BOOL"}


def export(path: Path, target: str | None, out: Path) -> dict[str, Any]:
    """Write ranker/config.pbtxt and ranker/1/ with model.py and artifact/ into `out`, a model repository."""
    no_target("triton", target)
    artifact = Artifact.read(path)
    fresh(out)
    version = out / NAME / "1"
    shutil.copytree(path, version / "artifact")
    (version / "model.py").write_text((resources.files("burnish.export") / "triton_model.py.txt").read_text())
    (out / NAME / "config.pbtxt").write_text(_config(artifact))
    return {"schema": 1, "format": "triton", "name": NAME, "backend": "python", "weight_bytes": artifact.weight_bytes}


def _config(artifact: Artifact) -> str:
    """config.pbtxt: one row of the request's tensors, any number of the candidates'."""
    signature = Signature.of(artifact.manifest.inputs, artifact.manifest.outputs)
    inputs = [_tensor(w.name, w.dtype.name, (1 if w.side == "request" else -1, *w.shape)) for w in signature.request.values()]
    outputs = [_tensor(o.name, o.dtype, (-1, *(() if o.shape == (1,) else o.shape))) for o in artifact.manifest.outputs]
    return f"""name: "{NAME}"
backend: "python"
max_batch_size: 0
input [
{_lines(inputs)}
]
output [
{_lines(outputs)}
]
instance_group [ {{ kind: KIND_CPU }} ]
"""


def _tensor(name: str, dtype: str, dims: Sequence[int]) -> str:
    told = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'  {{ name: "{told}" data_type: {TYPES[dtype]} dims: [ {", ".join(map(str, dims))} ] }}'


def _lines(entries: Sequence[str]) -> str:
    return ",\n".join(entries)
