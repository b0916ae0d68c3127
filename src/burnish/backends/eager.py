"""The model as it came, in PyTorch's eager mode: the baseline that everything else is measured against.

Such an artifact is for measuring, not for shipping: it needs torch, and where the model came as "file.py:function" it names that file where
it lies, because no copy could carry all that the function reads. That is the form to measure: a live module is saved as a program of
torch.export, and calling one costs tens of microseconds more than calling the module.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from burnish.backends.expand import Expand
from burnish.backends.table import Arrays, Program
from burnish.errors import BuildError
from burnish.graph.node import Graph
from burnish.host import Host
from burnish.inputs import Input

DIRECTORY = "program/eager"


class Eager:
    name = "eager"
    rows_only = True

    def __init__(self, source: Any = None) -> None:
        """`source`: "file.py:function", the path of a .pt2, an nn.Module or an ExportedProgram."""
        self.source = source

    def missing(self) -> str | None:
        return None if find_spec("torch") else "the backend eager needs PyTorch. Install it: pip install torch"

    def build(self, graph: Graph, host: Host, out: Path, threads: int = 1) -> Program:
        import torch

        source = self.source
        if source is None:
            raise BuildError("the backend eager runs the model as it came, which it was not given. Give compile the model: source=")
        folder = out / DIRECTORY
        folder.mkdir(parents=True)
        spec, flat = f"{DIRECTORY}/model.pt2", isinstance(source, torch.nn.Module)
        if flat:
            torch.export.save(_exported(source, graph), folder / "model.pt2")
        elif isinstance(source, torch.export.ExportedProgram):
            torch.export.save(source, folder / "model.pt2")
        elif str(source).endswith(".pt2"):
            shutil.copyfile(source, folder / "model.pt2")
        elif ".py:" in str(source):
            file, _, function = str(source).partition(".py:")
            spec = f"{os.path.abspath(f'{file}.py')}:{function}"
        else:
            raise BuildError(
                f"the backend eager runs PyTorch models, met {str(source)!r}. Run an .onnx as it came with the backend onnxruntime"
            )
        return Program(
            backend=self.name,
            files=tuple(str(path.relative_to(out)) for path in folder.iterdir()),
            target="any",
            weight_bytes=sum(held.nbytes for held in graph.weights.values()),
            facts={"model": spec, "flat": flat, "outputs": {name: node.shape for name, node in graph.outputs}},
        )

    def open(self, directory: Path, program: Program, inputs: tuple[Input, ...], threads: int) -> EagerEngine:
        from burnish.capture import load_model

        return EagerEngine(load_model(program.facts["model"], directory), program.facts, inputs, threads)


def _exported(module: Any, graph: Graph) -> Any:
    """A live module as a program that takes the inputs by position and any number of rows; BuildError when torch.export cannot make one."""
    import torch

    from burnish.capture.calling import forms
    from burnish.capture.from_torch import Caller

    rows, failed = torch.export.Dim("rows", min=1, max=1 << 24), None
    for form in forms(module, graph.inputs):
        example = tuple(torch.zeros((64, *spec.shape), dtype=getattr(torch, spec.dtype)) for spec in form.inputs)
        try:
            caller = Caller(module, form).eval()
            return torch.export.export(caller, example, dynamic_shapes=(tuple({0: rows} for _ in example),), strict=False)
        except Exception as error:  # the model's own code runs here and may raise anything
            failed = failed or error
    told = (str(failed).strip().splitlines() or [type(failed).__name__])[0]
    raise BuildError(f'the model cannot be saved for the backend eager: {told}. Give source="file.py:function" instead') from failed


class EagerEngine:
    def __init__(self, model: Any, facts: dict[str, Any], inputs: tuple[Input, ...], threads: int) -> None:
        import torch

        from burnish.capture.from_torch import batches_of

        torch.set_num_threads(threads)  # of the whole process: torch has no other
        self._torch = torch
        self._call = _caller(model, inputs, facts["flat"])
        self._outputs = facts["outputs"]
        self._expand = Expand(inputs)
        self._fails_on_one = not _works(self._call, 1)
        self._most = batches_of(model)[-1] if isinstance(model, torch.export.ExportedProgram) and not facts["flat"] else None

    def rows(self, table: Arrays, n: int) -> dict[str, np.ndarray]:
        if n == 1 and self._fails_on_one:
            twice = {name: np.repeat(array, 2, axis=0) for name, array in table.items()}
            return {name: array[:1] for name, array in self.rows(twice, 2).items()}
        if self._most and n > self._most:  # the user's export has a largest batch
            parts = [{k: v[i : i + self._most] for k, v in table.items()} for i in range(0, n, self._most)]
            found = [self.rows(part, len(next(iter(part.values())))) for part in parts]
            return {name: np.concatenate([each[name] for each in found]) for name in self._outputs}
        from_numpy = self._torch.from_numpy
        with self._torch.inference_mode():
            outputs = self._call(*[from_numpy(table[spec.name]) for spec in self._call.form.inputs])
        # a model that squeezes its scores drops the rows with them when there is one
        return {name: tensor.numpy().reshape(n, *shape) for (name, shape), tensor in zip(self._outputs.items(), outputs)}

    def request(self, request: Arrays, candidates: Arrays, n: int) -> dict[str, np.ndarray]:
        return self.rows(self._expand(request, candidates, n), n)

    def close(self) -> None:
        self._call = None


def _caller(model: Any, inputs: tuple[Input, ...], flat: bool) -> Any:
    """The model with one tensor for each input, called in the first form that it takes; `flat`: by position, as _exported saved it."""
    import torch

    from burnish.capture.calling import Form, forms
    from burnish.capture.from_torch import Caller

    if isinstance(model, torch.export.ExportedProgram):
        lead = model.call_spec.in_spec.child(0).num_children  # it takes by position what it was exported with by position, and no more
        model = model.module()
        model._forward_pre_hooks.clear()  # checks of shapes, some 30 us a call, that the scorer has made
        tried = [Form(inputs, "positional")] if flat else [replace(form, lead=lead) for form in forms(model, inputs)]
    else:
        model.eval()
        tried = forms(model, inputs)
    callers = [Caller(model, form) for form in tried]
    return next((caller for caller in callers[:-1] if _works(caller, 2)), callers[-1])


def _works(caller: Any, n: int) -> bool:
    """Whether a model takes n rows of zeros."""
    import torch

    try:
        with torch.inference_mode():
            caller(*(torch.zeros((n, *spec.shape), dtype=getattr(torch, spec.dtype)) for spec in caller.form.inputs))
        return True
    except Exception:  # the model's own code may raise anything
        return False
