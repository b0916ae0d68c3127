"""From a user's model to a Graph: `capture` for anything that is one, `load_model` for how a job file names one. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.errors import CaptureError
from burnish.graph.node import Graph
from burnish.inputs import Input

if TYPE_CHECKING:
    import torch

Examples = Sequence[Input] | Sequence[Any] | Mapping[str, Any]


def capture(model: Any, inputs: Examples, *, check: bool = True) -> Graph:
    """The Graph of a ranker: what it computes for one row.

    `model` is an nn.Module, an ExportedProgram, or a path or spec for `load_model`. `inputs` are `Input`s, named as the arguments of
    forward, or example arrays, rows first, in a tuple (forward's positional order) or a dict by name: dtype and shape are taken from them.
    Ids without a declared cardinality get that of the tables they index. `check` compares the graph with the model on rows at batches 1,
    2, 37 and 128. Tables beyond 1 MiB are shared with the module and everything else is copied: a module that is trained on changes its
    tables here too.

    CaptureError in one sentence for everything that cannot be captured, with the op and the user's line.
    """
    if isinstance(model, (str, Path)):
        model = load_model(model)
    if isinstance(model, Path) and model.suffix == ".onnx":
        from burnish.capture.from_onnx import capture_onnx

        return capture_onnx(model, inputs, check=check)
    if isinstance(model, Path):
        raise CaptureError(f"{model} is not a model burnish reads. Give a .pt2 or .onnx file, or file.py:function")
    from burnish.capture.from_torch import capture_torch

    return capture_torch(model, inputs, check=check)


def load_model(spec: str | Path, base: Path | None = None) -> torch.nn.Module | torch.export.ExportedProgram | Path:
    """ "file.py:function" called without arguments, a .pt2 program, or the path of an .onnx file; relative paths start at `base`.

    "file.py:function@checkpoint.pt" puts that state dict into the module; a relative checkpoint lies beside the file.
    """
    from burnish.capture.load import load

    return load(spec, base)


__all__ = ["capture", "load_model"]
