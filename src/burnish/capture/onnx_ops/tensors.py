"""Rows for ONNX ops that act on each entry, make tensors, reduce them, or move and index their entries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from burnish.capture import composed as C
from burnish.capture import value as V
from burnish.capture.aten.call import Ramp, ramp_arithmetic
from burnish.capture.aten.indexing import index_of, index_put
from burnish.capture.aten.pointwise import trunc
from burnish.capture.onnx_ops.call import Attrs, Call, Columns, Operands, Row
from burnish.capture.value import Ambiguous, Mixes, Unsupported, Value
from burnish.graph.ops import FLOATS, Op


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
    return V.cast(trunc(C.div(V.cast(x[0], "float64"), V.cast(x[1], "float64"))), x[0].dtype)


def _mod(call: Call, x: Operands, attrs: Attrs) -> Value:
    if not attrs.get("fmod"):
        return V.pointwise(Op.MOD, x[0], x[1])
    dtype = x[0].dtype if x[0].dtype in FLOATS else "float64"
    whole = V.cast(trunc(C.div(V.cast(x[0], dtype), V.cast(x[1], dtype))), x[0].dtype)
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


def _concat(call: Call, x: Operands, attrs: Attrs) -> Value | Ramp | Columns:
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


def padded_bag_loop(data: Value, ids: Value, offsets: Ramp, padding: int, op: Op) -> Value:
    """`bag_loop` of the rows whose id is not `padding`; 0 where none is left."""
    bags, step = offsets.shape[0] - 1, offsets.step
    if offsets.start != 0 or bags * step != data.shape[0]:
        raise Unsupported("bags of unequal length")
    rows = V.reshape(data, (bags, step, *data.shape[1:]))
    kept = C.compare(Op.NE, V.reshape(ids, (bags, step)), padding)
    wide, what = V.unsqueeze(kept, -1), "a bag over the rows"
    some = V.reduce(Op.MAX, wide, [1], False, what)
    if op is Op.MAX:
        return C.where(some, V.reduce(Op.MAX, C.where(wide, rows, -math.inf), [1], False, what), 0.0)
    total = V.reduce(Op.SUM, C.where(wide, rows, 0.0), [1], False, what)
    if op is Op.SUM:
        return total
    count = V.reduce(Op.SUM, V.cast(wide, "float32"), [1], False, what)
    return C.div(total, V.pointwise(Op.MAXIMUM, count, V.number(1.0, "float32")))


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


def _logsumexp(call: Call, x: Operands, attrs: Attrs) -> Value:
    return C.logsumexp(x[0], _axes(x, attrs) or list(range(len(x[0].shape))), bool(attrs.get("keepdims", 1)))


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
        return index_of(call.aten(data), data, [None] * axis + [index])
    if index.is_constant and index.rows is None:
        array = V.array_of(index)
        if array.ndim == 0:
            return V.select(data, axis, array.item())
        out = V.take(data, axis, array.ravel().tolist())
        return V.reshape(out, (*data.shape[:axis], *array.shape, *data.shape[axis + 1 :]))
    if data.rows is None and data.is_constant:
        if axis:
            data = V.permute(data, [axis, *(d for d in range(len(data.shape)) if d != axis)])
        out = index_of(call.aten(data), data, [index])
        if not axis:
            return out
        n = len(index.shape)
        lead = [n + d for d in range(axis)]
        return V.permute(out, [*lead, *range(n), *range(n + axis, len(out.shape))])
    raise Mixes("a Gather that lets rows read other rows")


def _gather_nd(call: Call, x: Operands, attrs: Attrs) -> Value:
    data, index = x
    if isinstance(index, Columns):
        return index_of(call.aten(data), data, index.columns)
    batched = attrs.get("batch_dims", 0)
    columns: list[Any] = [V.select(index, -1, i) for i in range(index.shape[-1])]
    if batched:
        if batched != 1 or data.rows != 0 or index.rows != 0:
            raise Unsupported("a GatherND with these batch dimensions")
        columns = [Ramp(0, 1, (data.shape[0], *(1,) * (len(columns[0].shape) - 1))), *columns]
    return index_of(call.aten(data), data, columns)


def _scatter_nd(call: Call, x: Operands, attrs: Attrs) -> Value:
    if attrs.get("reduction", "none") not in ("none", "add"):
        raise Unsupported("a ScatterND with this reduction")
    data, index, updates = x
    columns = index.columns if isinstance(index, Columns) else [V.select(index, -1, i) for i in range(index.shape[-1])]
    return index_put(call.aten(data), data, columns, updates, attrs.get("reduction") == "add")


def _scatter_elements(call: Call, x: Operands, attrs: Attrs) -> Value:
    how = {"none": "set", "add": "add"}.get(attrs.get("reduction", "none"))
    if how is None:
        raise Unsupported("a ScatterElements with this reduction")
    return C.scatter(x[0], attrs.get("axis", 0), x[1], x[2], how)


TENSORS: dict[str, Row] = {
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
    "EyeLike": lambda call, x, attrs: V.of(np.eye(x[0].shape[0], x[0].shape[1], attrs.get("k", 0), x[0].dtype), "eye"),
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
    "ReduceLogSumExp": _logsumexp,
    "ArgMax": _arg(1),
    "ArgMin": _arg(-1),
    "CumSum": _cumsum,
    "TopK": _topk,
    # indexing
    "Gather": _gather,
    "GatherElements": lambda call, x, attrs: V.gather(x[0], attrs.get("axis", 0), x[1]),
    "GatherND": _gather_nd,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
}  # fmt: skip
