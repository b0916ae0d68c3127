"""The ops of a Graph, one row each: what it computes, its attributes, and the shape and dtype of its value.

Shapes are of one row: the rows themselves are never part of a shape (burnish.graph.node). Operands of pointwise ops broadcast as in
numpy, aligned on the right, behind the rows. How an op is computed stands in `interpret.py` (the reference), `to_torch.py`, the
backends and `native/kernels`; a test checks that each of them knows each op or names it as unsupported.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from burnish.errors import GraphError

Shape = tuple[int, ...]


class Op(enum.Enum):
    # leaves
    INPUT = enum.auto()
    WEIGHT = enum.auto()
    # embedding
    LOOKUP = enum.auto()
    BAG = enum.auto()
    # products
    LINEAR = enum.auto()
    MATMUL = enum.auto()
    # quantized
    QUANTIZE = enum.auto()
    DEQUANTIZE = enum.auto()
    QLINEAR = enum.auto()
    QDOT = enum.auto()
    # pointwise, one operand
    CAST = enum.auto()
    NEG = enum.auto()
    ABS = enum.auto()
    SIGN = enum.auto()
    EXP = enum.auto()
    LOG = enum.auto()
    SQRT = enum.auto()
    RSQRT = enum.auto()
    SIN = enum.auto()
    COS = enum.auto()
    TANH = enum.auto()
    SIGMOID = enum.auto()
    RELU = enum.auto()
    ERF = enum.auto()
    FLOOR = enum.auto()
    ROUND = enum.auto()
    NOT = enum.auto()
    ISNAN = enum.auto()
    # pointwise, two operands
    ADD = enum.auto()
    SUB = enum.auto()
    MUL = enum.auto()
    DIV = enum.auto()
    POW = enum.auto()
    MOD = enum.auto()
    MINIMUM = enum.auto()
    MAXIMUM = enum.auto()
    ATAN2 = enum.auto()
    EQ = enum.auto()
    NE = enum.auto()
    LT = enum.auto()
    LE = enum.auto()
    GT = enum.auto()
    GE = enum.auto()
    AND = enum.auto()
    OR = enum.auto()
    # pointwise, three
    WHERE = enum.auto()
    # along axes
    SUM = enum.auto()
    MEAN = enum.auto()
    MAX = enum.auto()
    MIN = enum.auto()
    PROD = enum.auto()
    ARGMAX = enum.auto()
    ARGSORT = enum.auto()
    CUMSUM = enum.auto()
    CUMPROD = enum.auto()
    SOFTMAX = enum.auto()
    LAYERNORM = enum.auto()
    GRU = enum.auto()
    # moves
    CONCAT = enum.auto()
    SLICE = enum.auto()
    TAKE = enum.auto()
    GATHER = enum.auto()
    RESHAPE = enum.auto()
    TRANSPOSE = enum.auto()
    EXPAND = enum.auto()


class Value(Protocol):
    """What inference needs to know of an operand."""

    @property
    def shape(self) -> Shape: ...
    @property
    def dtype(self) -> str: ...
    @property
    def side(self) -> str: ...


Infer = Callable[[Sequence[Value], Mapping[str, Any]], tuple[Shape, str]]


@dataclass(frozen=True)
class OpSpec:
    """One row of OPS: how many operands (least, most), the attributes, inference of (shape, dtype), and the meaning."""

    arity: tuple[int, int]
    attrs: tuple[str, ...]
    infer: Infer
    doc: str


INTEGERS = ("int64", "int32", "uint8", "int8", "bool")
FLOATS = ("float32", "float64", "float16", "bfloat16")
MOST_K = 65_793  # products of one QDOT: 255 * 128 * 65,793 < 2^31
_RANK = {"bool": 0, "uint8": 1, "int8": 1, "int32": 2, "int64": 3, "float16": 4, "bfloat16": 4, "float32": 5, "float64": 6}


def promote(*dtypes: str) -> str:
    """The widest of the dtypes. Constants are written in their operand's dtype by capture, so nothing subtler is needed."""
    return max(dtypes, key=_RANK.__getitem__)


def broadcast(*shapes: Shape) -> Shape:
    """The common shape of operands aligned on the right; GraphError when there is none."""
    rank = max(map(len, shapes))
    out = []
    for column in zip(*((1,) * (rank - len(s)) + s for s in shapes)):
        sizes = {n for n in column if n != 1}
        if len(sizes) > 1:
            raise GraphError(f"shapes {', '.join(map(str, shapes))} do not broadcast")
        out.append(sizes.pop() if sizes else 1)
    return tuple(out)


