"""What a row of the aten tables is: a function of the call and the operands as the traced program gives them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from burnish.capture import value as V
from burnish.capture.value import Ambiguous, Mixes, Value
from burnish.graph.ops import FLOATS, Op, promote


@dataclass(frozen=True)
class Call:
    """What a row of the table may know beside its operands: the dtype and shape of the result, and the batch of the trace."""

    dtype: str
    shape: tuple[int, ...]
    batch: int


@dataclass(frozen=True)
class Ramp:
    """arange over the rows: entry i is start + step * i. It numbers rows, so it may only say which row reads what."""

    start: int
    step: int
    shape: tuple[int, ...]


Operand = Any  # Value | Ramp | bool | int | float | None, and lists of them

Row = Callable[..., Any]


def number(call: Call, x: float | int | bool, dtype: str) -> Value:
    """A Python number in `dtype`; Ambiguous when it may be the number of rows."""
    if isinstance(x, (int, float)) and x and math.isfinite(x) and abs(x) >= call.batch and x % call.batch == 0:
        raise Ambiguous
    if dtype in ("int64", "int32") and isinstance(x, float) and math.isinf(x):
        bounds = np.iinfo(dtype)
        x = bounds.max if x > 0 else bounds.min
    return V.number(x, dtype)


def operand(call: Call, x: Operand, dtype: str) -> Value:
    if isinstance(x, Ramp):
        raise Mixes("the position of a row in its batch (arange over the rows), used as a number,")
    return V.cast(x, dtype) if isinstance(x, Value) else number(call, x, dtype)


def common(*xs: Operand) -> str:
    """The dtype torch compares in: tensors before 0-dimensional tensors before numbers, unless the latter are of a higher kind."""

    def kind(dtype: str) -> int:
        return 0 if dtype == "bool" else 1 if dtype not in FLOATS else 2

    best: str | None = None
    for group in (
        [x.dtype for x in xs if isinstance(x, Value) and x.shape],
        [x.dtype for x in xs if isinstance(x, Value) and not x.shape],
        ["bool" if isinstance(x, bool) else "int64" if isinstance(x, int) else "float32" for x in xs if isinstance(x, (bool, int, float))],
    ):
        if group:
            here = promote(*group)
            best = here if best is None or kind(here) > kind(best) else best
    return best or "float32"


def ramp_arithmetic(op: Op, a: Operand, b: Operand, alpha: float) -> Ramp:
    """Row numbers times, or plus, an integer."""
    ramp, n = (a, b) if isinstance(a, Ramp) else (b, a)
    if isinstance(ramp, Ramp) and isinstance(n, Value) and n.is_constant and math.prod(n.shape) == 1 and len(n.shape) <= len(ramp.shape):
        n = V.array_of(n).item()
    if isinstance(n, int) and isinstance(ramp, Ramp):
        if op is Op.MUL:
            return Ramp(ramp.start * n, ramp.step * n, ramp.shape)
        if op is Op.ADD and (ramp is a or alpha == 1):
            return Ramp(ramp.start + n * int(alpha), ramp.step, ramp.shape)
    raise Mixes("the position of a row in its batch (arange over the rows), used as a number,")
