"""Rows for aten ops that make tensors, reduce and sort them, or move their entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from burnish.capture import composed as C
from burnish.capture import value as V
from burnish.capture.aten.call import Call, Operand, Ramp, Row, number, operand
from burnish.capture.value import Mixes, Unsupported, Value
from burnish.graph.node import Node
from burnish.graph.ops import Op

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


def _norm(call: Call, x: Value, ord: float = 2, dims: Operand = None, keepdim: bool = False, **_: Operand) -> Value:
    return C.norm(x, ord, [dims] if isinstance(dims, int) else dims, keepdim)


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
    if x.dim(dim) == x.rows and step == 1:
        return V.put_rows(x, V.cast(source, x.dtype), places.start, places.stop)
    x.axis(dim, "writing to some of the rows")
    order = list(range(size))
    for i, place in enumerate(places):
        order[place] = size + i
    return V.take(V.concat([x, V.cast(source, x.dtype)], dim), dim, order)


def _first(call: Call, x: Operand, *_: Operand, **__: Operand) -> Operand:
    return x


TENSORS: dict[str, Row] = {
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
    **{name: _random for name in (
        "rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "bernoulli", "native_dropout", "dropout",
        "multinomial", "normal", "uniform", "exponential",
    )},
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
    "linalg_vector_norm": _norm,
    "cumsum": running(Op.CUMSUM, "cumsum"),
    "cumprod": running(Op.CUMPROD, "cumprod"),
    "softmax": lambda call, x, dim, *_: C.softmax(V.cast(x, call.dtype), dim),
    "_softmax": lambda call, x, dim, *_: C.softmax(V.cast(x, call.dtype), dim),
    "_safe_softmax": lambda call, x, dim, *_: C.safe_softmax(x, dim),
    "log_softmax": lambda call, x, dim, *_: C.log_softmax(V.cast(x, call.dtype), dim),
    "_log_softmax": lambda call, x, dim, *_: C.log_softmax(V.cast(x, call.dtype), dim),
    "topk": _topk,
    "sort": _sort,
    "argsort": lambda call, x, *args, **kwargs: _sort(call, x, *args, **kwargs)[1],
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
}  # fmt: skip
