"""ONNX ops on traced values, one row each: (call, operands, attributes) -> a value or a tuple of them; opset 13 and later."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from burnish.capture import composed as C
from burnish.capture import value as V
from burnish.capture.aten import Call as AtenCall
from burnish.capture.aten import Ramp, _index, _index_put, _trunc, ramp_arithmetic
from burnish.capture.value import Ambiguous, Mixes, Unsupported, Value
from burnish.graph.ops import FLOATS, Op


@dataclass(frozen=True)
class Call:
    """The batch of the walk and the opset; `outputs` is how many results the node has."""

    batch: int
    opset: int
    outputs: int

    def aten(self, x: Value) -> AtenCall:
        return AtenCall(x.dtype, x.shape, self.batch)


@dataclass(frozen=True)
class Columns:
    """Indices side by side along a last axis, where one of them numbers the rows: what GatherND and ScatterND read row by row."""

    columns: tuple[Any, ...]  # Value | Ramp, without the last axis


Operands = Sequence[Any]
Attrs = Mapping[str, Any]
Row = Callable[[Call, Operands, Attrs], Any]


def ints(value: Value) -> list[int]:
    """The entries of a constant of integers: a shape, axes, indices."""
    return [int(n) for n in V.array_of(value).ravel()]


def _number_is_safe(call: Call, value: Value) -> Value:
    """A single constant number; Ambiguous when it may be the number of rows."""
    if value.is_constant and value.rows is None and math.prod(value.shape) == 1:
        n = float(V.array_of(value).ravel()[0])
        if abs(n) >= call.batch and math.isfinite(n) and n % call.batch == 0:
            raise Ambiguous
    return value


def unary(op: Op) -> Row:
    return lambda call, x, attrs: C.unary(op, x[0])


def fn(of: Callable[..., Value]) -> Row:
    return lambda call, x, attrs: of(x[0])


def binary(op: Op) -> Row:
    def row(call: Call, x: Operands, attrs: Attrs) -> Value | Ramp:
        if isinstance(x[0], Ramp) or isinstance(x[1], Ramp):
            return ramp_arithmetic(op, x[0], x[1], 1)
        for a, b in ((x[0], x[1]), (x[1], x[0])):
            if not a.is_constant:
                _number_is_safe(call, b)
        return V.pointwise(op, x[0], x[1])

    return row


def variadic(op: Op) -> Row:
    def row(call: Call, x: Operands, attrs: Attrs) -> Value:
        out = x[0]
        for v in x[1:]:
            out = V.pointwise(op, out, v)
        return out

    return row


def _div(call: Call, x: Operands, attrs: Attrs) -> Value:
    if not x[0].is_constant:
        _number_is_safe(call, x[1])
    if x[0].dtype in FLOATS:
        return V.pointwise(Op.DIV, x[0], x[1])
    return V.cast(_trunc(C.div(V.cast(x[0], "float64"), V.cast(x[1], "float64"))), x[0].dtype)


def _mod(call: Call, x: Operands, attrs: Attrs) -> Value:
    if not attrs.get("fmod"):
        return V.pointwise(Op.MOD, x[0], x[1])
    dtype = x[0].dtype if x[0].dtype in FLOATS else "float64"
    whole = V.cast(_trunc(C.div(V.cast(x[0], dtype), V.cast(x[1], dtype))), x[0].dtype)
    return C.sub(x[0], C.mul(whole, x[1]))


def _pow(call: Call, x: Operands, attrs: Attrs) -> Value:
    if x[1].is_constant and x[1].rows is None and math.prod(x[1].shape) == 1:
        return C.power(x[0], V.array_of(x[1]).item())
    return V.pointwise(Op.POW, x[0], V.cast(x[1], x[0].dtype))


def _clip(call: Call, x: Operands, attrs: Attrs) -> Value:
    low, high = (x[i] if len(x) > i else None for i in (1, 2))
    y = x[0] if low is None else C.maximum(x[0], low)
    return y if high is None else C.minimum(y, high)


DTYPES = {1: "float32", 2: "int32", 3: "int32", 5: "int32", 6: "int32", 7: "int64", 9: "bool", 11: "float64", 12: "int64", 13: "int64"}


def _cast(call: Call, x: Operands, attrs: Attrs) -> Any:
    if isinstance(x[0], Ramp):
        return x[0]
    to = DTYPES.get(int(attrs["to"]))
    if to is None:
        raise Unsupported(f"a cast to ONNX type {attrs['to']}")
    return C.boolean(x[0]) if to == "bool" else V.cast(x[0], to)


# shapes and creation -------------------------------------------------------------------------------------------------------------------


def _shape(call: Call, x: Operands, attrs: Attrs) -> Value:
    shape = x[0].shape[attrs.get("start", 0) : attrs.get("end")]
    return V.of(np.array(shape, np.int64), "shape")


def _constant_of_shape(call: Call, x: Operands, attrs: Attrs) -> Value:
    fill = attrs.get("value")
    array = np.zeros(1, np.float32) if fill is None else np.asarray(fill)
    shape = ints(x[0])
    value = V.number(array.ravel()[0].item(), str(array.dtype))
    return V.of(np.zeros(shape, array.dtype), "nothing") if 0 in shape else V.expand(value, shape, call.batch)


def _range(call: Call, x: Operands, attrs: Attrs) -> Value | Ramp:
    start, limit, step = (V.array_of(v).item() for v in x)
    array = np.arange(start, limit, step).astype(x[0].dtype)
    if len(array) >= call.batch and len(array) % call.batch in (0, 1) and isinstance(start, int):
        return Ramp(start, step, (len(array),))
    return V.of(array, "range")


def _expand(call: Call, x: Operands, attrs: Attrs) -> Value:
    shape = ints(x[1])
    lead = len(x[0].shape) - len(shape)
    shape = [*x[0].shape[:lead], *shape] if lead > 0 else shape
    own = (1,) * (len(shape) - len(x[0].shape)) + x[0].shape
    return V.expand(x[0], [n if m == 1 else m for n, m in zip(own, shape)] if own != tuple(shape) else shape, call.batch)


def _reshape(call: Call, x: Operands, attrs: Attrs) -> Any:
    if isinstance(x[0], Ramp):
        return Ramp(x[0].start, x[0].step, tuple(math.prod(x[0].shape) if n == -1 else n for n in ints(x[1])))
    shape = ints(x[1])
    if not attrs.get("allowzero"):
        shape = [x[0].shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return V.reshape(x[0], shape)


def _flatten(call: Call, x: Operands, attrs: Attrs) -> Value:
    axis = x[0].dim(attrs.get("axis", 1))
    return V.reshape(x[0], (math.prod(x[0].shape[:axis]), math.prod(x[0].shape[axis:])))


def _transpose(call: Call, x: Operands, attrs: Attrs) -> Value:
    return V.permute(x[0], attrs.get("perm") or list(range(len(x[0].shape)))[::-1])


def _axes(x: Operands, attrs: Attrs) -> list[int] | None:
    if len(x) > 1 and x[1] is not None:
        return ints(x[1])
    return list(attrs["axes"]) if "axes" in attrs else None


def _unsqueeze(call: Call, x: Operands, attrs: Attrs) -> Any:
    axes = _axes(x, attrs) or []
    rank = len(x[0].shape) + len(axes)
    axes = sorted(a % rank for a in axes)
    if isinstance(x[0], Ramp):
        shape = list(x[0].shape)
        for axis in axes:
            shape.insert(axis, 1)
        return Ramp(x[0].start, x[0].step, tuple(shape))
    out = x[0]
    for axis in axes:
        out = V.unsqueeze(out, axis)
    return out


def _split(call: Call, x: Operands, attrs: Attrs) -> tuple[Value, ...]:
    axis = x[0].dim(attrs.get("axis", 0))
    size = x[0].shape[axis]
    if len(x) > 1 and x[1] is not None:
        sizes = ints(x[1])
    else:
        parts = attrs.get("num_outputs", call.outputs)
        each = -(-size // parts)
        sizes = [min(each, size - i * each) for i in range(parts)]
    ends = np.cumsum(sizes).tolist()
    return tuple(V.slice_(x[0], axis, end - n, end) for n, end in zip(sizes, ends))


def _slice(call: Call, x: Operands, attrs: Attrs) -> Value:
    starts, ends = ints(x[1]), ints(x[2])
    axes = ints(x[3]) if len(x) > 3 and x[3] is not None else list(range(len(starts)))
    steps = ints(x[4]) if len(x) > 4 and x[4] is not None else [1] * len(starts)
    out = x[0]
    for start, end, axis, step in zip(starts, ends, axes, steps):
        if step < 0:
            size = out.shape[out.dim(axis)]
            first = min(start + size if start < 0 else start, size - 1)
            last = max(end + size if end < 0 else end, -1) if end > -size - 1 else -1
            out = V.take(out, axis, list(range(first, last, step)))
        else:
            out = V.slice_(out, axis, start, end, step)
    return out


def _pad(call: Call, x: Operands, attrs: Attrs) -> Value:
    if attrs.get("mode", "constant") != "constant":
        raise Unsupported(f"a pad of mode {attrs['mode']!r}")
    widths = ints(x[1])
    fill = V.array_of(x[2]).item() if len(x) > 2 and x[2] is not None else 0
    axes = ints(x[3]) if len(x) > 3 and x[3] is not None else list(range(len(x[0].shape)))
    pairs = [(0, 0)] * len(x[0].shape)
    for i, axis in enumerate(axes):
        pairs[x[0].dim(axis)] = (widths[i], widths[i + len(axes)])
    return C.pad(x[0], pairs, fill)


def _concat(call: Call, x: Operands, attrs: Attrs) -> Value | Columns:
    if any(isinstance(v, Ramp) for v in x) and all(v.shape[-1] == 1 for v in x) and attrs["axis"] in (-1, len(x[0].shape) - 1):
        return Columns(tuple(Ramp(v.start, v.step, v.shape[:-1]) if isinstance(v, Ramp) else V.squeeze(v, [-1]) for v in x))
    if len(x) == 2 and isinstance(x[0], Ramp) and isinstance(x[1], Value) and math.prod(x[1].shape) == 1:
        (count,) = x[0].shape
        if V.array_of(x[1]).item() == x[0].start + x[0].step * count:  # offsets of bags, and where the last one ends
            return Ramp(x[0].start, x[0].step, (count + 1,))
    return V.concat(list(x), attrs["axis"])


def bag_loop(data: Value, offsets: Ramp, op: Op) -> Value:
    """What torch's exporter writes as a Loop: `op` over each run of rows (rows * length, W) between evenly spaced offsets."""
    bags, step = offsets.shape[0] - 1, offsets.step
    if offsets.start != 0 or bags * step != data.shape[0]:
        raise Unsupported("bags of unequal length")
    return V.reduce(op, V.reshape(data, (bags, step, *data.shape[1:])), [1], False, "a bag over the rows")


