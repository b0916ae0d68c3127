"""A Recipe: the steps that change a Graph, and the backend that builds it. One point of the search, as data.

The named recipes share one order: exact clean-up, then what must pass the accuracy gate, then request factoring. Factoring comes last
because an int8 linear over `concat(request, candidate)` splits exactly in integers: so a recipe and the same recipe
`without(FactorRequest)` give the same int8 bits, and a backend that gains nothing from factoring can be given the shorter one.
"""

from __future__ import annotations

import importlib
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import msgspec
import numpy as np

from burnish.errors import GraphError, RecipeError
from burnish.graph.node import Graph
from burnish.graph.verify import verify

if TYPE_CHECKING:
    from burnish.train import Training


HalfFloat = Literal["bfloat16", "float16"]
Sizes = tuple[tuple[str, int], ...]  # of some places, by name


class StepBase(msgspec.Struct, frozen=True, tag=True, tag_field="step", forbid_unknown_fields=True):
    """One step, Graph -> Graph. Its fields are the keyword arguments of the function that STEPS names for it."""

    needs_rows: ClassVar[bool] = False  # True: the calibration rows follow the graph in the function's arguments
    trains: ClassVar[bool] = False  # True: then follow the training and the graph that the recipe was applied to


class Tidy(StepBase, frozen=True):
    """Exact: fold constants, drop identities, fold BatchNorm into linears."""


class Embeddings(StepBase, frozen=True):
    """Exact: gathers and sums of table rows become LOOKUP and BAG; tables read alike are merged."""


class Interactions(StepBase, frozen=True):
    """Exact: fancy-index interactions become flat takes."""


class FactorRequest(StepBase, frozen=True):
    """Exact: what depends on the request alone is computed once a request."""


class Prune(StepBase, frozen=True):
    """Hidden neurons, heads, experts, columns of tables and features that the rest can stand in for are left out, and the linears behind
    them refitted (docs/pruning.md).

    By itself as many as an expected relative loss of AUC of `loss` allows; `keep` instead leaves that part of every layer with at least
    `narrowest` neurons, and `widths` says how many stay of each layer, by the name of its first linear's weight, and of each group.
    """

    needs_rows: ClassVar[bool] = True
    loss: float = 0.00005
    keep: float | Literal["auto"] = "auto"
    narrowest: int = 32
    widths: Sizes | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.keep != "auto" and not 0 < self.keep <= 1:
            raise RecipeError(f'step Prune has keep {self.keep}. Use "auto" or a part of each layer above 0 and at most 1')


class LowRank(StepBase, frozen=True):
    """Linears with at least `narrowest` inputs and outputs become two narrow ones where that is cheaper (docs/pruning.md).

    Ranks by themselves as low as an expected relative loss of AUC of `loss` allows; `error` instead bounds the part of its output's
    variance that each linear may lose, `rank` gives every linear that rank, and `ranks` each its own, by the name of its weight.
    """

    needs_rows: ClassVar[bool] = True
    loss: float = 0.0002
    rank: int | Literal["auto"] = "auto"
    error: float | Literal["auto"] = "auto"
    narrowest: int = 32
    ranks: Sizes | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.rank != "auto" and self.rank < 1:
            raise RecipeError(f'step LowRank has rank {self.rank}. Use "auto" or a number of at least 1')
        if self.rank != "auto" and self.error != "auto":
            raise RecipeError("step LowRank has both rank and error. Give one of them")


class Half(StepBase, frozen=True):
    """Linears with at least `narrowest` outputs round their operands to `dtype` and accumulate in float32."""

    dtype: HalfFloat = "bfloat16"
    narrowest: int = 8