def _need(ok: bool, sentence: str) -> None:
    if not ok:
        raise GraphError(sentence)


def _axis(axis: int, shape: Shape, what: str) -> int:
    _need(0 <= axis < len(shape), f"{what} along axis {axis} of shape {shape}: axes are counted from 0 behind the rows")
    return axis


def _leaf(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    value = attrs["half"] if "half" in attrs else attrs["weight"]
    return value.shape, value.dtype


def _same(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    return inputs[0].shape, inputs[0].dtype


def _float(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    shape, dtype = _pointwise(inputs, attrs)
    _need(dtype in FLOATS, f"an op of floats met {', '.join(v.dtype for v in inputs)}. CAST the operands first")
    return shape, dtype


def _pointwise(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    return broadcast(*(v.shape for v in inputs)), promote(*(v.dtype for v in inputs))


def _compare(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    return broadcast(*(v.shape for v in inputs)), "bool"


def _where(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    condition, a, b = inputs
    _need(condition.dtype == "bool", f"WHERE needs a bool condition, met {condition.dtype}")
    return broadcast(condition.shape, a.shape, b.shape), promote(a.dtype, b.dtype)


def _cast(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    _need(attrs["dtype"] in _RANK, f"CAST to {attrs['dtype']!r}: no such dtype")
    return inputs[0].shape, attrs["dtype"]


def _lookup(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    table, ids = inputs
    _need(len(table.shape) == 2 and table.side == "constant", f"LOOKUP needs a constant (rows, width) table, met {table.shape}")
    _need(ids.dtype in ("int64", "int32"), f"LOOKUP needs integer ids, met {ids.dtype}")
    return (*ids.shape, table.shape[1]), table.dtype


def _bag(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    table, ids, *weights = inputs
    _need(len(table.shape) == 2 and table.side == "constant", f"BAG needs a constant (rows, width) table, met {table.shape}")
    _need(ids.dtype in ("int64", "int32") and len(ids.shape) >= 1, f"BAG needs integer ids (..., length), met {ids.dtype} {ids.shape}")
    _need(attrs["mode"] in ("sum", "mean", "max"), f"BAG has mode {attrs['mode']!r}. Use 'sum', 'mean' or 'max'")
    _need(not weights or attrs["mode"] == "sum", "BAG with weights has mode 'sum' only")
    _need(not weights or weights[0].shape == ids.shape, "BAG has weights of another shape than its ids")
    return (*ids.shape[:-1], table.shape[1]), table.dtype


def _linear(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    x, w, b, *init = inputs
    _need(len(w.shape) == 2 and bool(x.shape) and x.shape[-1] == w.shape[1], f"LINEAR of {x.shape} with weight {w.shape} (out, in)")
    _need(b.shape == (w.shape[0],), f"LINEAR has bias {b.shape} for weight {w.shape}")
    out = (*x.shape[:-1], w.shape[0])
    _need(not init or broadcast(init[0].shape, out) == out, "LINEAR has an init that does not broadcast to its output")
    _need(attrs["compute"] in FLOATS, f"LINEAR computes in {attrs['compute']!r}. Use float32, bfloat16 or float16")
    return out, "float32"


def _qdot(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    x, w, *init = inputs
    _need(x.dtype == "uint8" and w.dtype == "int8", f"QDOT needs uint8 and int8 operands, met {x.dtype} and {w.dtype}")
    _need(len(w.shape) == 2 and bool(x.shape) and x.shape[-1] == w.shape[1], f"QDOT of {x.shape} with weight {w.shape} (out, in)")
    _need(w.shape[1] <= MOST_K, f"QDOT sums {w.shape[1]} products; beyond {MOST_K} int32 could overflow")
    _need(not init or init[0].dtype == "int32", "QDOT has an init that is not int32")
    _need(
        not init or broadcast(init[0].shape, (*x.shape[:-1], w.shape[0])) == (*x.shape[:-1], w.shape[0]),
        "QDOT has an init of another shape",
    )
    return (*x.shape[:-1], w.shape[0]), "int32"


def _qlinear(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    x, w, scale, bias, *init = inputs
    shape, _ = _qdot((x, w, *init), attrs)
    _need(scale.shape == bias.shape == (w.shape[0],), f"QLINEAR has scale {scale.shape} and bias {bias.shape} for weight {w.shape}")
    return shape, "float32"


def _quantize(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    x, multiplier = inputs
    _need(broadcast(x.shape, multiplier.shape) == x.shape, f"QUANTIZE of {x.shape} by {multiplier.shape}")
    _need(0 <= attrs["zero_point"] <= 255, f"QUANTIZE has zero point {attrs['zero_point']}: it lies in [0, 255]")
    return x.shape, "uint8"


def _dequantize(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    x, scale = inputs
    _need(
        x.dtype in ("int8", "int4") and len(x.shape) == 2, f"DEQUANTIZE needs an int8 or int4 table (rows, width), met {x.dtype} {x.shape}"
    )
    _need(scale.shape == (x.shape[0], 1), f"DEQUANTIZE has scale {scale.shape} for table {x.shape}; one a row: ({x.shape[0]}, 1)")
    return x.shape, "float32"


def _matmul(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    a, b = inputs
    _need(len(a.shape) >= 2 and len(b.shape) >= 2 and a.shape[-1] == b.shape[-2], f"MATMUL of {a.shape} and {b.shape}")
    return (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), promote(a.dtype, b.dtype)


def _reduce(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    shape = inputs[0].shape
    axes = [_axis(a, shape, "a reduction") for a in attrs["axes"]]
    _need(len(set(axes)) == len(axes), f"a reduction over axes {attrs['axes']}, one of them twice")
    if attrs["keepdims"]:
        return tuple(1 if i in axes else n for i, n in enumerate(shape)), inputs[0].dtype
    return tuple(n for i, n in enumerate(shape) if i not in axes), inputs[0].dtype


def _mean(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    _need(inputs[0].dtype in FLOATS, f"MEAN of {inputs[0].dtype}. CAST the operand first")
    return _reduce(inputs, attrs)


def _softmax(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    _need(inputs[0].dtype in FLOATS, f"SOFTMAX of {inputs[0].dtype}. CAST the operand first")
    return _along(inputs, attrs)


def _argmax(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    axis = _axis(attrs["axis"], inputs[0].shape, "ARGMAX")
    return tuple(n for i, n in enumerate(inputs[0].shape) if i != axis), "int64"


def _along(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    _axis(attrs["axis"], inputs[0].shape, "an op")
    return inputs[0].shape, inputs[0].dtype


def _argsort(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    return _along(inputs, attrs)[0], "int64"


def _layernorm(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    x, gain, bias = inputs
    _need(gain.shape == bias.shape == x.shape[len(x.shape) - len(gain.shape) :], f"LAYERNORM of {x.shape} with gain {gain.shape}")
    return x.shape, x.dtype


def _gru(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    x, h0, w_ih, w_hh, b_ih, b_hh, *scores = inputs
    hidden = w_hh.shape[1]
    _need(attrs["scores"] in (None, "scale", "replace"), f"GRU has scores {attrs['scores']!r}. Use 'scale' or 'replace'")
    _need(
        [v.shape for v in scores] == ([(x.shape[0],)] if attrs["scores"] else []),
        f"GRU over {x.shape[0]} steps has scores {', '.join(str(v.shape) for v in scores) or 'none'} and the attribute {attrs['scores']!r}",
    )
    _need(len(x.shape) == 2 and h0.shape == (hidden,), f"GRU of {x.shape} (steps, width) with first state {h0.shape}")
    _need(w_ih.shape == (3 * hidden, x.shape[1]) and w_hh.shape == (3 * hidden, hidden), f"GRU has weights {w_ih.shape}, {w_hh.shape}")
    _need(b_ih.shape == b_hh.shape == (3 * hidden,), f"GRU has biases {b_ih.shape}, {b_hh.shape}")
    return (x.shape[0], hidden), "float32"


def _concat(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    first = inputs[0].shape
    axis = _axis(attrs["axis"], first, "CONCAT")
    before, behind = first[:axis], first[axis + 1 :]
    if any(len(v.shape) != len(first) or v.shape[:axis] != before or v.shape[axis + 1 :] != behind for v in inputs):
        raise GraphError(f"CONCAT along axis {axis} of {', '.join(str(v.shape) for v in inputs)}")
    total = sum(v.shape[axis] for v in inputs)
    return (*first[:axis], total, *first[axis + 1 :]), promote(*(v.dtype for v in inputs))


def _slice(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    shape = inputs[0].shape
    axis, start, stop = _axis(attrs["axis"], shape, "SLICE"), attrs["start"], attrs["stop"]
    _need(0 <= start < stop <= shape[axis], f"SLICE [{start}, {stop}) of axis {axis} of {shape}")
    return (*shape[:axis], stop - start, *shape[axis + 1 :]), inputs[0].dtype


def _take(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    shape = inputs[0].shape
    axis, indices = _axis(attrs["axis"], shape, "TAKE"), attrs["indices"]
    _need(bool(indices) and all(0 <= i < shape[axis] for i in indices), f"TAKE has an index outside axis {axis} of {shape}")
    return (*shape[:axis], len(indices), *shape[axis + 1 :]), inputs[0].dtype


def _gather(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    x, indices = inputs
    axis = _axis(attrs["axis"], x.shape, "GATHER")
    fits = len(x.shape) == len(indices.shape) and all(i == axis or m <= n for i, (n, m) in enumerate(zip(x.shape, indices.shape)))
    _need(fits and indices.dtype in ("int64", "int32"), f"GATHER along axis {axis} of {x.shape} by {indices.dtype} {indices.shape}")
    return indices.shape, x.dtype


def _reshape(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    _need(math.prod(attrs["shape"]) == math.prod(inputs[0].shape), f"RESHAPE of {inputs[0].shape} to {attrs['shape']}")
    return attrs["shape"], inputs[0].dtype


def _transpose(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    shape, perm = inputs[0].shape, attrs["perm"]
    _need(sorted(perm) == list(range(len(shape))), f"TRANSPOSE of {shape} by {perm}")
    return tuple(shape[i] for i in perm), inputs[0].dtype


def _expand(inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Shape, str]:
    _need(broadcast(inputs[0].shape, attrs["shape"]) == attrs["shape"], f"EXPAND of {inputs[0].shape} to {attrs['shape']}")
    return attrs["shape"], inputs[0].dtype


UNARY = (
    Op.NEG,
    Op.ABS,
    Op.SIGN,
    Op.EXP,
    Op.LOG,
    Op.SQRT,
    Op.RSQRT,
    Op.SIN,
    Op.COS,
    Op.TANH,
    Op.SIGMOID,
    Op.RELU,
    Op.ERF,
    Op.FLOOR,
    Op.ROUND,
)
BINARY = (Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.POW, Op.MOD, Op.MINIMUM, Op.MAXIMUM, Op.ATAN2)
COMPARE = (Op.EQ, Op.NE, Op.LT, Op.LE, Op.GT, Op.GE, Op.AND, Op.OR)
REDUCE = (Op.SUM, Op.MEAN, Op.MAX, Op.MIN, Op.PROD)
OF_FLOATS = frozenset(
    (Op.EXP, Op.LOG, Op.SQRT, Op.RSQRT, Op.SIN, Op.COS, Op.TANH, Op.SIGMOID, Op.ERF, Op.DIV, Op.ATAN2)
)  # integers have to be CAST before these
POINTWISE = frozenset((*UNARY, *BINARY, *COMPARE, Op.NOT, Op.ISNAN, Op.CAST, Op.WHERE))

OPS: dict[Op, OpSpec] = {
    Op.INPUT: OpSpec((0, 0), ("half",), _leaf, "A Half of one of the graph's inputs."),
    Op.WEIGHT: OpSpec((0, 0), ("weight",), _leaf, "A constant array; also a table, which is only mapped."),
    Op.LOOKUP: OpSpec((2, 2), (), _lookup, "(table (V, W), ids (...)) -> (..., W): rows of the table."),
    Op.BAG: OpSpec(
        (2, 3),
        ("mode", "ignore"),
        _bag,
        "(table (V, W), ids (..., L)[, weights (..., L)]) -> (..., W): sum, mean or max of the rows whose id is not `ignore` "
        "(None: of all); 0 where none is left.",
    ),
    Op.LINEAR: OpSpec(
        (3, 4),
        ("compute",),
        _linear,
        "(x (..., K), w (N, K), b (N,)[, init (..., N)]) -> (..., N): init + x w^T + b. Operands are rounded to `compute` "
        "(float32, bfloat16, float16) and accumulated in float32.",
    ),
    Op.MATMUL: OpSpec((2, 2), (), _matmul, "(a (..., M, K), b (..., K, N)) -> (..., M, N), a product in each row."),
    Op.QUANTIZE: OpSpec(
        (2, 2), ("zero_point",), _quantize, "(x, multiplier () or (K,)) -> uint8: quantize/affine.py. The multiplier is 1 / scale."
    ),
    Op.DEQUANTIZE: OpSpec((2, 2), (), _dequantize, "(table int8 or int4 (V, W), scale (V, 1)) -> float32: table * scale."),
    Op.QLINEAR: OpSpec(
        (4, 5),
        ("zero_point",),
        _qlinear,
        "(x uint8 (..., K), w int8 (N, K), scale (N,), bias (N,)[, init int32]) -> float32: float(QDOT) * scale + bias, rounded after "
        "each of the two.",
    ),
    Op.QDOT: OpSpec(
        (2, 3), ("zero_point",), _qdot, "(x uint8 (..., K), w int8 (N, K)[, init int32]) -> int32: init + (x - zero_point) w^T, exact."
    ),
    Op.CAST: OpSpec((1, 1), ("dtype",), _cast, "To another dtype; floats to integers truncate, to bfloat16 and float16 round to even."),
    **{op: OpSpec((1, 1), (), _float if op in OF_FLOATS else _same, f"{op.name.lower()}(x)") for op in UNARY},
    Op.NOT: OpSpec((1, 1), (), _compare, "Logical not of bool."),
    Op.ISNAN: OpSpec((1, 1), (), _compare, "True where x is NaN."),
    **{op: OpSpec((2, 2), (), _float if op in OF_FLOATS else _pointwise, f"{op.name.lower()}(a, b)") for op in BINARY},
    **{op: OpSpec((2, 2), (), _compare, f"{op.name.lower()}(a, b) as bool") for op in COMPARE},
    Op.WHERE: OpSpec((3, 3), (), _where, "(condition bool, a, b): a where true, else b."),
    **{op: OpSpec((1, 1), ("axes", "keepdims"), _mean if op is Op.MEAN else _reduce, f"{op.name.lower()} over `axes`") for op in REDUCE},
    Op.ARGMAX: OpSpec((1, 1), ("axis",), _argmax, "Index of the first largest along `axis`."),
    Op.ARGSORT: OpSpec((1, 1), ("axis", "descending"), _argsort, "Indices that sort along `axis`, stable."),
    Op.CUMSUM: OpSpec((1, 1), ("axis",), _along, "Running sum along `axis`."),
    Op.CUMPROD: OpSpec((1, 1), ("axis",), _along, "Running product along `axis`."),
    Op.SOFTMAX: OpSpec((1, 1), ("axis",), _softmax, "exp(x - max) / sum of it, along `axis`."),
    Op.LAYERNORM: OpSpec((3, 3), ("eps",), _layernorm, "(x, gain, bias): (x - mean) / sqrt(var + eps) * gain + bias over gain's axes."),
    Op.GRU: OpSpec(
        (6, 7),
        ("scores",),
        _gru,
        "(x (T, I), h0 (H,), w_ih (3H, I), w_hh (3H, H), b_ih (3H,), b_hh (3H,)[, a (T,)]) -> (T, H): torch.nn.GRU; gates reset, update "
        "(the old state's weight), new. With scores a the gate u is the new state's weight, h' = (1 - u) h + u n: u = a sigmoid(...) where "
        "`scores` is 'scale' (AUGRU), u = a where it is 'replace' (AGRU).",
    ),
    Op.CONCAT: OpSpec((1, 1_000_000), ("axis",), _concat, "Operands one after another along `axis`."),
    Op.SLICE: OpSpec((1, 1), ("axis", "start", "stop"), _slice, "[start, stop) along `axis`."),
    Op.TAKE: OpSpec((1, 1), ("axis", "indices"), _take, "The entries `indices` along `axis`."),
    Op.GATHER: OpSpec((2, 2), ("axis",), _gather, "(x, indices) -> like indices: torch.gather in each row."),
    Op.RESHAPE: OpSpec((1, 1), ("shape",), _reshape, "The same values in row-major order."),
    Op.TRANSPOSE: OpSpec((1, 1), ("perm",), _transpose, "Axis i of the result is axis perm[i] of x."),
    Op.EXPAND: OpSpec((1, 1), ("shape",), _expand, "Broadcast to `shape`."),
}

DEFAULTS: dict[str, Any] = {"compute": "float32", "ignore": None, "keepdims": False, "descending": False, "scores": None}