def _trilu(call: Call, x: Operands, attrs: Attrs) -> Value:
    k = V.array_of(x[1]).item() if len(x) > 1 and x[1] is not None else 0
    keep = np.triu if attrs.get("upper", 1) else np.tril
    mask = V.of(keep(np.ones(x[0].shape[-2:], bool), k), "triangle")
    for dim in (-1, -2):
        x[0].axis(dim, "a triangle over the rows")
    return V.pointwise(Op.AND, x[0], mask) if x[0].dtype == "bool" else C.where(mask, x[0], 0)


def _one_hot(call: Call, x: Operands, attrs: Attrs) -> Value:
    if attrs.get("axis", -1) not in (-1, len(x[0].shape)):
        raise Unsupported("a OneHot along an axis that is not the last")
    off, on = V.array_of(x[2]).tolist()
    at = C.one_hot(x[0], int(V.array_of(x[1]).ravel()[0]), "bool")
    return C.where(at, V.number(on, x[2].dtype), V.number(off, x[2].dtype))


# along axes ----------------------------------------------------------------------------------------------------------------------------


def reduced(op: Op, name: str, before: Callable[[Value], Value] | None = None, after: Callable[[Value], Value] | None = None) -> Row:
    def row(call: Call, x: Operands, attrs: Attrs) -> Value:
        axes = _axes(x, attrs)
        if not axes and attrs.get("noop_with_empty_axes"):
            return x[0]
        y = V.reduce(op, before(x[0]) if before else x[0], axes, bool(attrs.get("keepdims", 1)), f"{name} over the rows")
        return after(y) if after else y

    return row


