"""Rows for ONNX ops that are layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from burnish.capture import composed as C
from burnish.capture import value as V
from burnish.capture.onnx_ops.call import Attrs, Call, Operands, Row
from burnish.capture.value import Mixes, Unsupported, Value
from burnish.graph.ops import Op


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
    bias = x[2] if len(x) > 2 else None
    strides, dilations = attrs.get("strides", [1] * n), attrs.get("dilations", [1] * n)
    return C.convolution(x[0], x[1], bias, strides, _pads(attrs, n), dilations, attrs.get("group", 1))


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


LAYERS: dict[str, Row] = {
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
    "Dropout": _dropout,
    "Softmax": _softmax(C.softmax),
    "LogSoftmax": _softmax(C.log_softmax),
    **{name: _random for name in ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")},
}  # fmt: skip
