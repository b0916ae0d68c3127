"""Layers and functions put together from the ops of a Graph, on traced values; the torch and the ONNX tables share them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from burnish.capture import value as V
from burnish.capture.value import Mixes, Unsupported, Value
from burnish.graph.node import Node, weight
from burnish.graph.ops import FLOATS, Op

T = TypeVar("T")


def like(x: Value, number: float | int | bool) -> Value:
    """A number in the dtype of `x`."""
    return V.number(number, x.dtype)


def add(a: Value, b: Value | float) -> Value:
    return V.pointwise(Op.ADD, a, b if isinstance(b, Value) else like(a, b))


def sub(a: Value, b: Value | float) -> Value:
    return V.pointwise(Op.SUB, a, b if isinstance(b, Value) else like(a, b))


def mul(a: Value, b: Value | float) -> Value:
    return V.pointwise(Op.MUL, a, b if isinstance(b, Value) else like(a, b))


def div(a: Value, b: Value | float) -> Value:
    return V.pointwise(Op.DIV, a, b if isinstance(b, Value) else like(a, b))


def maximum(a: Value, b: Value | float) -> Value:
    return V.pointwise(Op.MAXIMUM, a, b if isinstance(b, Value) else like(a, b))


def minimum(a: Value, b: Value | float) -> Value:
    return V.pointwise(Op.MINIMUM, a, b if isinstance(b, Value) else like(a, b))


def where(condition: Value, a: Value | float, b: Value | float) -> Value:
    """At least one of `a` and `b` is a Value, whose dtype a number takes."""
    model = a if isinstance(a, Value) else b
    assert isinstance(model, Value)
    a, b = (v if isinstance(v, Value) else like(model, v) for v in (a, b))
    return V.pointwise(Op.WHERE, boolean(condition), a, b)


def compare(op: Op, a: Value, b: Value | float) -> Value:
    return V.pointwise(op, a, b if isinstance(b, Value) else like(a, b))


def unary(op: Op, x: Value) -> Value:
    return V.pointwise(op, x)


def boolean(x: Value) -> Value:
    return x if x.dtype == "bool" else compare(Op.NE, x, 0)


def power(x: Value, exponent: float) -> Value:
    """x ** number; squares, roots and reciprocals without POW."""
    if x.dtype in FLOATS:
        known = {1: lambda: x, 2: lambda: mul(x, x), 3: lambda: mul(mul(x, x), x), 0.5: lambda: unary(Op.SQRT, x),
                 -0.5: lambda: unary(Op.RSQRT, x), -1: lambda: div(like(x, 1), x)}  # fmt: skip
        if exponent in known:
            return known[exponent]()
    return V.pointwise(Op.POW, x, like(x, exponent))


# activations ---------------------------------------------------------------------------------------------------------------------------


def gelu(x: Value, approximate: str = "none") -> Value:
    """x/2 (1 + erf(x / sqrt 2)), or its tanh approximation."""
    if approximate == "tanh":
        inner = mul(add(x, mul(mul(mul(x, x), x), 0.044715)), math.sqrt(2 / math.pi))
        return mul(mul(x, 0.5), add(unary(Op.TANH, inner), 1))
    return mul(mul(x, 0.5), add(unary(Op.ERF, mul(x, math.sqrt(0.5))), 1))


def elu(x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    """scale * x where x > 0, else scale * alpha * (exp(input_scale * x) - 1)."""
    low = mul(sub(unary(Op.EXP, mul(minimum(x, 0), input_scale)), 1), alpha * scale)
    return where(compare(Op.GT, x, 0), mul(x, scale) if scale != 1 else x, low)


def leaky_relu(x: Value, slope: float = 0.01) -> Value:
    return maximum(x, mul(x, slope)) if slope <= 1 else minimum(x, mul(x, slope))


def prelu(x: Value, slope: Value) -> Value:
    return where(compare(Op.GT, x, 0), x, mul(x, slope))


def silu(x: Value) -> Value:
    return mul(x, unary(Op.SIGMOID, x))


def glu(x: Value, dim: int = -1) -> Value:
    """The first half along `dim` times the sigmoid of the second."""
    half = x.shape[dim] // 2
    return mul(V.slice_(x, dim, 0, half), unary(Op.SIGMOID, V.slice_(x, dim, half, 2 * half)))


def softplus(x: Value, beta: float = 1, threshold: float = 20) -> Value:
    """log(1 + exp(beta x)) / beta, and x itself where beta x > threshold."""
    scaled = mul(x, beta) if beta != 1 else x
    soft = add(unary(Op.RELU, scaled), unary(Op.LOG, add(unary(Op.EXP, unary(Op.NEG, unary(Op.ABS, scaled))), 1)))
    return where(compare(Op.GT, scaled, threshold), x, div(soft, beta) if beta != 1 else soft)


def log_sigmoid(x: Value) -> Value:
    return unary(Op.NEG, softplus(unary(Op.NEG, x), threshold=math.inf))


def hardsigmoid(x: Value, slope: float = 1 / 6, shift: float = 0.5) -> Value:
    return minimum(maximum(add(mul(x, slope), shift), 0), 1)


def hardswish(x: Value) -> Value:
    return mul(x, hardsigmoid(x))


def log_softmax(x: Value, dim: int) -> Value:
    shifted = sub(x, V.reduce(Op.MAX, x, [dim], True, "log_softmax over the rows"))
    return sub(shifted, unary(Op.LOG, V.reduce(Op.SUM, unary(Op.EXP, shifted), [dim], True, "log_softmax over the rows")))


def logsumexp(x: Value, dims: Sequence[int], keepdims: bool) -> Value:
    top = V.reduce(Op.MAX, x, dims, True, "logsumexp over the rows")
    total = V.reduce(Op.SUM, unary(Op.EXP, sub(x, top)), dims, True, "logsumexp over the rows")
    out = add(unary(Op.LOG, total), top)
    return out if keepdims else V.squeeze(out, dims)


def softmax(x: Value, dim: int) -> Value:
    return V.along(Op.SOFTMAX, x, dim, "softmax over the rows")


def safe_softmax(x: Value, dim: int) -> Value:
    """Zeros where all entries are -inf."""
    blind = compare(Op.EQ, V.reduce(Op.MAX, x, [dim], True, "softmax over the rows"), -math.inf)
    return where(blind, 0.0, softmax(x, dim))


def variance(x: Value, dims: Sequence[int] | None, correction: float, keepdims: bool) -> Value:
    dims = list(dims) if dims else list(range(len(x.shape)))
    centred = sub(x, V.reduce(Op.MEAN, x, dims, True, "a variance over the rows"))
    total = V.reduce(Op.SUM, mul(centred, centred), dims, keepdims, "a variance over the rows")
    return mul(total, 1 / max(math.prod(x.shape[d] for d in dims) - correction, 1e-300))


def norm(x: Value, order: float, dims: Sequence[int] | None, keepdims: bool) -> Value:
    """The vector norm of order 1, 2, inf, -inf, 0 or any other over `dims`."""
    what = "a norm over the rows"
    size = unary(Op.ABS, x)
    if order == math.inf:
        return V.reduce(Op.MAX, size, dims, keepdims, what)
    if order == -math.inf:
        return V.reduce(Op.MIN, size, dims, keepdims, what)
    if order == 0:
        return V.reduce(Op.SUM, V.cast(compare(Op.NE, x, 0), x.dtype), dims, keepdims, what)
    return power(V.reduce(Op.SUM, power(x if order == 2 else size, order), dims, keepdims, what), 1 / order)


# normalization -------------------------------------------------------------------------------------------------------------------------


def batch_norm(x: Value, gain: Value | None, bias: Value | None, mean: Value, var: Value, eps: float) -> Value:
    """BatchNorm with its running statistics is one multiplication and one addition for each channel (dimension 1)."""
    scale = 1 / np.sqrt(V.array_of(var).astype(np.float64) + eps)
    if gain is not None:
        scale = scale * V.array_of(gain)
    shift = -V.array_of(mean).astype(np.float64) * scale
    if bias is not None:
        shift = shift + V.array_of(bias)
    tail = (1,) * max(len(x.shape) - 2, 0)
    a, b = (V.of(v.astype(x.dtype).reshape(-1, *tail), name) for v, name in ((scale, "batch_norm.scale"), (shift, "batch_norm.shift")))
    return add(mul(x, a), b)


def layer_norm(x: Value, axes: int, gain: Value | None, bias: Value | None, eps: float) -> Value:
    """Over the last `axes` dimensions."""
    for d in range(1, axes + 1):
        x.axis(-d, "layer_norm over the rows")
    shape = x.shape[len(x.shape) - axes :]
    g = gain.node if gain is not None else weight("ones", np.ones(shape, x.dtype))
    b = bias.node if bias is not None else weight("zeros", np.zeros(shape, x.dtype))
    return x.with_node(Node(Op.LAYERNORM, (x.node, g, b), eps=float(eps)))


def group_norm(x: Value, groups: int, gain: Value | None, bias: Value | None, eps: float) -> Value:
    """(rows, C, ...): normalized over each group of channels and everything behind it, then gain and bias for each channel."""
    flat = V.reshape(x, (x.shape[0], groups, math.prod(x.shape[1:]) // groups))
    out = V.reshape(layer_norm(flat, 1, None, None, eps), x.shape)
    tail = (1,) * (len(x.shape) - 2)
    for op, v in ((Op.MUL, gain), (Op.ADD, bias)):
        if v is not None:
            out = V.pointwise(op, out, V.reshape(v, (x.shape[1], *tail)))
    return out


# attention, recurrence, convolution ----------------------------------------------------------------------------------------------------


def attention(q: Value, k: Value, v: Value, mask: Value | None, causal: bool, scale: float | None) -> Value:
    """(..., L, d), (..., S, d), (..., S, e) -> (..., L, e): softmax(q k^T * scale + mask) v.

    A bool mask keeps where it is true; a query that may see nothing gets zeros, as in torch.
    """
    scores = V.matmul(q, V.transpose(k, -1, -2))
    scores = mul(scores, scale if scale is not None else 1 / math.sqrt(q.shape[-1]))
    if causal:
        seen = V.of(np.tril(np.ones((q.shape[-2], k.shape[-2]), bool)), "causal mask")
        weights = softmax(where(seen, scores, -1e30), -1)
    elif mask is None:
        weights = softmax(scores, -1)
    elif mask.dtype == "bool":  # a finite fill keeps NaN out of the graph; the second choice is for queries that see nothing
        weights = where(mask, softmax(where(mask, scores, -1e30), -1), 0.0)
    else:
        weights = safe_softmax(add(scores, mask), -1)
    return V.matmul(weights, v)


def gru_steps(x: Value, h0: Value, w_ih: Value, w_hh: Value, b_ih: Value, b_hh: Value) -> Value:
    """x with its time as the dimension that is not rows, (rows, T, I) or (T, rows, I); h0 (rows, H) -> like x with H."""
    time = 1 if x.rows == 0 else 0
    if len(x.node.shape) == 2 and len(h0.node.shape) == 1 and x.dtype == "float32":
        node = Node(Op.GRU, (x.node, h0.node, w_ih.node, w_hh.node, b_ih.node, b_hh.node))
        return x.with_dim(-1, node, w_hh.shape[1])
    h, out = h0, []  # rows merged with another dimension: step by step
    for t in range(x.shape[time]):
        r_in, z_in, n_in = chunk(V.linear(V.select(x, time, t), w_ih, b_ih), 3)
        r_h, z_h, n_h = chunk(V.linear(h, w_hh, b_hh), 3)
        reset, update = unary(Op.SIGMOID, add(r_in, r_h)), unary(Op.SIGMOID, add(z_in, z_h))
        new = unary(Op.TANH, add(n_in, mul(reset, n_h)))
        h = add(mul(sub(like(update, 1), update), new), mul(update, h))
        out.append(h)
    return V.stack(out, time)


def chunk(x: Value, parts: int) -> list[Value]:
    """Equal parts of the last dimension."""
    size = x.shape[-1] // parts
    return [V.slice_(x, -1, i * size, (i + 1) * size) for i in range(parts)]


def gru(
    x: Value, h0: Value, weights: Sequence[Value], biased: bool, layers: int, both_ways: bool, batch_first: bool
) -> tuple[Value, Value]:
    """torch.nn.GRU: (output, last states (layers * directions, rows, H)); layers and directions put together from single ones."""
    time = 1 if batch_first else 0
    if x.rows != 1 - time:
        raise Mixes("a GRU whose steps are the rows")
    each = 4 if biased else 2
    last = []
    for layer in range(layers):
        outs = []
        for way in range(1 + both_ways):
            index = layer * (1 + both_ways) + way
            held = list(weights[index * each : (index + 1) * each])
            if not biased:
                held += [V.of(np.zeros(held[0].shape[0], held[0].dtype), "zero bias")] * 2
            steps = flip(x, [time]) if way else x
            out = gru_steps(steps, V.select(h0, 0, index), *held)
            last.append(V.select(out, time, out.shape[time] - 1))
            outs.append(flip(out, [time]) if way else out)
        x = V.concat(outs, 2)
    return x, V.stack(last, 0)


def flip(x: Value, dims: Sequence[int]) -> Value:
    for d in dims:
        x = V.take(x, d, range(x.shape[d])[::-1])
    return x


def pad(x: Value, widths: Sequence[tuple[int, int]], fill: float = 0) -> Value:
    """`widths[d]` entries of `fill` before and after dimension d; negative ones cut."""
    for d, (before, after) in enumerate(widths):
        if before < 0 or after < 0:
            x = V.slice_(x, d, max(-before, 0), x.shape[d] - max(-after, 0))
        parts = [x]
        for n, put in ((before, 0), (after, 1)):
            if n > 0:
                axis = x.axis(d, "padding the rows")
                shape = (*x.node.shape[:axis], n, *x.node.shape[axis + 1 :])
                filled = x.with_dim(d, Node(Op.EXPAND, (V.number(fill, x.dtype).node,), shape=shape), n)
                parts.insert(len(parts) if put else 0, filled)
        x = V.concat(parts, d)
    return x


def windows(x: Value, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Value:
    """(..., S1, S2, ...) -> (..., O1, k1, O2, k2, ...): the last len(size) dimensions as sliding windows."""
    n = len(size)
    for i in range(n):
        d = len(x.shape) - (n - i)
        reach = dilation[i] * (size[i] - 1) + 1
        starts = range(0, x.shape[d] - reach + 1, stride[i])
        indices = [s + j * dilation[i] for s in starts for j in range(size[i])]
        x = V.take(x, d, indices)
        x = V.reshape(x, (*x.shape[:d], len(starts), size[i], *x.shape[d + 1 :]))
    return x


def _each(setting: Sequence[T], dims: int) -> list[T]:
    """One setting for all dimensions, or one for each."""
    return list(setting) * dims if len(setting) == 1 else list(setting)


def convolution(
    x: Value, w: Value, b: Value | None, stride: Sequence[int], padding: Sequence[tuple[int, int]], dilation: Sequence[int], groups: int
) -> Value:
    """(rows, C, *space), (O, C / groups, *k) -> (rows, O, *space'): windows as the rows of a linear."""
    n = len(w.shape) - 2
    stride, padding, dilation = _each(stride, n), _each(padding, n), _each(dilation, n)
    x = pad(x, [(0, 0), (0, 0), *padding])
    x = windows(x, w.shape[2:], stride, dilation)  # (rows, C, O1, k1, O2, k2, ...)
    outs = [2 + 2 * i for i in range(n)]
    x = V.permute(x, [0, *outs, 1, *(o + 1 for o in outs)])  # (rows, O1, O2, ..., C, k1, k2, ...)
    space = x.shape[1 : 1 + n]
    taps = math.prod(w.shape[2:])
    channels, filters = x.shape[1 + n] // groups, w.shape[0] // groups
    x = V.reshape(x, (x.shape[0], *space, groups * channels * taps))
    kernel = V.reshape(w, (w.shape[0], channels * taps))
    if groups == 1:
        y = V.linear(x, kernel)
    elif groups == w.shape[0] == groups * channels:
        y = V.reduce(Op.SUM, mul(V.reshape(x, (*x.shape[:-1], groups, taps)), kernel), [-1], False, "a convolution over the rows")
    else:
        width = channels * taps
        y = V.concat(
            [
                V.linear(V.slice_(x, -1, g * width, (g + 1) * width), V.slice_(kernel, 0, g * filters, (g + 1) * filters))
                for g in range(groups)
            ],
            len(x.shape) - 1,
        )
    if b is not None:
        y = add(y, b)
    return V.permute(y, [0, len(y.shape) - 1, *range(1, len(y.shape) - 1)])


def pool(
    op: Op,
    x: Value,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int] = (1,),
    fill: float = 0,
) -> Value:
    """MAX or MEAN of the windows of the last len(size) dimensions."""
    n = len(size)
    stride, padding, dilation = _each(stride or size, n), _each(padding, n), _each(dilation, n)
    x = pad(x, [(0, 0)] * (len(x.shape) - n) + list(padding), fill)
    lead = len(x.shape) - n
    x = windows(x, size, stride, dilation)
    return V.reduce(op, x, [lead + 2 * i + 1 for i in range(n)], False, "pooling over the rows")


