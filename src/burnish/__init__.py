"""burnish makes a trained recommendation ranker cheap and fast to serve, and proves that it lost no accuracy.

The names below are imported on first use, so that a server pays neither for the compiler nor for the search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# not on first use: the function has the name of its package, and importing that package later would put the package in its place
from burnish.capture import capture

__version__ = "0.1.0"

if TYPE_CHECKING:
    from burnish.build import compile
    from burnish.errors import (
        ArtifactError,
        BuildError,
        BurnishError,
        CaptureError,
        GraphError,
        InputError,
        JobError,
        MeasureError,
        ObjectiveNotMet,
        RecipeError,
        ServeError,
    )
    from burnish.graph.node import Graph
    from burnish.host import Host
    from burnish.inputs import Input
    from burnish.recipe import Recipe
    from burnish.runtime.artifact import Artifact
    from burnish.runtime.scorer import Scorer, load
    from burnish.search.loop import optimize
    from burnish.search.refresh import refresh
    from burnish.train import Training

_WHERE = {
    "burnish.build": ("compile",),
    "burnish.errors": (
        "ArtifactError",
        "BuildError",
        "BurnishError",
        "CaptureError",
        "GraphError",
        "InputError",
        "JobError",
        "MeasureError",
        "ObjectiveNotMet",
        "RecipeError",
        "ServeError",
    ),
    "burnish.graph.node": ("Graph",),
    "burnish.host": ("Host",),
    "burnish.inputs": ("Input",),
    "burnish.recipe": ("Recipe",),
    "burnish.runtime.artifact": ("Artifact",),
    "burnish.runtime.scorer": ("Scorer", "load"),
    "burnish.search.loop": ("optimize",),
    "burnish.search.refresh": ("refresh",),
    "burnish.train": ("Training",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "Artifact",
    "ArtifactError",
    "BuildError",
    "BurnishError",
    "CaptureError",
    "Graph",
    "GraphError",
    "Host",
    "Input",
    "InputError",
    "JobError",
    "MeasureError",
    "ObjectiveNotMet",
    "Recipe",
    "RecipeError",
    "Scorer",
    "ServeError",
    "Training",
    "__version__",
    "capture",
    "compile",
    "load",
    "optimize",
    "refresh",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'burnish' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
