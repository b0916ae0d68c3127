"""What a model is called with: name, dtype, shape behind the rows, side, and the bounds of its ids."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from burnish.errors import InputError

Side = Literal["constant", "request", "candidate"]
SIDES: tuple[Side, ...] = ("constant", "request", "candidate")
DTYPES = ("float32", "float64", "int64", "int32", "bool")


class Half(msgspec.Struct, frozen=True):
    """The part of an input that lies on one side: `columns` of its first axis, or all of it (None)."""

    name: str
    side: Side
    dtype: str
    shape: tuple[int, ...]
    columns: tuple[int, ...] | None


class Input(msgspec.Struct, frozen=True):
    """One input of a ranker. Arrays for it are (rows, *shape).

    `side` is "request" (the same for all candidates of a request) or "candidate"; or one of the two for each column, where the columns
    are the first axis of `shape`. `cardinality` bounds ids: values lie in [0, cardinality); one number, one a column (None where a
    column holds no ids), or None.
    """

    name: str
    dtype: str = "float32"
    shape: tuple[int, ...] = ()
    side: Side | tuple[Side, ...] = "candidate"
    cardinality: int | tuple[int | None, ...] | None = None

    def __post_init__(self) -> None:
        put = msgspec.structs.force_setattr
        put(self, "shape", (self.shape,) if isinstance(self.shape, int) else tuple(int(n) for n in self.shape))
        if not isinstance(self.side, str):
            put(self, "side", tuple(self.side))
        if isinstance(self.cardinality, Sequence | np.ndarray):
            put(self, "cardinality", tuple(None if n is None else int(n) for n in self.cardinality))
        elif self.cardinality is not None:
            put(self, "cardinality", int(self.cardinality))
        if not self.name:
            raise InputError("an input has no name. Give it the name of the argument of forward that it feeds")
        if self.dtype not in DTYPES:
            raise InputError(f"input {self.name!r} has dtype {self.dtype!r}. Use one of {', '.join(DTYPES)}")
        if any(n < 1 for n in self.shape):
            raise InputError(f"input {self.name!r} has shape {self.shape}: every dimension behind the rows must be at least 1")
        for side in self.side if isinstance(self.side, tuple) else (self.side,):
            if side not in ("request", "candidate"):
                raise InputError(f"input {self.name!r} has side {side!r}. Use 'request' or 'candidate'")
        for n in self.cardinality if isinstance(self.cardinality, tuple) else (self.cardinality,):
            if n is not None and n < 1:
                raise InputError(f"input {self.name!r} has cardinality {n}. It is the number of ids, 0 among them: at least 1")
        for what, value in (("sides", self.side), ("cardinalities", self.cardinality)):
            if isinstance(value, tuple) and (not self.shape or len(value) != self.shape[0]):
                raise InputError(
                    f"input {self.name!r} has {len(value)} {what} for shape {self.shape}. Give one for all, or one for each of the "
                    f"{self.shape[0] if self.shape else 0} columns"
                )

    @property
    def columns(self) -> int:
        """How many columns the first axis has; a scalar input counts as one."""
        return self.shape[0] if self.shape else 1

    def cardinality_of(self, column: int) -> int | None:
        return self.cardinality[column] if isinstance(self.cardinality, tuple) else self.cardinality

    @property
    def halves(self) -> tuple[Half, ...]:
        """The request half before the candidate half; one half when the input lies on one side."""
        if isinstance(self.side, str):
            return (Half(self.name, self.side, self.dtype, self.shape, None),)
        if len(set(self.side)) == 1:
            return (Half(self.name, self.side[0], self.dtype, self.shape, None),)
        sides: tuple[Side, ...] = ("request", "candidate")
        split = {side: tuple(i for i, s in enumerate(self.side) if s == side) for side in sides}
        return tuple(Half(self.name, side, self.dtype, (len(c), *self.shape[1:]), c) for side, c in split.items())


def rows_of(inputs: Sequence[Input], table: Mapping[str, np.ndarray]) -> int:
    """The number of rows of a plain table, after checking names, dtypes, shapes and id bounds against `inputs`."""
    check_names(inputs, table, "the rows")
    counts = {}
    for spec in inputs:
        array = np.asarray(table[spec.name])
        check_array(spec, Half(spec.name, "candidate", spec.dtype, spec.shape, None), array)
        counts[spec.name] = len(array)
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in counts.items())
        raise InputError(f"the inputs have different numbers of rows: {told}. Give every input the same number of rows")
    return next(iter(counts.values()), 0)


def check_names(inputs: Sequence[Input], given: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse a mapping that lacks one of `inputs` or has a name that is not one."""
    names = [spec.name for spec in inputs]
    for name in names:
        if name not in given:
            raise InputError(f"{where} lack input {name!r}; they have {', '.join(map(repr, given)) or 'none'}")
    for name in given:
        if name not in names:
            raise InputError(f"{where} have {name!r}, which is not an input there; the inputs are {', '.join(map(repr, names)) or 'none'}")


def check_array(spec: Input, half: Half, array: np.ndarray) -> None:
    """Refuse an array (rows, *half.shape) of the wrong dtype or shape, or with ids outside [0, cardinality)."""
    if array.dtype != half.dtype:
        raise InputError(f"input {spec.name!r} has dtype {array.dtype}, expected {half.dtype}. Convert it with .astype({half.dtype!r})")
    if array.shape[1:] != half.shape or array.ndim != len(half.shape) + 1:
        want = ", ".join(["rows", *map(str, half.shape)])
        raise InputError(f"input {spec.name!r} has shape {array.shape}, expected ({want})")
    if spec.cardinality is None or spec.dtype == "bool" or array.size == 0:
        return
    columns = half.columns if half.columns is not None else tuple(range(spec.columns))
    bounds = tuple(spec.cardinality_of(c) for c in columns)
    floor, limit, free = _limits(bounds, half.shape, half.dtype)
    good = (array >= floor) & (array < limit)  # False for NaN
    if good.all() or (free is not None and (good | free).all()):
        return
    bad = ~good if free is None else ~(good | free)
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), array.shape))
    column = columns[at[1]] if spec.shape else 0
    where = f"row {at[0]}, column {column}" if spec.shape else f"row {at[0]}"
    raise InputError(f"input {spec.name!r} has id {array[at]} at {where}; ids there lie in [0, {spec.cardinality_of(column)})")


@functools.lru_cache(maxsize=256)
def _limits(bounds: tuple[int | None, ...], shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Arrays that broadcast to (rows, *shape): least id, one beyond the largest, and where there are none (None: nowhere).

    In the dtype of the ids, so that comparing them converts nothing; a bound beyond it bounds nothing.
    """
    top = np.inf if dtype.startswith("float") else np.iinfo(dtype).max
    per_column = (-1, *(1,) * (len(shape) - 1)) if shape else ()
    limit = np.array([top if n is None else min(n, top) for n in bounds], dtype).reshape(per_column)
    free = np.array([n is None or n > top for n in bounds]).reshape(per_column)
    return np.zeros_like(limit), limit, free if free.any() else None
