"""The public face, kept stable: what is importable from burnish, and how it is called."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import burnish

NAMES = {
    "Artifact", "ArtifactError", "BuildError", "BurnishError", "CaptureError", "Graph", "GraphError", "Host", "Input", "InputError",
    "JobError", "MeasureError", "ObjectiveNotMet", "Recipe", "RecipeError", "Scorer", "ServeError", "Training", "__version__", "capture",
    "compile", "load", "optimize", "refresh",
}  # fmt: skip
SIGNATURES = {
    "Input": "(name, dtype='float32', shape=(), side='candidate', cardinality=None)",
    "capture": "(model, inputs, *, check=True)",
    "compile": "(graph, recipe='int8', calibration=None, backend=None, host=None, threads=None, source=None, training=None)",
    "load": "(path, threads=1, verify=False)",
    "Scorer.__call__": "(self, request=None, candidates=None)",
    "Scorer.rows": "(self, table)",
    "Scorer.close": "(self)",
    "Artifact.read": "(path)",
    "Artifact.save": "(self, to)",
    "Artifact.verify": "(self)",
    "optimize": "(job, out, *, resume=False, progress=None)",
    "refresh": "(directory, model=None, out=None, *, progress=None)",
    "Recipe": "(steps=(), backend='native', threads=1, name='')",
    "Training": "(table, labels=None, output=None, checkpoints=None, progress=None)",
    "Host.here": "()",
    "Host.target": "(name)",
}


def test_the_names_are_these():
    assert set(burnish.__all__) == NAMES
    for name in NAMES:
        assert getattr(burnish, name) is not None
    assert set(burnish.__all__) <= set(dir(burnish))


@pytest.mark.parametrize("name", SIGNATURES)
def test_they_are_called_like_this(name):
    thing = burnish
    for part in name.split("."):
        thing = getattr(thing, part)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(thing).parameters.values()]
    assert str(inspect.Signature(bare)) == SIGNATURES[name]


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'burnish' has no attribute 'optimise'"):
        burnish.optimise  # noqa: B018


def test_errors_have_one_base_and_an_exit_code():
    for name in NAMES:
        if name.endswith("Error"):
            assert issubclass(getattr(burnish, name), burnish.BurnishError) and getattr(burnish, name).exit_code == 2
    assert burnish.ObjectiveNotMet.exit_code == 1


@pytest.mark.parametrize(
    "first", ["import burnish", "import burnish.capture", "from burnish.capture import load_model", "import burnish.build"]
)
def test_capture_is_the_function_whatever_is_imported_first(first):
    code = f"{first}; import burnish, inspect; assert inspect.isfunction(burnish.capture), burnish.capture; burnish.compile"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_burnish_imports_neither_compilers_nor_engines():
    heavy = (
        "torch",
        "onnx",
        "onnxruntime",
        "openvino",
        "nncf",
        "polars",
        "scipy",
        "altair",
        "optuna",
        "granian",
        "typer",
        "rich",
        "pyarrow",
    )
    code = f"import burnish, burnish.runtime.scorer, sys; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
