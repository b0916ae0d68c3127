"""How forward is called: which argument each input feeds, for positional and keyword arguments, dicts and tuples of inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from burnish.errors import CaptureError
from burnish.inputs import Input


@dataclass(frozen=True)
class Form:
    """One way to call forward with `inputs`, which are in forward's order."""

    inputs: tuple[Input, ...]
    how: Literal["named", "positional", "dict", "tuple"]
    lead: int = 0  # so many of the named ones are passed by position: an exported program insists on how it was called

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        by_name = {spec.name: tensor for spec, tensor in zip(self.inputs, tensors)}
        match self.how:
            case "named":
                rest = {spec.name: by_name[spec.name] for spec in self.inputs[self.lead :]}
                return tuple(tensors[: self.lead]), rest
            case "positional":
                return tuple(tensors), {}
            case "dict":
                return (by_name,), {}
            case "tuple":
                return (tuple(tensors),), {}


def parameters(model: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(model.forward).parameters.values())


def specs_of(model: Any, inputs: Any) -> tuple[tuple[Input, ...], dict[str, np.ndarray] | None]:
    """(Inputs, None) as given, or (Inputs inferred from example arrays, those arrays)."""
    if isinstance(inputs, Mapping):
        return inferred(inputs)
    given = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    if not given:
        raise CaptureError("a ranker needs at least one input, met none")
    if all(isinstance(v, Input) for v in given):
        return given, None
    if len(given) == 1 and isinstance(given[0], Mapping):
        return inferred(given[0])
    names = [p.name for p in parameters(model) if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(given) > len(names):
        names = [f"input_{i}" for i in range(len(given))]
    return inferred(dict(zip(names, given)))


def inferred(examples: Mapping[str, Any]) -> tuple[tuple[Input, ...], dict[str, np.ndarray]]:
    arrays = {name: np.asarray(v) for name, v in examples.items()}
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) == 0:
            raise CaptureError(f"example {name!r} has shape {array.shape}: the first dimension is the rows, at least one")
    if not arrays:
        raise CaptureError("a ranker needs at least one input, met none")
    return tuple(Input(name, str(array.dtype), array.shape[1:]) for name, array in arrays.items()), arrays


def forms(model: Any, specs: Sequence[Input]) -> list[Form]:
    """The ways to try, the likeliest first; CaptureError when names and arguments do not match."""
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise CaptureError(f"{names.count(name)} inputs are named {name!r}. Give each its own name")
    known = parameters(model)
    plain = [p for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in plain if p.default is p.empty]
    by_name = {spec.name: spec for spec in specs}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known)
    if all(r in names for r in required) and (takes_any or all(n in [p.name for p in plain] for n in names)):
        ordered = [by_name[p.name] for p in plain if p.name in by_name]
        ordered += [spec for spec in specs if spec not in ordered]
        if any(p.kind is p.POSITIONAL_ONLY for p in known):
            return [Form(tuple(ordered), "positional")]
        return [Form(tuple(ordered), "named")]
    if any(p.kind is p.VAR_POSITIONAL for p in known) and not required:
        return [Form(tuple(specs), "positional")]
    if len(required) == 1 or (not required and len(plain) == 1):
        taker = next(p for p in plain if not required or p.name == required[0])
        told = str(taker.annotation).lower()
        collection = [
            how for how, words in (("dict", ("dict", "mapping")), ("tuple", ("tuple", "list", "sequence"))) if any(w in told for w in words)
        ]
        if collection or len(specs) > 1:
            tried = collection or ["dict", "tuple"]
            return [Form(tuple(specs), how) for how in tried]  # type: ignore[arg-type]
    raise CaptureError(
        f"forward takes {listed([p.name for p in plain])}, and the inputs are {listed(names)}. "
        "Name each input after the argument that it feeds"
    )


def listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
