"""aten ops on traced values, one row each: a function of the operands as the traced program gives them (values and Python numbers)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from burnish.capture import composed as C
from burnish.capture import value as V
from burnish.capture.value import Ambiguous, Mixes, Unsupported, Value
from burnish.graph.node import Node
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


# pointwise -----------------------------------------------------------------------------------------------------------------------------


def unary(op: Op) -> Row:
    return lambda call, x, **_: C.unary(op, operand(call, x, call.dtype))


def floats(fn: Callable[..., Value]) -> Row:
    """A composed function of one value (and numbers) in the result's dtype."""
    return lambda call, x, *args, **kwargs: fn(operand(call, x, call.dtype), *args, **kwargs)


def binary(op: Op) -> Row:
    def row(call: Call, a: Operand, b: Operand, *, alpha: float = 1) -> Value | Ramp:
        if isinstance(a, Ramp) or isinstance(b, Ramp):
            return ramp_arithmetic(op, a, b, alpha)
        x, y = operand(call, a, call.dtype), operand(call, b, call.dtype)
        if alpha != 1:
            y = C.mul(y, number(call, alpha, call.dtype))
        return V.pointwise(op, x, y)

    return row


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


def compared(op: Op) -> Row:
    def row(call: Call, a: Operand, b: Operand) -> Value:
        dtype = common(a, b)
        return V.pointwise(op, operand(call, a, dtype), operand(call, b, dtype))

    return row


def logical(op: Op) -> Row:
    def row(call: Call, a: Operand, b: Operand) -> Value:
        return V.pointwise(op, *(C.boolean(operand(call, x, x.dtype if isinstance(x, Value) else "bool")) for x in (a, b)))

    return row


def bitwise(op: Op) -> Row:
    def row(call: Call, a: Operand, b: Operand) -> Value:
        if call.dtype != "bool":
            raise Unsupported("a bitwise op on integers")
        return logical(op)(call, a, b)

    return row


def _div(call: Call, a: Operand, b: Operand, *, rounding_mode: str | None = None) -> Value:
    if rounding_mode is None:
        return V.pointwise(Op.DIV, operand(call, a, call.dtype), operand(call, b, call.dtype))
    dtype = call.dtype if call.dtype in FLOATS else "float64"
    quotient = V.pointwise(Op.DIV, operand(call, a, dtype), operand(call, b, dtype))
    return V.cast(C.unary(Op.FLOOR, quotient) if rounding_mode == "floor" else _trunc(quotient), call.dtype)


def _trunc(x: Value) -> Value:
    if x.dtype not in FLOATS:
        return x
    return C.mul(C.unary(Op.SIGN, x), C.unary(Op.FLOOR, C.unary(Op.ABS, x)))


def _ceil(x: Value) -> Value:
    return x if x.dtype not in FLOATS else C.unary(Op.NEG, C.unary(Op.FLOOR, C.unary(Op.NEG, x)))


def _fmod(call: Call, a: Operand, b: Operand) -> Value:
    x, y = operand(call, a, call.dtype), operand(call, b, call.dtype)
    dtype = x.dtype if x.dtype in FLOATS else "float64"
    whole = V.cast(_trunc(C.div(V.cast(x, dtype), V.cast(y, dtype))), x.dtype)
    return C.sub(x, C.mul(whole, y))


def _pow(call: Call, a: Operand, b: Operand) -> Value:
    if not isinstance(b, Value):
        return C.power(operand(call, a, call.dtype), b)
    return V.pointwise(Op.POW, operand(call, a, call.dtype), operand(call, b, call.dtype))


def _clamp(call: Call, x: Value, min: Operand = None, max: Operand = None) -> Value:
    x = operand(call, x, call.dtype)
    if min is not None:
        x = C.maximum(x, operand(call, min, call.dtype))
    return x if max is None else C.minimum(x, operand(call, max, call.dtype))


def _where(call: Call, condition: Value, a: Operand, b: Operand) -> Value:
    return C.where(condition, operand(call, a, call.dtype), operand(call, b, call.dtype))


def _masked_fill(call: Call, x: Value, mask: Value, fill: Operand) -> Value:
    return C.where(mask, operand(call, fill, x.dtype), x)