# indices -------------------------------------------------------------------------------------------------------------------------------


def lookup(table: Value, ids: Value) -> Value:
    """(V, W) constant, ids (...) -> (..., W)."""
    if table.rows is not None or not table.is_constant:
        raise Unsupported("a lookup in a table that depends on the inputs")
    ids = ids if ids.dtype in ("int64", "int32") else V.cast(ids, "int64")
    return Value(Node(Op.LOOKUP, (table.node, ids.node)), (*ids.shape, table.shape[1]), ids.rows, ids.outer, ids.inner)


def sort_indices(x: Value, dim: int, descending: bool) -> Value:
    return V.along(Op.ARGSORT, x, dim, "sorting the rows", descending=bool(descending))


def one_hot(index: Value, size: int, dtype: str) -> Value:
    """(...) -> (..., size): 1 where the index is."""
    return V.cast(compare(Op.EQ, V.unsqueeze(index, -1), V.of(np.arange(size, dtype=index.dtype), "positions")), dtype)


def scatter(x: Value, dim: int, index: Value, source: Value | float, how: str) -> Value:
    """torch.scatter ("set": no two of one index), scatter_add ("add"), along a dimension that is not the rows."""
    dim = x.dim(dim)
    x.axis(dim, "scattering the rows")
    last = len(x.shape) - 1
    moved = V.transpose(x, dim, last)
    at = one_hot(V.transpose(index, dim, last), x.shape[dim], "float32" if x.dtype not in FLOATS else x.dtype)  # (..., K, size)
    hit = V.reduce(Op.MAX, at, [-2], False, "scattering the rows")
    if isinstance(source, Value):
        if source.shape != index.shape:
            raise Unsupported("a scatter whose source is larger than its index")
        spread = mul(at, V.unsqueeze(V.cast(V.transpose(source, dim, last), at.dtype), -1))
        put = V.cast(V.reduce(Op.SUM, spread, [-2], False, "scattering the rows"), x.dtype)
    else:
        put = like(x, source)
    if how == "add":
        out = add(moved, put)
    else:
        out = where(compare(Op.GT, hit, 0), put, moved)
    return V.transpose(out, dim, last)