def _arg(sign: int) -> Row:
    def row(call: Call, x: Operands, attrs: Attrs) -> Value:
        value = x[0] if sign > 0 else C.unary(Op.NEG, x[0])
        return V.argmax(value, attrs.get("axis", 0), bool(attrs.get("keepdims", 1)), "argmax over the rows")

    return row


def _cumsum(call: Call, x: Operands, attrs: Attrs) -> Value:
    if attrs.get("exclusive") or attrs.get("reverse"):
        raise Unsupported("an exclusive or reversed CumSum")
    return V.along(Op.CUMSUM, x[0], V.array_of(x[1]).item(), "cumsum over the rows")


def _topk(call: Call, x: Operands, attrs: Attrs) -> tuple[Value, Value]:
    dim = x[0].dim(attrs.get("axis", -1))
    indices = V.slice_(C.sort_indices(x[0], dim, bool(attrs.get("largest", 1))), dim, 0, ints(x[1])[0])
    return V.gather(x[0], dim, indices), indices


# indexing ------------------------------------------------------------------------------------------------------------------------------


def _gather(call: Call, x: Operands, attrs: Attrs) -> Value:
    data, index = x
    axis = data.dim(attrs.get("axis", 0))
    if isinstance(index, Ramp):
        return _index(call.aten(data), data, [None] * axis + [index])
    if index.is_constant and index.rows is None:
        array = V.array_of(index)
        if array.ndim == 0:
            return V.select(data, axis, array.item())
        out = V.take(data, axis, array.ravel().tolist())
        return V.reshape(out, (*data.shape[:axis], *array.shape, *data.shape[axis + 1 :]))
    if data.rows is None and data.is_constant:
        if axis:
            data = V.permute(data, [axis, *(d for d in range(len(data.shape)) if d != axis)])
        out = _index(call.aten(data), data, [index])
        if not axis:
            return out
        n = len(index.shape)
        lead = [n + d for d in range(axis)]
        return V.permute(out, [*lead, *range(n), *range(n + axis, len(out.shape))])
    raise Mixes("a Gather that lets rows read other rows")