class Int8(StepBase, frozen=True):
    """Linears with at least `narrowest` outputs compute in int8: weights per output, activations per tensor (docs/quantization.md).

    `ranges`: how an activation's range is taken from the calibration rows. `migration`: how far unlike channels are evened out before
    they are quantized, the weights absorbing it: 0 not at all, 1 wholly. `rounding`: "auto" lets weights make up for one another's
    rounding errors where that helps. Each "auto" tries all and keeps what reconstructs the linear's output best. `symmetric`: ranges reach
    as far below 0 as above. `weight_bits`: 4 takes weights of -7 to 7, held in int8, 3 those of -3 to 3. `loss`: as many linears are left
    in float32 as it takes for the others to lose an expected part `loss` of AUC together; 1 leaves none. `skip`: linears to leave, by
    their weight's name. `schemes` says it all for each linear: rows of a kind and the linears that share a quantization of their input,
    with one multiplier a channel ("channel") or one in all ("tensor"); others are left.
    """

    needs_rows: ClassVar[bool] = True
    ranges: Literal["auto", "min-max", "percentile", "mse", "entropy"] = "auto"
    migration: float | Literal["auto"] = "auto"
    rounding: Literal["auto", "nearest"] = "auto"
    symmetric: bool = False
    bias_correction: bool = True
    weight_bits: Literal[2, 3, 4, 8] = 8
    loss: float = 0.0001
    narrowest: int = 8
    skip: tuple[str, ...] = ()
    schemes: tuple[tuple[str, ...], ...] | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.migration != "auto" and not 0 <= self.migration <= 1:
            raise RecipeError(f'step Int8 has migration {self.migration}. Use "auto" or a number from 0 to 1')


def _check_training(step: Finetune | Qat) -> None:
    for name in ("epochs", "rate", "batch"):
        if getattr(step, name) != "auto" and not getattr(step, name) > 0:
            raise RecipeError(f"step {type(step).__name__} has {name} {getattr(step, name)}. Use a number above 0")


class Finetune(StepBase, frozen=True):
    """Float weights learn, on train rows, to score as the graph did that the recipe was applied to (docs/training.md).

    `target`: "original" needs no labels; "labels" learns from those. `epochs`: times each row is seen, at most, by itself 3 and more of few
    rows; it stops early when rows held out gain no more. `rate`: Adam's. `tables`: whether embedding tables learn too.
    """

    trains: ClassVar[bool] = True
    target: Literal["original", "labels"] = "original"
    epochs: float | Literal["auto"] = "auto"
    rate: float = 1e-3
    batch: int = 256
    tables: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _check_training(self)


class Qat(StepBase, frozen=True):
    """Instead of Int8: linears in int8 that learn in that arithmetic, from what Int8 would choose (docs/training.md).

    `weight_bits`, `narrowest`, `skip` and `schemes` as in Int8, the others as in Finetune. Tables that were narrowed before it stay as
    they are.
    """

    needs_rows: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    weight_bits: Literal[2, 3, 4, 8] = 8
    target: Literal["original", "labels"] = "original"
    epochs: float | Literal["auto"] = "auto"
    rate: float = 1e-3
    batch: int = 256
    narrowest: int = 8
    skip: tuple[str, ...] = ()
    seed: int = 0
    schemes: tuple[tuple[str, ...], ...] | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        _check_training(self)


class Int8Tables(StepBase, frozen=True):
    """Tables that are looked up hold int8 rows, each with a scale of its own."""


class Int4Tables(StepBase, frozen=True):
    """Tables that are looked up hold int4 rows, each with a scale of its own; tables of odd width are left."""


class MixedTables(StepBase, frozen=True):
    """Tables that are looked up hold int4 rows where that saves most for what it loses, int8 rows elsewhere; the int4 ones together may
    expect to lose `loss` of AUC, relative (docs/quantization.md). `int4` names them instead."""

    needs_rows: ClassVar[bool] = True
    loss: float = 0.00003
    int4: tuple[str, ...] | Literal["auto"] = "auto"


class HalfTables(StepBase, frozen=True):
    """Tables that are looked up hold rows of `dtype`; float16 is eight times as fine, and ends at 65,504."""

    dtype: HalfFloat = "bfloat16"


Step = (
    Tidy
    | Embeddings
    | Interactions
    | FactorRequest
    | Prune
    | LowRank
    | Half
    | Int8
    | Finetune
    | Qat
    | Int8Tables
    | Int4Tables
    | MixedTables
    | HalfTables
)