def lstm_steps(x: Value, h: Value, c: Value, w_ih: Value, w_hh: Value, b_ih: Value, b_hh: Value) -> tuple[Value, Value, Value]:
    """x (T, rows, I), h and c (rows, H), gates in order input, forget, cell, output -> (T, rows, H), last h, last c."""
    out = []
    for t in range(x.shape[0]):
        gates = add(V.linear(V.select(x, 0, t), w_ih, b_ih), V.linear(h, w_hh, b_hh))
        i, f, g, o = chunk(gates, 4)
        c = add(mul(unary(Op.SIGMOID, f), c), mul(unary(Op.SIGMOID, i), unary(Op.TANH, g)))
        h = mul(unary(Op.SIGMOID, o), unary(Op.TANH, c))
        out.append(h)
    return V.stack(out, 0), h, c


# einsum --------------------------------------------------------------------------------------------------------------------------------


def einsum(equation: str, values: Sequence[Value]) -> Value:
    """Pairwise from the left; a label is a batch, a free or a summed dimension of each pair, and each pair is a matrix product."""
    terms, out = _labels(equation, values)
    left, have = values[0], terms[0]
    for i in range(1, len(values)):
        wanted = set(out).union(*terms[i + 1 :])
        left, have = _einsum_pair(left, have, values[i], terms[i], wanted)
    left, have = _diagonals(left, have)
    summed = [d for d, label in enumerate(have) if label not in out]
    if summed:
        left = V.reduce(Op.SUM, left, summed, False, "einsum over the rows")
        have = [label for label in have if label in out]
    return V.permute(left, [have.index(label) for label in out])


