"""Rows for aten ops that act on each entry."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from burnish.capture import composed as C
from burnish.capture import value as V
from burnish.capture.aten.call import Call, Operand, Ramp, Row, common, number, operand, ramp_arithmetic
from burnish.capture.value import Unsupported, Value
from burnish.graph.ops import FLOATS, Op


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
    return V.cast(C.unary(Op.FLOOR, quotient) if rounding_mode == "floor" else trunc(quotient), call.dtype)


def trunc(x: Value) -> Value:
    if x.dtype not in FLOATS:
        return x
    return C.mul(C.unary(Op.SIGN, x), C.unary(Op.FLOOR, C.unary(Op.ABS, x)))


def _ceil(x: Value) -> Value:
    return x if x.dtype not in FLOATS else C.unary(Op.NEG, C.unary(Op.FLOOR, C.unary(Op.NEG, x)))


def _fmod(call: Call, a: Operand, b: Operand) -> Value:
    x, y = operand(call, a, call.dtype), operand(call, b, call.dtype)
    dtype = x.dtype if x.dtype in FLOATS else "float64"
    whole = V.cast(trunc(C.div(V.cast(x, dtype), V.cast(y, dtype))), x.dtype)
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


POINTWISE: dict[str, Row] = {
    **{name: unary(op) for name, op in {
        "neg": Op.NEG, "abs": Op.ABS, "sign": Op.SIGN, "sgn": Op.SIGN, "exp": Op.EXP, "log": Op.LOG, "sqrt": Op.SQRT, "rsqrt": Op.RSQRT,
        "sin": Op.SIN, "cos": Op.COS, "tanh": Op.TANH, "sigmoid": Op.SIGMOID, "relu": Op.RELU, "erf": Op.ERF,
    }.items()},
    "floor": floats(lambda x: x if x.dtype not in FLOATS else C.unary(Op.FLOOR, x)),
    "round": floats(lambda x: x if x.dtype not in FLOATS else C.unary(Op.ROUND, x)),
    "ceil": floats(_ceil),
    "trunc": floats(trunc),
    "frac": floats(lambda x: C.sub(x, trunc(x))),
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
    "glu": floats(C.glu),
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
}  # fmt: skip
