"""Rows for aten ops that are layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from burnish.capture import composed as C
from burnish.capture import value as V
from burnish.capture.aten.call import Call, Operand, Ramp, Row
from burnish.capture.value import Mixes, Unsupported, Value
from burnish.graph.node import Node
from burnish.graph.ops import Op


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


def _layer_norm(
    call: Call, x: Value, shape: Sequence[int], gain: Value | None = None, bias: Value | None = None, eps: float = 1e-5, *_: Operand
) -> Value:
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


LAYERS: dict[str, Row] = {
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