def _gather_nd(call: Call, x: Operands, attrs: Attrs) -> Value:
    data, index = x
    if isinstance(index, Columns):
        return _index(call.aten(data), data, index.columns)
    batched = attrs.get("batch_dims", 0)
    columns: list[Any] = [V.select(index, -1, i) for i in range(index.shape[-1])]
    if batched:
        if batched != 1 or data.rows != 0 or index.rows != 0:
            raise Unsupported("a GatherND with these batch dimensions")
        columns = [Ramp(0, 1, (data.shape[0], *(1,) * (len(columns[0].shape) - 1))), *columns]
    return _index(call.aten(data), data, columns)


def _scatter_nd(call: Call, x: Operands, attrs: Attrs) -> Value:
    if attrs.get("reduction", "none") not in ("none", "add"):
        raise Unsupported("a ScatterND with this reduction")
    data, index, updates = x
    columns = index.columns if isinstance(index, Columns) else [V.select(index, -1, i) for i in range(index.shape[-1])]
    return _index_put(call.aten(data), data, columns, updates, attrs.get("reduction") == "add")


def _scatter_elements(call: Call, x: Operands, attrs: Attrs) -> Value:
    how = {"none": "set", "add": "add"}.get(attrs.get("reduction", "none"))
    if how is None:
        raise Unsupported("a ScatterElements with this reduction")
    return C.scatter(x[0], attrs.get("axis", 0), x[1], x[2], how)