# the function of each step, imported on first use: (graph[, calibration][, training, original], **fields) -> graph
STEPS: dict[type, str] = {
    Tidy: "burnish.passes.recurrence:tidy_recurrences",
    Embeddings: "burnish.passes.embedding:embedding",
    Interactions: "burnish.passes.interaction:interaction",
    FactorRequest: "burnish.passes.factor:factor_request",
    Prune: "burnish.passes.prune:prune",
    LowRank: "burnish.passes.lowrank:low_rank",
    Half: "burnish.quantize.half:half",
    Int8: "burnish.quantize.ptq:int8",
    Finetune: "burnish.train.finetune:finetune",
    Qat: "burnish.train.qat:qat",
    Int8Tables: "burnish.quantize.tables:int8_tables",
    Int4Tables: "burnish.quantize.tables:int4_tables",
    MixedTables: "burnish.quantize.tables:mixed_tables",
    HalfTables: "burnish.quantize.tables:half_tables",
}


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps, the backend that builds the graph they leave, and its threads. `name` is for people; it decides nothing."""

    steps: tuple[Step, ...] = ()
    backend: str = "native"
    threads: int = 1
    name: str = ""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise RecipeError(f"the recipe has threads = {self.threads}. Use at least 1")

    @property
    def trains(self) -> bool:
        """Whether a step trains."""
        return any(step.trains for step in self.steps)

    def without(self, *kinds: type) -> Recipe:
        """This recipe less its steps of these kinds, such as FactorRequest for a backend that computes plain tables only."""
        return msgspec.structs.replace(self, steps=tuple(step for step in self.steps if not isinstance(step, kinds)))

    def to_json(self) -> str:
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode() + "\n"

    def to_toml(self) -> str:
        head = {"name": self.name, "backend": self.backend, "threads": self.threads}
        tables = [f"\n[[steps]]\n{_toml_lines(msgspec.to_builtins(step))}" for step in self.steps]
        return _toml_lines(head) + "".join(tables)

    def write(self, path: str | Path) -> Path:
        """Write the recipe to a .toml or .json file."""
        path = Path(path)
        path.write_text(self.to_json() if path.suffix == ".json" else self.to_toml(), encoding="utf-8")
        return path


_CLEAN = (Tidy(), Embeddings(), Interactions())
RECIPES: dict[str, tuple[Step, ...]] = {
    "original": (),  # the graph as it was captured
    "fp32": (*_CLEAN, FactorRequest()),
    "bf16": (*_CLEAN, Half(), FactorRequest()),
    "bf16-tables": (*_CLEAN, Half(), HalfTables(), FactorRequest()),
    "fp16": (*_CLEAN, Half("float16"), FactorRequest()),
    "fp16-tables": (*_CLEAN, Half("float16"), HalfTables("float16"), FactorRequest()),
    "int8": (*_CLEAN, Int8(), FactorRequest()),
    "int8-tables": (*_CLEAN, Int8(), Int8Tables(), FactorRequest()),
    "int8-mixed-tables": (*_CLEAN, Int8(), MixedTables(), FactorRequest()),
    "int8-int4-tables": (*_CLEAN, Int8(), Int4Tables(), FactorRequest()),
    # smaller shapes too, for an allowed drop of AUC of 0.05 % and of 0.1 % (docs/pruning.md)
    "lean": (*_CLEAN, Prune(), LowRank(), Int8(), Int8Tables(), FactorRequest()),
    "leaner": (*_CLEAN, Prune(loss=0.0001), LowRank(loss=0.0005), Int8(), Int8Tables(), FactorRequest()),
    # smaller still, what that costs taken back by training (docs/training.md)
    "lean-trained": (*_CLEAN, Prune(loss=0.001), LowRank(loss=0.002), Qat(), Int8Tables(), FactorRequest()),
    # what the default settings of other tools do, to compare with
    "int8-naive": (*_CLEAN, Int8("min-max", 0.0, "nearest", bias_correction=False, loss=1.0, narrowest=1), FactorRequest()),
}


def recipe(of: str | Path | Recipe, backend: str | None = None) -> Recipe:
    """The Recipe of a name in RECIPES, of a .toml or .json file, or itself; on `backend` when one is given.

    RecipeError for a name that is not known, and for a file that is missing or says what a recipe cannot mean.
    """
    if isinstance(of, Recipe):
        found = of
    elif str(of) in RECIPES:
        found = Recipe(RECIPES[str(of)], name=str(of))
    elif Path(of).suffix in (".toml", ".json"):
        found = _read(Path(of))
    else:
        raise RecipeError(f"no recipe {str(of)!r}. Use one of {', '.join(RECIPES)}, or a .toml or .json file")
    return found if backend is None else msgspec.structs.replace(found, backend=backend)


def apply(graph: Graph, recipe: Recipe, calibration: Mapping[str, np.ndarray] | None = None, training: Training | None = None) -> Graph:
    """The graph after each step of the recipe, verified after each.

    `calibration`: input name -> array (rows, *shape), rows the model meets in use. `training`: the rows, and more, of steps that train.
    RecipeError when a step needs what is not given, and, with the step's name, when a step leaves a graph that breaks a rule.
    """
    for _, _, after in walk(graph, recipe, calibration, training):
        graph = after
    return graph


def walk(
    graph: Graph,
    recipe: Recipe,
    calibration: Mapping[str, np.ndarray] | None = None,
    training: Training | None = None,
    original: Graph | None = None,
) -> Iterator[tuple[Step, Graph, Graph]]:
    """`apply`, one step at a time: each with the graph before it and after it. `original` is the graph that `graph` was made of by steps
    before these, where there were any."""
    original = original or graph
    for step in recipe.steps:
        name, before = type(step).__name__, graph
        if step.needs_rows and calibration is None:
            raise RecipeError(
                f"step {name} of recipe {recipe.name or describe(recipe)!r} needs calibration rows and has none. "
                "Give calibration=, a few thousand rows from the training data: {input name: array (rows, *shape)}"
            )
        if step.trains and training is None:
            raise RecipeError(
                f"step {name} of recipe {recipe.name or describe(recipe)!r} trains, and has no train rows. "
                "Give training=Training(rows the model was trained on: {input name: array (rows, *shape)})"
            )
        given = ((calibration,) if step.needs_rows else ()) + ((training, original) if step.trains else ())
        try:
            graph = verify(_function(type(step))(graph, *given, **_fields(step)))
        except GraphError as error:
            told = recipe.name or describe(recipe)
            raise RecipeError(f"step {name} of recipe {told!r} left a graph that does not hold: {error}") from error
        yield step, before, graph


def describe(recipe: Recipe) -> str:
    """One line: the steps with those of their fields that are not the default."""
    return " > ".join(_describe(step) for step in recipe.steps) or "as captured"


def _describe(step: Step) -> str:
    changed = [f"{name}={value}" for name, value in _fields(step).items() if value != getattr(type(step)(), name)]
    return type(step).__name__ + (f"({', '.join(changed)})" if changed else "")


def _fields(step: Step) -> dict[str, Any]:
    return {name: getattr(step, name) for name in step.__struct_fields__}


def _function(kind: type) -> Callable[..., Graph]:
    module, _, function = STEPS[kind].partition(":")
    return getattr(importlib.import_module(module), function)


def _read(path: Path) -> Recipe:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"the recipe {path} is not UTF-8 text") from error
    try:
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise RecipeError(f"the recipe {path} is not {path.suffix[1:].upper()}: {error}") from error
    steps = data.get("steps", []) if isinstance(data, dict) else []
    for i, step in enumerate(steps if isinstance(steps, list) else []):
        if isinstance(step, dict):
            _check_step(path, i, step)
    try:
        return msgspec.convert(data, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"the recipe {path} does not fit: {error}. Its fields are {', '.join(Recipe.__struct_fields__)}") from error


def _check_step(path: Path, i: int, step: dict[str, Any]) -> None:
    """msgspec finds the same faults, but does not say what would be right."""
    kinds = {kind.__name__: kind for kind in get_args(Step)}
    kind = kinds.get(step.get("step", ""))
    if kind is None:
        met = f"is {step['step']!r}" if "step" in step else "does not say its name as `step`"
        raise RecipeError(f"step {i + 1} of the recipe {path} {met}. Use one of {', '.join(kinds)}")
    for name in step:
        if name != "step" and name not in kind.__struct_fields__:
            known = ", ".join(kind.__struct_fields__) or "none"
            raise RecipeError(f"step {i + 1} of the recipe {path}, {kind.__name__}, has no field {name!r}; its fields are {known}")


def _toml_lines(fields: Mapping[str, Any]) -> str:
    return "".join(f"{name} = {_toml(value)}\n" for name, value in fields.items())


def _toml(value: Any) -> str:
    """Strings, booleans, numbers and lists are written alike in JSON and TOML, but for the control character TOML also escapes."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