def _nan_to_num(call: Call, x: Value, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Value:
    if x.dtype not in FLOATS:
        return x
    top = np.finfo(x.dtype)
    y = C.where(C.unary(Op.ISNAN, x), nan or 0.0, x)
    y = C.where(C.compare(Op.EQ, x, math.inf), float(top.max) if posinf is None else posinf, y)
    return C.where(C.compare(Op.EQ, x, -math.inf), float(top.min) if neginf is None else neginf, y)


def _to(call: Call, x: Operand, *_: Operand, **__: Operand) -> Operand:
    if isinstance(x, Ramp):
        return x
    if x.dtype in FLOATS and call.dtype == "bool":
        return C.boolean(x)
    return V.cast(x, call.dtype)


def _addcmul(call: Call, x: Value, a: Value, b: Value, *, value: float = 1) -> Value:
    product = C.mul(a, b)
    return C.add(x, product if value == 1 else C.mul(product, value))


def _addcdiv(call: Call, x: Value, a: Value, b: Value, *, value: float = 1) -> Value:
    quotient = C.div(a, b)
    return C.add(x, quotient if value == 1 else C.mul(quotient, value))


def _lerp(call: Call, a: Value, b: Value, weight: Operand) -> Value:
    return C.add(a, C.mul(C.sub(b, a), operand(call, weight, call.dtype)))


def _isinf(call: Call, x: Value) -> Value:
    return C.compare(Op.EQ, C.unary(Op.ABS, x), math.inf) if x.dtype in FLOATS else C.compare(Op.NE, x, x)


# creation ------------------------------------------------------------------------------------------------------------------------------


def _full(call: Call, shape: Sequence[int], fill: Operand, **_: Operand) -> Value:
    if 0 in shape:
        return V.of(np.zeros(tuple(shape), call.dtype), "nothing")
    return V.expand(operand(call, fill, call.dtype), shape, call.batch)


def _full_like(call: Call, x: Operand, fill: Operand = 0, **_: Operand) -> Value:
    if isinstance(x, Ramp):
        return _full(call, x.shape, fill)
    if 0 in x.shape:
        return V.of(np.zeros(x.shape, call.dtype), "nothing")
    node = operand(call, fill, call.dtype).node
    return Value(node if x.node.shape == () else Node(Op.EXPAND, (node,), shape=x.node.shape), x.shape, x.rows, x.outer, x.inner)


def _arange(call: Call, start: float, end: float | None = None, step: float = 1, **_: Operand) -> Value | Ramp:
    if end is None:
        start, end = 0, start
    (count,) = call.shape
    if isinstance(start, int) and isinstance(step, int) and count >= call.batch and count % call.batch in (0, 1):
        return Ramp(start, step, (count,))
    return V.of((start + step * np.arange(count)).astype(call.dtype), "arange")


def _eye(call: Call, n: int, m: int | None = None, **_: Operand) -> Value:
    return V.of(np.eye(n, n if m is None else m, dtype=call.dtype), "eye")


def _triangle(keep: Callable[..., np.ndarray]) -> Row:
    def row(call: Call, x: Value, diagonal: int = 0) -> Value:
        for dim in (-1, -2):
            x.axis(dim, "a triangle over the rows")
        mask = V.of(keep(np.ones(x.shape[-2:], bool), diagonal), "triangle")
        if x.dtype == "bool":
            return V.pointwise(Op.AND, x, mask)
        return C.where(mask, x, 0)

    return row


def _triangle_indices(keep: Callable[..., Any]) -> Row:
    return lambda call, rows, cols, offset=0, **_: V.of(np.stack(keep(rows, offset, cols)).astype(call.dtype), "triangle indices")


def _random(call: Call, *_: Operand, **__: Operand) -> Value:
    raise Unsupported("random")


# reductions ----------------------------------------------------------------------------------------------------------------------------


def reduced(op: Op, what: str) -> Row:
    def row(call: Call, x: Value, dims: Operand = None, keepdim: bool = False, **_: Operand) -> Value:
        dims = [dims] if isinstance(dims, int) else dims
        return V.reduce(op, operand(call, x, call.dtype), dims, keepdim, f"{what} over the rows")

    return row


def extreme(op: Op, what: str) -> Row:
    def row(call: Call, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
        top = V.reduce(op, x, [dim], keepdim, f"{what} over the rows")
        return top, V.argmax(x if op is Op.MAX else C.unary(Op.NEG, x), dim, keepdim, f"{what} over the rows")

    return row


def _argmax(sign: int) -> Row:
    def row(call: Call, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        if dim is None:
            x, dim = V.reshape(x, (-1,)), 0
        return V.argmax(x if sign > 0 else C.unary(Op.NEG, x), dim, keepdim, "argmax over the rows")

    return row


def _any(op: Op) -> Row:
    def row(call: Call, x: Value, dims: Operand = None, keepdim: bool = False) -> Value:
        dims = [dims] if isinstance(dims, int) else dims
        return C.boolean(V.reduce(op, V.cast(C.boolean(x), "int32"), dims, keepdim, "any or all over the rows"))

    return row


def _variance(root: bool) -> Row:
    def row(call: Call, x: Value, dims: Operand = None, correction: float | None = 1, keepdim: bool = False) -> Value:
        out = C.variance(x, [dims] if isinstance(dims, int) else dims, 1 if correction is None else correction, keepdim)
        return C.unary(Op.SQRT, out) if root else out

    return row


def _var_mean(call: Call, x: Value, dims: Operand = None, correction: float | None = 1, keepdim: bool = False) -> tuple[Value, Value]:
    return _variance(False)(call, x, dims, correction, keepdim), V.reduce(Op.MEAN, x, dims, keepdim, "a mean over the rows")


def running(op: Op, what: str) -> Row:
    return lambda call, x, dim, **_: V.along(op, V.cast(x, call.dtype), dim, f"{what} over the rows")


def _topk(call: Call, x: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Value, Value]:
    indices = V.slice_(C.sort_indices(x, dim, largest), dim, 0, k)
    return V.gather(x, dim, indices), indices


def _sort(call: Call, x: Value, dim: int = -1, descending: bool = False, *, stable: bool = False) -> tuple[Value, Value]:
    indices = C.sort_indices(x, dim, descending)
    return V.gather(x, dim, indices), indices


# moves ---------------------------------------------------------------------------------------------------------------------------------


def move(fn: Callable[..., Value]) -> Row:
    """A move of values; a Ramp keeps its numbers and takes the new shape."""

    def row(call: Call, x: Operand, *args: Operand, **kwargs: Operand) -> Value | Ramp:
        return Ramp(x.start, x.step, call.shape) if isinstance(x, Ramp) else fn(x, *args, **kwargs)

    return row


def _squeeze(x: Value, dims: Operand = None) -> Value:
    return V.squeeze(x, [dims] if isinstance(dims, int) else dims)


def _expand(call: Call, x: Operand, sizes: Sequence[int], **_: Operand) -> Value | Ramp:
    return Ramp(x.start, x.step, call.shape) if isinstance(x, Ramp) else V.expand(x, sizes, call.batch)


def _repeat(call: Call, x: Value, times: Sequence[int]) -> Value:
    return V.repeat(x, times, call.batch)


def _slice(call: Call, x: Operand, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Value | Ramp:
    if isinstance(x, Ramp):
        if step != 1 or start or call.shape[0] not in (x.shape[0], x.shape[0] - 1):
            raise Mixes("a slice of the row numbers")
        return Ramp(x.start, x.step, call.shape)
    return V.slice_(x, dim, 0 if start is None else start, x.shape[dim] if end is None else end, step)


def _split(call: Call, x: Value, sizes: Operand, dim: int = 0) -> list[Value]:
    if isinstance(sizes, int):
        sizes = [min(sizes, x.shape[dim] - at) for at in range(0, x.shape[dim], sizes)]
    out, at = [], 0
    for size in sizes:
        out.append(V.slice_(x, dim, at, at + size))
        at += size
    return out


def _unbind(call: Call, x: Value, dim: int = 0) -> list[Value]:
    return [V.select(x, dim, i) for i in range(x.shape[dim])]


def _cat(call: Call, xs: Sequence[Value], dim: int = 0) -> Value:
    return V.concat([operand(call, x, call.dtype) for x in xs], dim)


def _stack(call: Call, xs: Sequence[Value], dim: int = 0) -> Value:
    return V.stack([operand(call, x, call.dtype) for x in xs], dim)


def _pad(call: Call, x: Value, widths: Sequence[int], value: float = 0) -> Value:
    pairs = [(widths[i], widths[i + 1]) for i in range(0, len(widths), 2)][::-1]
    return C.pad(x, [(0, 0)] * (len(x.shape) - len(pairs)) + pairs, value or 0)


def _roll(call: Call, x: Value, shifts: Operand, dims: Operand = ()) -> Value:
    shifts = [shifts] if isinstance(shifts, int) else shifts
    dims = [dims] if isinstance(dims, int) else dims
    if not dims:
        return V.reshape(_roll(call, V.reshape(x, (-1,)), shifts, [0]), x.shape)
    for shift, dim in zip(shifts, dims):
        x = V.take(x, dim, np.roll(np.arange(x.shape[dim]), shift).tolist())
    return x


def _unfold(call: Call, x: Value, dim: int, size: int, step: int) -> Value:
    dim = x.dim(dim)
    last = len(x.shape) - 1
    wide = C.windows(V.transpose(x, dim, last), [size], [step], [1])  # (..., windows, size)
    return V.permute(wide, [*range(dim), last, *range(dim + 1, last), dim, last + 1]) if dim != last else wide


def _diagonal(call: Call, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    dim1, dim2 = x.dim(dim1), x.dim(dim2)
    rest = [d for d in range(len(x.shape)) if d not in (dim1, dim2)]
    x = V.permute(x, [*rest, dim1, dim2])
    n, m = x.shape[-2:]
    flat = V.reshape(x, (*x.shape[:-2], n * m))
    return V.take(flat, -1, [i * m + i + offset for i in range(n) if 0 <= i + offset < m])


def _copy(call: Call, x: Value, source: Operand, *_: Operand) -> Value:
    return V.expand(operand(call, source, x.dtype), x.shape, call.batch)


def _select_scatter(call: Call, x: Value, source: Value, dim: int, index: int) -> Value:
    index = index + x.shape[dim] if index < 0 else index
    return _slice_scatter(call, x, V.unsqueeze(source, dim), dim, index, index + 1)


def _slice_scatter(
    call: Call, x: Value, source: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    size = x.shape[dim]
    places = range(*slice(start, end, step).indices(size))
    if len(places) == size:
        return V.cast(source, x.dtype)
    x.axis(dim, "writing to some of the rows")
    order = list(range(size))
    for i, place in enumerate(places):
        order[place] = size + i
    return V.take(V.concat([x, V.cast(source, x.dtype)], dim), dim, order)


# indexing ------------------------------------------------------------------------------------------------------------------------------


def _index(call: Call, x: Value, indices: Sequence[Operand]) -> Value:
    if any(isinstance(i, Value) and i.dtype == "bool" for i in indices):
        indices = _from_masks(indices)
    if any(isinstance(i, Ramp) for i in indices):
        return _index_own_row(x, indices)
    used = [d for d, i in enumerate(indices) if i is not None]
    static = all(indices[d].is_constant and indices[d].rows is None for d in used)
    if static:
        return _index_static(x, indices, used)
    if x.rows is None and used == list(range(len(used))):
        return _index_table(x, [indices[d] for d in used])
    if len(used) == 1 and indices[used[0]].rows is None and not indices[used[0]].is_constant:
        raise Unsupported("an index that depends on the inputs in this form")
    raise Unsupported("an index across rows, or of several dimensions, that depends on the inputs")


def _from_masks(indices: Sequence[Operand]) -> list[Operand]:
    out: list[Operand] = []
    for i in indices:
        if isinstance(i, Value) and i.dtype == "bool":
            if not i.is_constant or i.rows is not None:
                raise Unsupported("data-dependent")
            out += [V.of(n.astype(np.int64), "mask indices") for n in np.nonzero(V.array_of(i))]
        else:
            out.append(i)
    return out


def _together(x: Value, used: Sequence[int]) -> tuple[Value, int]:
    """Indexed dimensions side by side where torch puts the result: at the first of them if adjacent, else in front."""
    if list(used) == list(range(used[0], used[0] + len(used))):
        return x, used[0]
    return V.permute(x, [*used, *(d for d in range(len(x.shape)) if d not in used)]), 0


def _flat_positions(sizes: Sequence[int], arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Row-major positions (broadcast shape) in an array of `sizes`."""
    position: np.ndarray = np.zeros((), np.int64)
    for size, array in zip(sizes, arrays):
        position = position * size + np.where(array < 0, array + size, array)
    return position


def _index_static(x: Value, indices: Sequence[Operand], used: Sequence[int]) -> Value:
    for d in used:
        x.axis(d, "indexing the rows")
    arrays = np.broadcast_arrays(*(V.array_of(indices[d]) for d in used))
    x, at = _together(x, used)
    sizes = x.shape[at : at + len(used)]
    positions = _flat_positions(sizes, arrays)
    flat = V.reshape(x, (*x.shape[:at], math.prod(sizes), *x.shape[at + len(used) :])) if len(used) > 1 else x
    if positions.size == 0:
        empty = V.nothing(flat, at)
        return V.reshape(empty, (*empty.shape[:at], *positions.shape, *empty.shape[at + 1 :]))
    out = V.take(flat, at, positions.ravel().tolist())
    return V.reshape(out, (*out.shape[:at], *positions.shape, *out.shape[at + 1 :]))


def _index_table(x: Value, indices: Sequence[Value]) -> Value:
    """A constant whose first dimensions are indexed by values of the rows: a lookup."""
    position = indices[0]
    for size, index in zip(x.shape[1:], indices[1:]):
        position = C.add(C.mul(position, size), index)
    rest = x.shape[len(indices) :]
    table = V.reshape(x, (math.prod(x.shape[: len(indices)]), math.prod(rest)))
    out = C.lookup(table, position)
    return V.reshape(out, (*out.shape[:-1], *rest))


def _index_own_row(x: Value, indices: Sequence[Operand]) -> Value:
    """x[arange(rows), i, ...]: each row indexes itself."""
    used = [d for d, i in enumerate(indices) if i is not None]
    ramps = [d for d in used if isinstance(indices[d], Ramp)]
    if x.rows != 0 or x.row_axes or ramps != [0] or used != list(range(len(used))) or (indices[0].start, indices[0].step) != (0, 1):
        raise Mixes("an index that lets rows read other rows")
    if len(used) == 1:
        return x if len(indices[0].shape) == 1 else V.reshape(x, (*indices[0].shape, *x.shape[1:]))
    rank = max(len(indices[d].shape) for d in used)
    where = rank - len(indices[0].shape) + next(d for d, n in enumerate(indices[0].shape) if n != 1)
    position: Value | None = None
    for d in used[1:]:
        index = indices[d]
        index = C.where(C.compare(Op.LT, index, 0), C.add(index, x.shape[d]), index)
        position = index if position is None else C.add(C.mul(position, x.shape[d]), index)
    assert position is not None
    if where != 0:
        raise Mixes("an index that lets rows read other rows")
    batch, sizes, rest = x.shape[0], x.shape[1 : len(used)], x.shape[len(used) :]
    if position.rows is None:  # the same places of every row
        if len(position.shape) == rank and position.shape[0] != 1:
            raise Mixes("an index that lets rows read other rows")
        position = V.expand(position, (batch, *position.shape[max(0, len(position.shape) - rank + 1) :]), batch)
    tail = position.shape[1:]
    flat = V.reshape(x, (batch, math.prod(sizes), math.prod(rest)))
    index = V.reshape(position, (batch, math.prod(tail), 1))
    index = V.expand(index, (-1, -1, flat.shape[2]), batch)
    return V.reshape(V.gather(flat, 1, index), (batch, *tail, *rest))


def _index_select(call: Call, x: Value, dim: int, index: Operand) -> Value:
    if isinstance(index, Ramp):
        return _index(call, x, [None] * x.dim(dim) + [index])
    if x.rows is None and index.rows is not None and x.dim(dim) == 0:
        return _index_table(x, [index])
    if not index.is_constant or index.rows is not None:
        raise Mixes("an index that lets rows read other rows")
    return V.take(x, dim, V.array_of(index).ravel().tolist())


def _index_put(call: Call, x: Value, indices: Sequence[Operand], values: Value, accumulate: bool = False) -> Value:
    masks = [i for i in indices if isinstance(i, Value) and i.dtype == "bool"]
    if len(masks) == 1 and len([i for i in indices if i is not None]) == 1 and math.prod(values.shape) == 1 and indices[0] is masks[0]:
        (mask,) = masks
        mask = V.reshape(mask, (*mask.shape, *(1,) * (len(x.shape) - len(mask.shape))))
        put = C.add(x, V.reshape(values, ())) if accumulate else V.cast(V.reshape(values, ()), x.dtype)
        return C.where(mask, put, x)
    if masks:
        indices = _from_masks(indices)
    used = [d for d, i in enumerate(indices) if i is not None]
    if any(isinstance(indices[d], Ramp) for d in used):
        if used != [0, 1] or not isinstance(indices[0], Ramp) or accumulate or len(indices[1].shape) != 1 or x.rows != 0:
            raise Unsupported("a write to places that depend on the inputs, in this form")
        at = C.one_hot(indices[1], x.shape[1], "bool")
        tail = len(x.shape) - 2
        at = V.reshape(at, (*at.shape, *(1,) * tail))
        values = V.unsqueeze(values, 1) if len(values.shape) > tail else values
        return C.where(at, V.cast(values, x.dtype), x)
    if not all(indices[d].is_constant and indices[d].rows is None for d in used):
        raise Unsupported("a write to places that depend on the inputs")
    for d in used:
        x.axis(d, "writing to some of the rows")
    arrays = np.broadcast_arrays(*(V.array_of(indices[d]) for d in used))
    moved, at = _together(x, used)
    sizes = moved.shape[at : at + len(used)]
    positions = _flat_positions(sizes, arrays)
    whole = math.prod(sizes)
    flat = V.reshape(moved, (*moved.shape[:at], whole, *moved.shape[at + len(used) :]))
    want = (*moved.shape[:at], *positions.shape, *moved.shape[at + len(used) :])
    source = V.reshape(V.expand(V.cast(values, x.dtype), want, call.batch), (*flat.shape[:at], positions.size, *flat.shape[at + 1 :]))
    if accumulate:
        spread = np.zeros((whole, positions.size), x.dtype)
        np.add.at(spread, (positions.ravel(), np.arange(positions.size)), 1)
        last = len(flat.shape) - 1
        put = V.transpose(V.linear(V.transpose(source, at, last), V.of(spread, "spread")), at, last)
        out = C.add(flat, put)
    else:
        order = list(range(whole))
        for i, p in enumerate(positions.ravel().tolist()):
            order[p] = whole + i
        out = V.take(V.concat([flat, source], at), at, order)
    out = V.reshape(out, moved.shape)
    if moved is x:
        return out
    order = [*used, *(d for d in range(len(x.shape)) if d not in used)]
    return V.permute(out, [order.index(d) for d in range(len(x.shape))])


def _scatter(how: str) -> Row:
    def row(call: Call, x: Value, dim: int, index: Value, source: Operand, **kwargs: Operand) -> Value:
        if kwargs.get("reduce"):
            raise Unsupported("a scatter with a reduction")
        if isinstance(source, Value) and source.shape != index.shape:
            for d, n in enumerate(index.shape):
                source = V.slice_(source, d, 0, n) if source.shape[d] != n else source
        return C.scatter(x, dim, index, source, how)

    return row


def _index_add(call: Call, x: Value, dim: int, index: Value, source: Value, *, alpha: float = 1) -> Value:
    source = source if alpha == 1 else C.mul(source, alpha)
    return _index_put(call, x, [None] * x.dim(dim) + [index], source, accumulate=True)


def _nonzero(call: Call, x: Value, *_: Operand) -> Value:
    if not x.is_constant or x.rows is not None:
        raise Unsupported("data-dependent")
    return V.of(np.argwhere(V.array_of(x)).astype(np.int64), "nonzero")


def _masked_select(call: Call, x: Value, mask: Value) -> Value:
    return _index(call, x, [mask])


def _bucketize(call: Call, x: Value, bounds: Value, *, right: bool = False, **_: Operand) -> Value:
    beyond = V.pointwise(Op.GE if right else Op.GT, V.unsqueeze(x, -1), V.cast(bounds, x.dtype))
    return V.reduce(Op.SUM, V.cast(beyond, call.dtype), [-1], False, "bucketize")


def _searchsorted(call: Call, bounds: Value, x: Value, *, right: bool = False, **_: Operand) -> Value:
    wide = V.unsqueeze(bounds, -2) if len(bounds.shape) > 1 else bounds
    beyond = V.pointwise(Op.GE if right else Op.GT, V.unsqueeze(x, -1), V.cast(wide, x.dtype))
    return V.reduce(Op.SUM, V.cast(beyond, call.dtype), [-1], False, "searchsorted")


# layers --------------------------------------------------------------------------------------------------------------------------------


def _embedding(call: Call, table: Value, ids: Value, *_: Operand, **__: Operand) -> Value:
    return C.lookup(table, ids)


def _embedding_bag(
    call: Call,
    table: Value,
    ids: Value,
    offsets: Operand,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: Value | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = -1,
    **_: Operand,
) -> tuple[Value, ...]:
    if not isinstance(offsets, Ramp) or offsets.start != 0 or len(offsets.shape) != 1:
        raise Unsupported(
            "bags of lengths that depend on the data (offsets are not evenly spaced; give (rows, length) ids and a padding_idx)"
        )
    bags = offsets.shape[0] - bool(include_last_offset)
    if bags * offsets.step != ids.shape[0]:
        raise Unsupported("bags of unequal length")
    ids = V.reshape(ids, (bags, offsets.step))
    nodes = [table.node, ids.node]
    if weights is not None:
        nodes.append(V.reshape(weights, (bags, offsets.step)).node)
    ignore = None if padding_idx is None or padding_idx < 0 else padding_idx
    node = Node(Op.BAG, nodes, mode=("sum", "mean", "max")[mode], ignore=ignore)
    return (Value(node, (bags, table.shape[1]), ids.rows, ids.outer, ids.inner),)


def _linear(call: Call, x: Value, w: Value, b: Value | None = None) -> Value:
    return V.linear(x, w, b)


def _addmm(call: Call, b: Value, x: Value, w: Value, *, beta: float = 1, alpha: float = 1) -> Value:
    y = V.matmul(x, w)
    if (beta, alpha) != (1, 1):
        y, b = C.mul(y, alpha), C.mul(b, beta)
    return C.add(y, b)


def _attention(
    call: Call,
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    if dropout_p:
        raise Unsupported("random")
    if enable_gqa and q.shape[-3] != k.shape[-3]:
        groups = q.shape[-3] // k.shape[-3]
        k, v = (
            V.reshape(V.expand(V.unsqueeze(t, -3), (*t.shape[:-2], groups, *t.shape[-2:]), call.batch), (*t.shape[:-3], -1, *t.shape[-2:]))
            for t in (k, v)
        )
    return C.attention(q, k, v, attn_mask, is_causal, scale)


def _batch_norm(
    call: Call, x: Value, gain: Value | None, bias: Value | None, mean: Value, var: Value, momentum: float, eps: float
) -> tuple:
    return (C.batch_norm(x, gain, bias, mean, var, eps),)


def _batch_norm_training(call: Call, x: Value, *_: Operand, **__: Operand) -> tuple:
    raise Mixes("BatchNorm in training mode")


def _instance_norm(call: Call, x: Value, gain: Value | None, bias: Value | None, training: bool, momentum: float, eps: float) -> tuple:
    dims = [d for d in range(len(x.shape)) if d != 1]
    if x.rows in dims:
        raise Mixes("BatchNorm in training mode")
    centred = C.sub(x, V.reduce(Op.MEAN, x, dims, True, ""))
    var = V.reduce(Op.MEAN, C.mul(centred, centred), dims, True, "")
    y = C.mul(centred, C.unary(Op.RSQRT, C.add(var, eps)))
    tail = (1,) * (len(x.shape) - 2)
    for op, v in ((Op.MUL, gain), (Op.ADD, bias)):
        if v is not None:
            y = V.pointwise(op, y, V.reshape(v, (*v.shape, *tail)))
    return (y,)


def _layer_norm(call: Call, x: Value, shape: Sequence[int], gain: Value | None = None, bias: Value | None = None, eps: float = 1e-5, *_: Operand) -> Value:  # fmt: skip
    return C.layer_norm(x, len(shape), gain, bias, eps)


def _rms_norm(call: Call, x: Value, shape: Sequence[int], gain: Value | None = None, eps: float | None = None) -> Value:
    dims = [-d for d in range(1, len(shape) + 1)]
    size = V.reduce(Op.MEAN, C.mul(x, x), dims, True, "rms_norm over the rows")
    y = C.mul(x, C.unary(Op.RSQRT, C.add(size, float(np.finfo(x.dtype).eps) if eps is None else eps)))
    return y if gain is None else C.mul(y, gain)


def _group_norm(call: Call, x: Value, gain: Value | None, bias: Value | None, n: int, c: int, hw: int, groups: int, eps: float) -> tuple:
    return (C.group_norm(x, groups, gain, bias, eps),)


def _gru(
    call: Call,
    x: Value,
    h0: Value,
    weights: Sequence[Value],
    biased: bool,
    layers: int,
    dropout: float,
    train: bool,
    both_ways: bool,
    batch_first: bool,
) -> tuple[Value, Value]:
    return C.gru(x, h0, weights, biased, layers, both_ways, batch_first)


def _convolution(
    call: Call,
    x: Value,
    w: Value,
    b: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    if transposed:
        raise Unsupported("a transposed convolution")
    if x.rows != 0:
        raise Mixes("a convolution over the rows")
    return C.convolution(x, w, b, stride, [(p, p) for p in padding], dilation, groups)


def pooled(op: Op, dims: int, indexed: bool) -> Row:
    def row(
        call: Call,
        x: Value,
        size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        *rest: Operand,
        **kwargs: Operand,
    ) -> Any:
        dilation = rest[0] if op is Op.MAX and rest else [1]
        if op is Op.MEAN and any(padding) and (not rest[1:] or rest[1]) is False:
            raise Unsupported("an average pool that does not count its padding")
        y = C.pool(op, x, size, stride or size, [(p, p) for p in padding], dilation, -math.inf if op is Op.MAX else 0.0)
        return (y,) if indexed else y

    return row


def _adaptive_mean(call: Call, x: Value, size: Sequence[int]) -> Value:
    n = len(size)
    if any(have % want for have, want in zip(x.shape[-n:], size)):
        raise Unsupported("an adaptive pool into unequal parts")
    widths = [have // want for have, want in zip(x.shape[-n:], size)]
    return C.pool(Op.MEAN, x, widths, widths, [(0, 0)])


def _first(call: Call, x: Operand, *_: Operand, **__: Operand) -> Operand:
    return x


ATEN: dict[str, Row] = {
    # pointwise
    **{name: unary(op) for name, op in {
        "neg": Op.NEG, "abs": Op.ABS, "sign": Op.SIGN, "sgn": Op.SIGN, "exp": Op.EXP, "log": Op.LOG, "sqrt": Op.SQRT, "rsqrt": Op.RSQRT,
        "sin": Op.SIN, "cos": Op.COS, "tanh": Op.TANH, "sigmoid": Op.SIGMOID, "relu": Op.RELU, "erf": Op.ERF,
    }.items()},
    "floor": floats(lambda x: x if x.dtype not in FLOATS else C.unary(Op.FLOOR, x)),
    "round": floats(lambda x: x if x.dtype not in FLOATS else C.unary(Op.ROUND, x)),
    "ceil": floats(_ceil),
    "trunc": floats(_trunc),
    "frac": floats(lambda x: C.sub(x, _trunc(x))),
    "reciprocal": floats(lambda x: C.power(x, -1)),
    "square": floats(lambda x: C.power(x, 2)),
    "log1p": floats(lambda x: C.unary(Op.LOG, C.add(x, 1))),
    "expm1": floats(lambda x: C.sub(C.unary(Op.EXP, x), 1)),
    "exp2": floats(lambda x: C.unary(Op.EXP, C.mul(x, math.log(2)))),
    "log2": floats(lambda x: C.mul(C.unary(Op.LOG, x), 1 / math.log(2))),
    "log10": floats(lambda x: C.mul(C.unary(Op.LOG, x), 1 / math.log(10))),
    "tan": floats(lambda x: C.div(C.unary(Op.SIN, x), C.unary(Op.COS, x))),
    "sinh": floats(lambda x: C.mul(C.sub(C.unary(Op.EXP, x), C.unary(Op.EXP, C.unary(Op.NEG, x))), 0.5)),
    "cosh": floats(lambda x: C.mul(C.add(C.unary(Op.EXP, x), C.unary(Op.EXP, C.unary(Op.NEG, x))), 0.5)),
    "atan": floats(lambda x: V.pointwise(Op.ATAN2, x, C.like(x, 1))),
    "gelu": floats(C.gelu),
    "elu": floats(C.elu),
    "celu": floats(lambda x, alpha=1.0: C.elu(x, alpha, 1, 1 / alpha)),
    "selu": floats(lambda x: C.elu(x, 1.6732632423543772, 1.0507009873554805)),
    "leaky_relu": floats(C.leaky_relu),
    "silu": floats(C.silu),
    "mish": floats(lambda x: C.mul(x, C.unary(Op.TANH, C.softplus(x)))),
    "softplus": floats(C.softplus),
    "log_sigmoid": floats(C.log_sigmoid),
    "log_sigmoid_forward": lambda call, x: (C.log_sigmoid(x),),
    "hardswish": floats(C.hardswish),
    "hardsigmoid": floats(C.hardsigmoid),
    "hardtanh": floats(lambda x, low=-1.0, high=1.0: C.minimum(C.maximum(x, low), high)),
    "relu6": floats(lambda x: C.minimum(C.maximum(x, 0.0), 6.0)),
    "logit": floats(lambda x, eps=None: C.unary(Op.LOG, C.div(x, C.sub(C.like(x, 1), x)))),
    "glu": lambda call, x, dim=-1: C.mul(_split(call, x, x.shape[dim] // 2, dim)[0], C.unary(Op.SIGMOID, _split(call, x, x.shape[dim] // 2, dim)[1])),
    "_prelu_kernel": lambda call, x, slope: C.prelu(x, slope),
    **{name: binary(op) for name, op in {
        "add": Op.ADD, "sub": Op.SUB, "subtract": Op.SUB, "mul": Op.MUL, "multiply": Op.MUL, "maximum": Op.MAXIMUM, "minimum": Op.MINIMUM,
        "fmax": Op.MAXIMUM, "fmin": Op.MINIMUM, "remainder": Op.MOD, "atan2": Op.ATAN2,
    }.items()},
    "rsub": lambda call, a, b, alpha=1: binary(Op.SUB)(call, b, a, alpha=alpha),
    "div": _div,
    "true_divide": _div,
    "floor_divide": lambda call, a, b: _div(call, a, b, rounding_mode="floor"),
    "fmod": _fmod,
    "pow": _pow,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "lerp": _lerp,
    **{name: compared(op) for name, op in {"eq": Op.EQ, "ne": Op.NE, "lt": Op.LT, "le": Op.LE, "gt": Op.GT, "ge": Op.GE}.items()},
    "logical_and": logical(Op.AND),
    "logical_or": logical(Op.OR),
    "logical_xor": logical(Op.NE),
    "logical_not": lambda call, x: C.unary(Op.NOT, C.boolean(x)),
    "bitwise_and": bitwise(Op.AND),
    "bitwise_or": bitwise(Op.OR),
    "bitwise_xor": bitwise(Op.NE),
    "bitwise_not": lambda call, x: C.unary(Op.NOT, x) if x.dtype == "bool" else C.sub(C.unary(Op.NEG, x), 1),
    "isnan": lambda call, x: C.unary(Op.ISNAN, x) if x.dtype in FLOATS else C.compare(Op.NE, x, x),
    "isinf": _isinf,
    "nan_to_num": _nan_to_num,
    "clamp": _clamp,
    "clamp_min": lambda call, x, low: _clamp(call, x, low),
    "clamp_max": lambda call, x, high: _clamp(call, x, None, high),
    "where": _where,
    "masked_fill": _masked_fill,
    "_to_copy": _to,
    "to": _to,
    # creation
    "full": _full,
    "zeros": lambda call, shape, **_: _full(call, shape, 0),
    "ones": lambda call, shape, **_: _full(call, shape, 1),
    "empty": lambda call, shape, **_: _full(call, shape, 0),
    "new_zeros": lambda call, x, shape, **_: _full(call, shape, 0),
    "new_ones": lambda call, x, shape, **_: _full(call, shape, 1),
    "new_full": lambda call, x, shape, fill, **_: _full(call, shape, fill),
    "full_like": _full_like,
    "zeros_like": _full_like,
    "empty_like": _full_like,
    "ones_like": lambda call, x, **_: _full_like(call, x, 1),
    "fill": lambda call, x, fill: _full_like(call, x, fill),
    "scalar_tensor": lambda call, x, **_: number(call, x, call.dtype),
    "arange": _arange,
    "eye": _eye,
    "tril": _triangle(np.tril),
    "triu": _triangle(np.triu),
    "tril_indices": _triangle_indices(lambda n, k, m: np.tril_indices(n, k, m)),
    "triu_indices": _triangle_indices(lambda n, k, m: np.triu_indices(n, k, m)),
    **{name: _random for name in ("rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "bernoulli", "native_dropout",
                                  "multinomial", "normal", "uniform", "dropout", "exponential")},
    # along dimensions
    "sum": reduced(Op.SUM, "a sum"),
    "mean": reduced(Op.MEAN, "a mean"),
    "prod": reduced(Op.PROD, "a product"),
    "amax": reduced(Op.MAX, "a maximum"),
    "amin": reduced(Op.MIN, "a minimum"),
    "max": lambda call, x, *rest: extreme(Op.MAX, "a maximum")(call, x, *rest) if rest else reduced(Op.MAX, "a maximum")(call, x),
    "min": lambda call, x, *rest: extreme(Op.MIN, "a minimum")(call, x, *rest) if rest else reduced(Op.MIN, "a minimum")(call, x),
    "argmax": _argmax(1),
    "argmin": _argmax(-1),
    "any": _any(Op.MAX),
    "all": _any(Op.MIN),
    "var": _variance(False),
    "std": _variance(True),
    "var_mean": _var_mean,
    "logsumexp": lambda call, x, dims, keepdim=False: C.logsumexp(x, [dims] if isinstance(dims, int) else dims, keepdim),
    "linalg_vector_norm": lambda call, x, ord=2, dims=None, keepdim=False, **_: C.norm(x, ord, [dims] if isinstance(dims, int) else dims, keepdim),
    "cumsum": running(Op.CUMSUM, "cumsum"),
    "cumprod": running(Op.CUMPROD, "cumprod"),
    "softmax": lambda call, x, dim, *_: C.softmax(V.cast(x, call.dtype), dim),
    "_softmax": lambda call, x, dim, *_: C.softmax(V.cast(x, call.dtype), dim),
    "_safe_softmax": lambda call, x, dim, *_: C.where(C.compare(Op.EQ, V.reduce(Op.MAX, x, [dim], True, "softmax over the rows"), -math.inf), 0.0, C.softmax(x, dim)),
    "log_softmax": lambda call, x, dim, *_: C.log_softmax(V.cast(x, call.dtype), dim),
    "_log_softmax": lambda call, x, dim, *_: C.log_softmax(V.cast(x, call.dtype), dim),
    "topk": _topk,
    "sort": _sort,
    "argsort": lambda call, x, *args, **kwargs: _sort(call, x, *args, **kwargs)[1],
    # moves
    **{name: move(V.reshape) for name in ("view", "reshape", "_unsafe_view")},
    "permute": move(V.permute),
    "transpose": move(V.transpose),
    "t": lambda call, x: V.transpose(x, 0, 1) if len(x.shape) == 2 else x,
    "squeeze": move(_squeeze),
    "unsqueeze": move(V.unsqueeze),
    "expand": _expand,
    "repeat": _repeat,
    "slice": _slice,
    "select": lambda call, x, dim, index: V.select(x, dim, index),
    "split": _split,
    "split_with_sizes": _split,
    "unbind": _unbind,
    "cat": _cat,
    "stack": _stack,
    "flip": lambda call, x, dims: C.flip(x, dims),
    "roll": _roll,
    "constant_pad_nd": _pad,
    "unfold": _unfold,
    "diagonal": _diagonal,
    **{name: _first for name in ("clone", "alias", "detach", "contiguous", "lift_fresh_copy", "lift_fresh", "view_of", "_conj")},
    "copy": _copy,
    "select_scatter": _select_scatter,
    "slice_scatter": _slice_scatter,
    # indexing
    "index": _index,
    "_unsafe_index": _index,
    "index_select": _index_select,
    "gather": lambda call, x, dim, index, **_: V.gather(x, dim, index),
    "index_put": _index_put,
    "_unsafe_index_put": _index_put,
    "index_add": _index_add,
    "scatter": _scatter("set"),
    "scatter_add": _scatter("add"),
    "nonzero": _nonzero,
    "masked_select": _masked_select,
    "bucketize": _bucketize,
    "searchsorted": _searchsorted,
    # layers
    "embedding": _embedding,
    "_embedding_bag": _embedding_bag,
    "_embedding_bag_forward_only": _embedding_bag,
    "embedding_bag": _embedding_bag,
    "linear": _linear,
    "mm": lambda call, a, b: V.matmul(a, b),
    "bmm": lambda call, a, b: V.matmul(a, b),
    "matmul": lambda call, a, b: V.matmul(a, b),
    "dot": lambda call, a, b: V.matmul(a, b),
    "mv": lambda call, a, b: V.matmul(a, b),
    "addmm": _addmm,
    "baddbmm": _addmm,
    "scaled_dot_product_attention": _attention,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_native_batch_norm_legit": lambda call, x, *args: (_instance_norm if len(args) == 5 else _batch_norm_training)(call, x, *args),
    "native_batch_norm": _batch_norm_training,
    "layer_norm": _layer_norm,
    "native_layer_norm": lambda call, *args: (_layer_norm(call, *args),),
    "rms_norm": _rms_norm,
    "native_group_norm": _group_norm,
    "gru": _gru,
    "convolution": _convolution,
    "max_pool1d": pooled(Op.MAX, 1, False),
    "max_pool2d": pooled(Op.MAX, 2, False),
    "max_pool2d_with_indices": pooled(Op.MAX, 2, True),
    "avg_pool1d": pooled(Op.MEAN, 1, False),
    "avg_pool2d": pooled(Op.MEAN, 2, False),
    "_adaptive_avg_pool2d": _adaptive_mean,
    "adaptive_avg_pool1d": _adaptive_mean,
}  # fmt: skip