# layers --------------------------------------------------------------------------------------------------------------------------------


def _gemm(call: Call, x: Operands, attrs: Attrs) -> Value:
    a = V.transpose(x[0], 0, 1) if attrs.get("transA") else x[0]
    alpha, beta = attrs.get("alpha", 1.0), attrs.get("beta", 1.0)
    bias = x[2] if len(x) > 2 else None
    if bias is not None and beta != 1:
        bias = C.mul(bias, beta)
    if attrs.get("transB") and alpha == 1 and (bias is None or len(bias.shape) == 1):
        return V.linear(a, x[1], bias)
    y = V.matmul(a, V.transpose(x[1], 0, 1) if attrs.get("transB") else x[1])
    if alpha != 1:
        y = C.mul(y, alpha)
    return y if bias is None else C.add(y, bias)


def _batch_norm(call: Call, x: Operands, attrs: Attrs) -> Value:
    if attrs.get("training_mode"):
        raise Mixes("BatchNormalization in training mode")
    return C.batch_norm(x[0], x[1], x[2], x[3], x[4], attrs.get("epsilon", 1e-5))


def _layer_norm(call: Call, x: Operands, attrs: Attrs) -> Value:
    axes = len(x[0].shape) - x[0].dim(attrs.get("axis", -1))
    return C.layer_norm(x[0], axes, x[1], x[2] if len(x) > 2 else None, attrs.get("epsilon", 1e-5))


def _instance(call: Call, x: Operands, attrs: Attrs) -> Value:
    """(rows, C, ...): each channel of each row by itself."""
    dims = list(range(2, len(x[0].shape)))
    centred = C.sub(x[0], V.reduce(Op.MEAN, x[0], dims, True, "InstanceNormalization over the rows"))
    var = V.reduce(Op.MEAN, C.mul(centred, centred), dims, True, "InstanceNormalization over the rows")
    tail = (1,) * len(dims)
    gain, bias = (V.reshape(v, (*v.shape, *tail)) for v in x[1:3])
    return C.add(C.mul(C.mul(centred, C.unary(Op.RSQRT, C.add(var, attrs.get("epsilon", 1e-5)))), gain), bias)


def _conv(call: Call, x: Operands, attrs: Attrs) -> Value:
    n = len(x[0].shape) - 2
    if x[0].rows != 0:
        raise Mixes("a convolution over the rows")
    return C.convolution(
        x[0], x[1], x[2] if len(x) > 2 else None, attrs.get("strides", [1] * n), _pads(attrs, n), attrs.get("dilations", [1] * n), attrs.get("group", 1)
    )  # fmt: skip


def _pads(attrs: Attrs, n: int) -> list[tuple[int, int]]:
    if attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Unsupported(f"auto_pad {attrs['auto_pad']!r}")
    pads = attrs.get("pads") or [0] * (2 * n)
    return [(pads[i], pads[i + n]) for i in range(n)]


