"""Which recipes on which backends are tried, and in which order: a table, so that what is tried can be read.

The order puts first what is most likely to win, with a good peer early, so that a short budget still ends in a comparison; slow compilers
come last. Peers run our quantized graphs too: their own default settings lose accuracy that ours keep (docs/decision.md), and beating a
peer at its worst would prove nothing.
"""

from __future__ import annotations

from burnish.errors import JobError
from burnish.job import Search
from burnish.recipe import RECIPES, Recipe, recipe
from burnish.rows import close_to
from burnish.search.trial import Trial

BASELINE = Trial("eager-original", Recipe(backend="eager", name="original"))

SPACE: tuple[tuple[str, str], ...] = (
    ("native", "int8-tables"),
    ("openvino", "int8"),
    ("native", "int8"),
    ("openvino", "bf16"),
    ("native", "bf16"),
    ("onnxruntime", "int8"),
    ("onnxruntime", "fp32"),
    ("native", "fp32"),
    ("openvino", "fp32"),
    ("inductor", "fp32"),
)


def space(search: Search) -> tuple[Trial, ...]:
    """The trials of a job, in the order they are tried; JobError for a recipe or backend in [search] that is not known."""
    backends = tuple(dict.fromkeys(backend for backend, _ in SPACE))
    for key, given, known in (("recipes", search.recipes, tuple(RECIPES)), ("backends", search.backends, backends)):
        for name in given:
            if name not in known:
                raise JobError(f"search.{key} has {name!r}.{close_to(name, known)} Known: {', '.join(known)}")
    named = [*SPACE, *((backend, name) for name in search.recipes for backend in backends if (backend, name) not in SPACE)]
    return tuple(
        Trial(f"{backend}-{name}", _recipe(backend, name))
        for backend, name in named
        if (not search.recipes or name in search.recipes) and (not search.backends or backend in search.backends)
    )


def _recipe(backend: str, name: str) -> Recipe:
    return recipe(name, backend)
