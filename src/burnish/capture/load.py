"""How a job file names a model: "file.py:function", "file.py:function@checkpoint.pt", a .pt2 program, an .onnx file."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

from burnish.errors import CaptureError


def load(spec: str | Path, base: Path | None = None) -> Any:
    """nn.Module, ExportedProgram, or the Path of an .onnx file; CaptureError in one sentence otherwise."""
    text = str(spec)
    file, function = text, ""
    if ".py:" in text:
        file, _, function = text.partition(".py:")
        file += ".py"
    path = (base or Path()) / file
    if path.suffix == ".py" and not function:
        raise CaptureError(f"{text!r} does not say what to call. Write file.py:function, where function() returns the model")
    if path.suffix not in (".py", ".pt2", ".onnx"):
        raise CaptureError(f"{text!r} is not a model burnish reads. Give a .pt2 or .onnx file, or file.py:function")
    if not path.is_file():
        raise CaptureError(f"no model file {path}. Relative paths start at {(base or Path()).resolve()}")
    if path.suffix == ".py":
        function, _, checkpoint = function.partition("@")
        model = _from_function(path, function)
        if checkpoint:
            from burnish.capture.checkpoint import put

            put(model, path.parent / checkpoint)
        return model
    return _program(path) if path.suffix == ".pt2" else path


def _from_function(path: Path, name: str) -> Any:
    module = _imported(path)
    function = getattr(module, name, None)
    if function is None:
        there = [
            n for n, v in vars(module).items() if callable(v) and not n.startswith("_") and getattr(v, "__module__", "") == module.__name__
        ]
        raise CaptureError(f"{path} has no function {name!r}; it has {', '.join(there) or 'none'}")
    if not callable(function):
        raise CaptureError(f"{name!r} in {path} is a {type(function).__name__}, not a function that returns the model")
    try:
        model = function()
    except Exception as error:  # the user's code may raise anything
        raise CaptureError(f"{path.name}:{name}() failed: {_told(error, path)}") from error
    import torch

    if not isinstance(model, torch.nn.Module | torch.export.ExportedProgram):
        raise CaptureError(f"{path.name}:{name}() returned an object of type {type(model).__name__}, expected an nn.Module")
    return model


def _imported(path: Path) -> Any:
    """The file as a module, with its own directory first on sys.path while it imports."""
    path = path.resolve()
    name = f"burnish_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # stays: the function may import its neighbours when called
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        del sys.modules[name]
        raise CaptureError(f"{path} does not import: {_told(error, path)}") from error
    return module


def _told(error: BaseException, path: Path) -> str:
    """ "NameError: name 'x' is not defined at ranker.py:3": the last line of the user's own file on the way to the error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} at {Path(error.filename).name}:{error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == path.name]
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}" + (f" at {path.name}:{lines[-1]}" if lines else "")


def _program(path: Path) -> Any:
    import torch

    try:
        return torch.export.load(path)
    except Exception as error:  # torch.export raises many types on a damaged file
        text = str(error).strip().splitlines()
        raise CaptureError(f"{path} is not a program that torch.export.load reads: {text[0] if text else type(error).__name__}") from error