def pooled(op: Op) -> Row:
    def row(call: Call, x: Operands, attrs: Attrs) -> Value:
        size = attrs["kernel_shape"]
        n = len(size)
        if attrs.get("ceil_mode"):
            raise Unsupported("a pool with ceil_mode")
        pads = _pads(attrs, n)
        if op is Op.MEAN and any(map(any, pads)) and not attrs.get("count_include_pad"):
            raise Unsupported("an average pool that does not count its padding")
        strides, dilations = attrs.get("strides", [1] * n), attrs.get("dilations", [1] * n)
        return C.pool(op, x[0], size, strides, pads, dilations, -math.inf if op is Op.MAX else 0.0)

    return row


def _global(op: Op) -> Row:
    return lambda call, x, attrs: V.reduce(op, x[0], list(range(2, len(x[0].shape))), True, "pooling over the rows")


def _gru(call: Call, x: Operands, attrs: Attrs) -> tuple[Value, Value]:
    if not attrs.get("linear_before_reset") or attrs.get("layout"):
        raise Unsupported("a GRU of another form than torch's (linear_before_reset=1, layout=0)")
    order = ("update", "reset", "new")

    def gates(v: Value) -> Value:
        return _reordered(v, [order.index(g) for g in ("reset", "update", "new")], 3)

    def way(steps: Value, d: int) -> tuple[Value, Value]:
        w, r, b_ih, b_hh = _direction(x, d, gates)
        out = C.gru_steps(steps, _start(call, x, 5, d), w, r, b_ih, b_hh)
        return out, V.select(out, 0, out.shape[0] - 1)

    return _both_ways(x[0], attrs, way)


def _lstm(call: Call, x: Operands, attrs: Attrs) -> tuple[Value, ...]:
    if attrs.get("layout"):
        raise Unsupported("an LSTM with layout=1")
    cells: list[Value] = []

    def gates(v: Value) -> Value:
        return _reordered(v, [0, 2, 3, 1], 4)  # input, output, forget, cell -> input, forget, cell, output

    def way(steps: Value, d: int) -> tuple[Value, Value]:
        w, r, b_ih, b_hh = _direction(x, d, gates)
        out, last, cell = C.lstm_steps(steps, _start(call, x, 5, d), _start(call, x, 6, d), w, r, b_ih, b_hh)
        cells.append(cell)
        return out, last

    y, last = _both_ways(x[0], attrs, way)
    return y, last, V.stack(cells, 0)


def _reordered(v: Value, order: Sequence[int], parts: int) -> Value:
    size = v.shape[0] // parts
    return V.concat([V.slice_(v, 0, i * size, (i + 1) * size) for i in order], 0)


def _direction(x: Operands, d: int, gates: Callable[[Value], Value]) -> tuple[Value, Value, Value, Value]:
    w, r = (gates(V.select(x[i], 0, d)) for i in (1, 2))
    if len(x) > 4 and x[4] is not None:
        raise Unsupported("a recurrence with sequence_lens")
    if len(x) > 3 and x[3] is not None:
        b = V.select(x[3], 0, d)
        half = b.shape[0] // 2
        return w, r, gates(V.slice_(b, 0, 0, half)), gates(V.slice_(b, 0, half, 2 * half))
    zero = V.of(np.zeros(w.shape[0], w.dtype), "zero bias")
    return w, r, zero, zero


def _start(call: Call, x: Operands, at: int, d: int) -> Value:
    if len(x) > at and x[at] is not None:
        return V.select(x[at], 0, d)
    rows, hidden = x[0].shape[1], x[2].shape[-1]
    return V.expand(V.of(np.zeros((1, hidden), x[0].dtype), "zero state"), (rows, hidden), call.batch)


def _both_ways(x: Value, attrs: Attrs, way: Callable[[Value, int], tuple[Value, Value]]) -> tuple[Value, Value]:
    if x.rows != 1:
        raise Mixes("a recurrence whose steps are the rows")
    direction = attrs.get("direction", "forward")
    outs, lasts = [], []
    for d, name in enumerate(("forward", "reverse") if direction == "bidirectional" else (direction,)):
        out, last = way(C.flip(x, [0]) if name == "reverse" else x, d)
        outs.append(C.flip(out, [0]) if name == "reverse" else out)
        lasts.append(last)
    return V.stack(outs, 1), V.stack(lasts, 0)


