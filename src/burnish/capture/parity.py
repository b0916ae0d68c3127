"""Rows to try a captured graph on, and the comparison with the model it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from burnish.capture.value import AS_IT_CAME, AtThisBatch
from burnish.errors import BurnishError, CaptureError
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph
from burnish.inputs import Input

BATCHES = (1, 2, 37, 128)
TOLERANCE = 1e-5  # of an output's largest magnitude
UNBOUNDED = 5  # integers whose bound nobody knows are drawn below this: positions and lengths are small

Table = dict[str, np.ndarray]


def random_rows(inputs: Sequence[Input], n: int, seed: int = 0) -> Table:
    """A plain table of `n` rows: ids uniform within their cardinality, floats normal, bools fair."""
    rng = np.random.default_rng(seed)
    return {spec.name: _draw(spec, n, rng) for spec in inputs}


def _draw(spec: Input, n: int, rng: np.random.Generator) -> np.ndarray:
    shape = (n, *spec.shape)
    if spec.dtype == "bool":
        return rng.random(shape) < 0.5
    bounds = [spec.cardinality_of(c) for c in range(spec.columns)]
    floats = spec.dtype in ("float32", "float64")
    free = rng.standard_normal(shape) if floats else rng.integers(0, UNBOUNDED, shape)
    if all(b is None for b in bounds):
        return free.astype(spec.dtype)
    high = np.array([UNBOUNDED if b is None else b for b in bounds])
    ids = rng.integers(0, high.reshape(-1, *(1,) * (len(spec.shape) - 1)) if spec.shape else high[0], shape)
    if not floats:
        return ids.astype(spec.dtype)
    bounded = np.array([b is not None for b in bounds]).reshape(-1, *(1,) * (len(spec.shape) - 1)) if spec.shape else np.True_
    return np.where(bounded, ids, free).astype(spec.dtype)


def example_rows(examples: Mapping[str, np.ndarray], n: int) -> Table:
    """`n` rows of the user's own, repeated where there are fewer."""
    return {name: array[np.arange(n) % len(array)] for name, array in examples.items()}


def check_parity(graph: Graph, model: Callable[[Table], Mapping[str, np.ndarray]], rows: Table, batches: Sequence[int] = BATCHES) -> None:
    """CaptureError when graph and model differ on the first n of `rows` for any n of `batches`, or when the model mixes rows.

    Many models squeeze away a batch of one: where the model itself fails on one row it is held against the larger batches only, and a
    shape that lost its row there is compared value by value.
    """
    for n in batches:
        table = {name: array[:n] for name, array in rows.items()}
        try:
            want = model(table)
        except CaptureError:
            if n == 1 and len(batches) > 1:
                continue
            raise
        try:
            got = interpret(graph, table)
        except (BurnishError, ValueError, IndexError) as error:
            raise AtThisBatch(f"the captured graph does not compute at batch {n}: {error}") from error
        for name, expected in want.items():
            came = len(expected) if expected.ndim else 1
            if came != n and not (n == 1 and expected.size == got[name].size):
                raise CaptureError(
                    f"output {name!r} has {came} rows at a batch of {n}: how many depends on the values of the inputs. "
                    f"Give every row a score, and mask with torch.where instead of leaving rows out, {AS_IT_CAME}"
                )
            found = got[name]
            if found.shape != expected.shape and not (n == 1 and found.size == expected.size):
                raise _why(name, model, rows, f"has shape {found.shape} at batch {n}, and the model's has {expected.shape}")
            off = difference(expected, found.reshape(expected.shape))
            if off > TOLERANCE:
                size = f"by {off:.2g} of its largest magnitude at batch {n} (allowed {TOLERANCE:g})"
                raise _why(name, model, rows, f"differs from the model's {size}")


def _why(name: str, model: Callable[[Table], Mapping[str, np.ndarray]], rows: Table, how: str) -> CaptureError:
    """The model's own rows tell whether it mixes them; else the graph is wrong."""
    few, more = (model({key: array[:m] for key, array in rows.items()})[name] for m in (2, 3))
    if few.shape != more[:2].shape or difference(few, more[:2]) > TOLERANCE:
        return CaptureError(
            f"output {name!r} of the same rows differs between a batch of 2 and one of 3: the model mixes the rows of a batch, "
            f"so a row has no score of its own. Take that out of forward, {AS_IT_CAME}"
        )
    return AtThisBatch(f"output {name!r} of the captured graph {how}. Please report it; until then {AS_IT_CAME.removeprefix('or ')}")


def difference(expected: np.ndarray, got: np.ndarray) -> float:
    """The largest absolute difference over the largest finite magnitude of `expected` (at least 0.01); inf where only one is NaN or inf."""
    if expected.size == 0:
        return 0.0
    a, b = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    same = np.where(finite, np.isfinite(b), (a == b) | (np.isnan(a) & np.isnan(b)))
    if not same.all():
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.abs(a[finite] - b[finite]).max() / max(np.abs(a[finite]).max(), 0.01))