def _labels(equation: str, values: Sequence[Value]) -> tuple[list[list[str]], list[str]]:
    left, arrow, right = equation.replace(" ", "").partition("->")
    spare = [chr(c) for c in range(0x3B1, 0x3B1 + 20)]
    texts = left.split(",")
    deepest = max(len(v.shape) - len(t.replace("...", "")) if "..." in t else 0 for t, v in zip(texts, values))

    def spelled(text: str, rank: int | None) -> list[str]:
        before, dots, after = text.partition("...")
        count = 0 if not dots else deepest if rank is None else rank - len(before) - len(after)
        return [*before, *(spare[deepest - count : deepest] if dots else []), *after]

    terms = [spelled(t, len(v.shape)) for t, v in zip(texts, values)]
    if arrow:
        return terms, spelled(right, None)
    every = [label for term in terms for label in term]
    return terms, [*spare[:deepest], *sorted(x for x in set(every) if every.count(x) == 1 and x not in spare)]


def _diagonals(x: Value, labels: list[str]) -> tuple[Value, list[str]]:
    if len(set(labels)) < len(labels):
        raise Unsupported("an einsum that takes a diagonal")
    return x, labels


def _einsum_pair(a: Value, have: list[str], b: Value, other: list[str], wanted: set[str]) -> tuple[Value, list[str]]:
    a, have = _diagonals(a, have)
    b, other = _diagonals(b, other)
    for label in [x for x in have if x not in other and x not in wanted]:
        a, have = V.reduce(Op.SUM, a, [have.index(label)], False, "einsum over the rows"), [x for x in have if x != label]
    for label in [x for x in other if x not in have and x not in wanted]:
        b, other = V.reduce(Op.SUM, b, [other.index(label)], False, "einsum over the rows"), [x for x in other if x != label]
    batch = [x for x in have if x in other and x in wanted]
    summed = [x for x in have if x in other and x not in wanted]
    mine, theirs = [x for x in have if x not in other], [x for x in other if x not in have]
    a = V.permute(a, [have.index(x) for x in (*batch, *mine, *summed)])
    b = V.permute(b, [other.index(x) for x in (*batch, *summed, *theirs)])
    n, m = len(batch), len(mine)
    free, given = a.shape[n : n + m], b.shape[n + len(summed) :]
    lead = tuple(max(i, j) for i, j in zip(a.shape[:n], b.shape[:n]))
    a = V.reshape(a, (*a.shape[:n], math.prod(free), math.prod(a.shape[n + m :])))
    b = V.reshape(b, (*b.shape[:n], math.prod(b.shape[n : n + len(summed)]), math.prod(given)))
    return V.reshape(V.matmul(a, b), (*lead, *free, *given)), [*batch, *mine, *theirs]