def _dropout(call: Call, x: Operands, attrs: Attrs) -> Value:
    if len(x) > 2 and x[2] is not None and V.array_of(x[2]).item():
        raise Unsupported("random")
    return x[0]


def _softmax(of: Callable[[Value, int], Value]) -> Row:
    return lambda call, x, attrs: of(x[0], attrs.get("axis", -1))


def _random(call: Call, x: Operands, attrs: Attrs) -> Value:
    raise Unsupported("random")


def _rms_norm(call: Call, x: Operands, attrs: Attrs) -> Value:
    axis = x[0].dim(attrs.get("axis", -1))
    size = V.reduce(Op.MEAN, C.mul(x[0], x[0]), list(range(axis, len(x[0].shape))), True, "rms_norm over the rows")
    return C.mul(C.mul(x[0], C.unary(Op.RSQRT, C.add(size, attrs.get("epsilon", 1e-5)))), x[1])


ONNX: dict[str, Row] = {
    **{name: unary(op) for name, op in {
        "Neg": Op.NEG, "Abs": Op.ABS, "Sign": Op.SIGN, "Exp": Op.EXP, "Log": Op.LOG, "Sqrt": Op.SQRT, "Sin": Op.SIN, "Cos": Op.COS,
        "Tanh": Op.TANH, "Sigmoid": Op.SIGMOID, "Relu": Op.RELU, "Erf": Op.ERF, "Floor": Op.FLOOR, "Round": Op.ROUND, "Not": Op.NOT,
        "IsNaN": Op.ISNAN,
    }.items()},
    "Ceil": fn(lambda x: C.unary(Op.NEG, C.unary(Op.FLOOR, C.unary(Op.NEG, x)))),
    "Atan": fn(lambda x: V.pointwise(Op.ATAN2, x, C.like(x, 1))),
    "Tan": fn(lambda x: C.div(C.unary(Op.SIN, x), C.unary(Op.COS, x))),
    "Reciprocal": fn(lambda x: C.power(x, -1)),
    "Softplus": fn(lambda x: C.softplus(x, threshold=math.inf)),
    "Softsign": fn(lambda x: C.div(x, C.add(C.unary(Op.ABS, x), 1))),
    "HardSwish": fn(C.hardswish),
    "Mish": fn(lambda x: C.mul(x, C.unary(Op.TANH, C.softplus(x, threshold=math.inf)))),
    "Identity": lambda call, x, attrs: x[0],
    "Dropout": _dropout,
    "LeakyRelu": lambda call, x, attrs: C.leaky_relu(x[0], attrs.get("alpha", 0.01)),
    "Elu": lambda call, x, attrs: C.elu(x[0], attrs.get("alpha", 1.0)),
    "Selu": lambda call, x, attrs: C.elu(x[0], attrs.get("alpha", 1.6732632423543772), attrs.get("gamma", 1.0507009873554805)),
    "Celu": lambda call, x, attrs: C.elu(x[0], attrs.get("alpha", 1.0), 1, 1 / attrs.get("alpha", 1.0)),
    "Gelu": lambda call, x, attrs: C.gelu(x[0], attrs.get("approximate", "none")),
    "HardSigmoid": lambda call, x, attrs: C.hardsigmoid(x[0], attrs.get("alpha", 0.2), attrs.get("beta", 0.5)),
    "PRelu": lambda call, x, attrs: C.where(C.compare(Op.LT, x[0], 0), C.mul(x[0], x[1]), x[0]),
    **{name: binary(op) for name, op in {
        "Add": Op.ADD, "Sub": Op.SUB, "Mul": Op.MUL, "Equal": Op.EQ, "Less": Op.LT, "LessOrEqual": Op.LE, "Greater": Op.GT,
        "GreaterOrEqual": Op.GE, "And": Op.AND, "Or": Op.OR, "Xor": Op.NE,
    }.items()},
    "Div": _div,
    "Mod": _mod,
    "Pow": _pow,
    "Max": variadic(Op.MAXIMUM),
    "Min": variadic(Op.MINIMUM),
    "Sum": variadic(Op.ADD),
    "Mean": lambda call, x, attrs: C.mul(variadic(Op.ADD)(call, x, attrs), 1 / len(x)),
    "IsInf": lambda call, x, attrs: C.compare(Op.EQ, C.unary(Op.ABS, x[0]), math.inf),
    "Where": lambda call, x, attrs: C.where(x[0], x[1], x[2]),
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": lambda call, x, attrs: V.cast(x[0], x[1].dtype),
    "SequenceEmpty": lambda call, x, attrs: [],
    "ConcatFromSequence": lambda call, x, attrs: V.concat(x[0], attrs["axis"]),
    # shapes, creation, moves
    "Shape": _shape,
    "Size": lambda call, x, attrs: V.of(np.array(math.prod(x[0].shape), np.int64), "size"),
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Expand": _expand,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": lambda call, x, attrs: V.squeeze(x[0], _axes(x, attrs)),
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Tile": lambda call, x, attrs: V.repeat(x[0], ints(x[1]), call.batch),
    "Pad": _pad,
    "Trilu": _trilu,
    "OneHot": _one_hot,
    "EyeLike": lambda call, x, attrs: V.of(np.eye(*x[0].shape, k=attrs.get("k", 0), dtype=x[0].dtype), "eye"),
    # along axes
    "ReduceSum": reduced(Op.SUM, "a sum"),
    "ReduceMean": reduced(Op.MEAN, "a mean"),
    "ReduceMax": reduced(Op.MAX, "a maximum"),
    "ReduceMin": reduced(Op.MIN, "a minimum"),
    "ReduceProd": reduced(Op.PROD, "a product"),
    "ReduceL1": reduced(Op.SUM, "a norm", lambda x: C.unary(Op.ABS, x)),
    "ReduceL2": reduced(Op.SUM, "a norm", lambda x: C.mul(x, x), lambda x: C.unary(Op.SQRT, x)),
    "ReduceSumSquare": reduced(Op.SUM, "a sum", lambda x: C.mul(x, x)),
    "ReduceLogSum": reduced(Op.SUM, "a sum", None, lambda x: C.unary(Op.LOG, x)),
    "ReduceLogSumExp": lambda call, x, attrs: C.logsumexp(x[0], _axes(x, attrs) or list(range(len(x[0].shape))), bool(attrs.get("keepdims", 1))),
    "ArgMax": _arg(1),
    "ArgMin": _arg(-1),
    "CumSum": _cumsum,
    "Softmax": _softmax(C.softmax),
    "LogSoftmax": _softmax(C.log_softmax),
    "TopK": _topk,
    # indexing
    "Gather": _gather,
    "GatherElements": lambda call, x, attrs: V.gather(x[0], attrs.get("axis", 0), x[1]),
    "GatherND": _gather_nd,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    # layers
    "MatMul": lambda call, x, attrs: V.matmul(x[0], x[1]),
    "Gemm": _gemm,
    "Einsum": lambda call, x, attrs: C.einsum(attrs["equation"], x),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance,
    "RMSNormalization": _rms_norm,
    "Conv": _conv,
    "MaxPool": pooled(Op.MAX),
    "AveragePool": pooled(Op.MEAN),
    "GlobalAveragePool": _global(Op.MEAN),
    "GlobalMaxPool": _global(Op.MAX),
    "GRU": _gru,
    "LSTM": _lstm,
    **{name: _random for name in ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")},
}  # fmt: skip
