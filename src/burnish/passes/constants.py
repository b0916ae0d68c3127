"""Rules on constants: fold what depends on no input, drop arithmetic that changes nothing, take a scale and a shift into a linear."""

from __future__ import annotations

import math
from collections.abc import Container

import numpy as np

from burnish.graph.interpret import decode, evaluate
from burnish.graph.node import Node, weight
from burnish.graph.ops import FLOATS, Op
from burnish.graph.weights import to_bfloat16

NARROW = ("bfloat16", "float16", "int8", "int4", "uint8")  # what stands under a node that widens it by row
FOLD_BYTES = 1 << 20  # a constant may grow up to this by folding; beyond, only if no larger than what it is made of
MAP_BYTES = 16 << 20  # mapped arrays above this are never read to fold them
MOST_SHIFT = 64.0  # a larger shift in front of a linear would cancel digits inside its dot product


def array_of(node: Node) -> np.ndarray | None:
    """The values of a WEIGHT node, wider than stored if numpy lacks the dtype; None for another node."""
    return decode(node["weight"].array, node["weight"].dtype) if node.op is Op.WEIGHT else None


def constant_node(name: str, array: np.ndarray, dtype: str) -> Node:
    """A WEIGHT of `dtype` from values as the interpreter computes them."""
    if dtype == "bfloat16":
        return weight(name, to_bfloat16(array), "bfloat16")
    return weight(name, array.astype(dtype, copy=False))


def fold(node: Node) -> Node | None:
    """f(constants)  ->  WEIGHT.

    Left alone: DEQUANTIZE, and CAST of a narrow dtype to a wider one (they are kept narrow on purpose); EXPAND; what would grow beyond
    1 MB and beyond its operands; what would read a large mapped table.
    """
    if node.side != "constant" or node.op in (Op.WEIGHT, Op.DEQUANTIZE, Op.EXPAND):
        return None
    if any(operand.op is not Op.WEIGHT for operand in node.inputs):
        return None
    if node.op is Op.CAST and node.inputs[0].dtype in NARROW and node.dtype in FLOATS:
        return None
    held = [operand["weight"] for operand in node.inputs]
    made = math.prod(node.shape) * _ITEM.get(node.dtype, 8)
    if made > max(FOLD_BYTES, sum(w.nbytes for w in held)):
        return None
    if any(isinstance(w.array, np.memmap) and w.nbytes > MAP_BYTES for w in held):
        return None
    if any(w.dtype == "int4" for w in held):
        return None
    array = evaluate(node, tuple(decode(w.array, w.dtype) for w in held))
    return constant_node(held[0].name, array, node.dtype)


_ITEM = {"bool": 1, "uint8": 1, "int8": 1, "int4": 1, "float16": 2, "bfloat16": 2, "float32": 4, "int32": 4}


def drop_arithmetic_that_changes_nothing(node: Node) -> Node | None:
    """Of arithmetic with a neutral constant, the other operand.

    1. x * 1, x / 1, x + 0, x - 0, x ** 1  ->  x          2. NEG(NEG(x)), NOT(NOT(x))  ->  x         3. RELU(RELU(x))  ->  RELU(x)
    4. CAST to x's own dtype  ->  x                       5. CAST(CAST(x)) with nothing lost between  ->  CAST(x)
    6. x ** 2  ->  x * x                                  7. WHERE(always, a, b)  ->  a              8. AND(x, true), OR(x, false)  ->  x
    Left alone: x * 0, which is NaN for an infinite x.
    """
    match node:
        case Node(Op.ADD | Op.MUL | Op.AND | Op.OR as op, (a, b)):
            neutral = {Op.ADD: 0, Op.MUL: 1, Op.AND: True, Op.OR: False}[op]
            return next((x for x, c in ((a, b), (b, a)) if _all(c, neutral) and _fits(x, node)), None)
        case Node(Op.SUB, (x, c)) if _all(c, 0) and _fits(x, node):
            return x
        case Node(Op.DIV | Op.POW, (x, c)) if _all(c, 1) and _fits(x, node):
            return x
        case Node(Op.POW, (x, c)) if _all(c, 2) and _fits(x, node):
            return Node(Op.MUL, (x, x))
        case Node(Op.NEG, (Node(Op.NEG, (x,)),)) | Node(Op.NOT, (Node(Op.NOT, (x,)),)) if x.dtype == node.dtype:
            return x
        case Node(Op.RELU, (Node(Op.RELU) as inner,)):
            return inner
        case Node(Op.CAST, (x,)) if x.dtype == node.dtype:
            return x
        case Node(Op.CAST, (Node(Op.CAST, (x,)) as inner,)) if inner.dtype in _HOLDS.get(x.dtype, ()):
            return Node(Op.CAST, (x,), dtype=node.dtype)
        case Node(Op.WHERE, (c, a, b)):
            return next((x for x, always in ((a, True), (b, False)) if _all(c, always) and _fits(x, node)), None)
    return None


# dtypes that hold every value of the dtype
_HOLDS = {
    "bool": ("uint8", "int8", "int32", "int64", "float16", "bfloat16", "float32", "float64"),
    "uint8": ("int32", "int64", "float32", "float64"),
    "int8": ("int32", "int64", "float32", "float64"),
    "int32": ("int64", "float64"),
    "float16": ("float32", "float64"),
    "bfloat16": ("float32", "float64"),
    "float32": ("float64",),
}


def linear_of_matmul(node: Node) -> Node | None:
    """A product with a constant matrix, whose other axes are 1 long, is a linear; x's are left out where they all are.

    1. MATMUL(x, W (K, N))  ->  LINEAR(x, W^T, 0)          2. MATMUL(W (N, K), x (..., K, 1))  ->  LINEAR(x (..., K), W, 0) as a column
    """
    if node.op is not Op.MATMUL or any(operand.dtype != "float32" for operand in node.inputs):
        return None
    a, b = node.inputs
    if _is_matrix(b) and a.side != "constant":
        x, w, shape = a, b, a.shape
    elif _is_matrix(a) and b.side != "constant" and b.shape[-1] == 1:
        x, w, shape = b, a, b.shape[:-1]
    else:
        return None
    matrix = w["weight"].array.reshape(w.shape[-2:])
    if all(n == 1 for n in shape[:-1]):
        shape = shape[-1:]
    rows = x if x.shape == shape else Node(Op.RESHAPE, (x,), shape=shape)
    matrix = matrix.T if w is b else matrix
    product = Node(Op.LINEAR, (rows, weight(w["weight"].name, matrix), weight("0", np.zeros(len(matrix), np.float32))))
    return product if product.shape == node.shape else Node(Op.RESHAPE, (product,), shape=node.shape)


def _is_matrix(w: Node) -> bool:
    return w.op is Op.WEIGHT and len(w.shape) >= 2 and all(n == 1 for n in w.shape[:-2])


def scale_and_shift_after_linear(node: Node, shared: Container[Node]) -> Node | None:
    """LINEAR(x, W, b) * s + c  ->  LINEAR(x, s W, s b + c), one operation at a time; s and c are one number or one a column.

    1. + c and - c, an init or none    2. * s and / s, no init    3. c - LINEAR(x)  ->  LINEAR(x, -W, c - b), no init
    Left alone: a linear that is read elsewhere too; it would be computed twice.
    """
    match node:
        case Node(Op.ADD | Op.SUB | Op.MUL | Op.DIV as op, (Node(Op.LINEAR) as linear, other)):
            c, flipped = _column(other, linear), False
        case Node(Op.ADD | Op.SUB | Op.MUL as op, (other, Node(Op.LINEAR) as linear)):
            c, flipped = _column(other, linear), True
        case _:
            return None
    wb = _weights(linear)
    if c is None or wb is None or node.shape != linear.shape or linear in shared:
        return None
    w, b = wb
    if op is Op.ADD:
        return _with(linear, None, b + c)
    if op is Op.SUB and not flipped:
        return _with(linear, None, b - c)
    if len(linear.inputs) > 3:
        return None
    if op is Op.SUB:
        return _with(linear, -w, c - b)
    s = c.astype(np.float64) if op is Op.MUL else 1 / c.astype(np.float64)
    return _with(linear, w * s[:, None], b * s) if np.isfinite(s).all() else None


def scale_and_shift_before_linear(node: Node) -> Node | None:
    """LINEAR(x * s + c, W, b)  ->  LINEAR(x, W s, b + W c), for a chain of +, -, *, / with constants, one number or one a column.

    Left alone:
    1. a shift of more than 64 after scaling, whose digits would be lost in the dot product
    2. raw features: standardised they lie alike around zero, which is what eight bits can hold; as they come they do not
    """
    if node.op is not Op.LINEAR:
        return None
    wb = _weights(node)
    found = scale_and_shift(node.inputs[0])
    if wb is None or found is None:
        return None
    x, s, c = found
    if x.dtype != "float32" or np.abs(c).max() > MOST_SHIFT or not np.isfinite(s).all() or _raw(x):
        return None
    w, b = wb
    after = _with(node, w * s, b + w.astype(np.float64) @ c)
    return after.with_inputs((x, *after.inputs[1:]))


def _raw(x: Node) -> bool:
    """Whether x is columns of inputs, only moved and cast."""
    seen, stack = set[Node](), [x]
    while stack:
        value = stack.pop()
        if value in seen or value.op is Op.INPUT:
            continue
        seen.add(value)
        if value.op not in (Op.SLICE, Op.TAKE, Op.RESHAPE, Op.CAST, Op.CONCAT, Op.EXPAND, Op.TRANSPOSE):
            return False
        stack.extend(value.inputs)
    return True


def scale_and_shift(value: Node) -> tuple[Node, np.ndarray, np.ndarray] | None:
    """The x, s, c (float64, (K,)) of the longest chain value = x * s + c with constant columns; None when there is no chain."""
    width = value.shape[-1] if value.shape else 1
    s, c, x = np.ones(width), np.zeros(width), value
    while True:
        match x:
            case Node(Op.ADD | Op.SUB | Op.MUL | Op.DIV as op, (inner, other)) if _column(other, x) is not None and inner.shape == x.shape:
                k = _column(other, x)
            case Node(Op.ADD | Op.MUL as op, (other, inner)) if _column(other, x) is not None and inner.shape == x.shape:
                k = _column(other, x)
            case _:
                return None if x is value else (x, s, c)
        assert k is not None
        k = k.astype(np.float64)
        if op in (Op.ADD, Op.SUB):
            c = c + s * (k if op is Op.ADD else -k)
        else:
            s = s * (k if op is Op.MUL else 1 / k)
        x = inner


def merge_columns_of_linear(node: Node) -> Node | None:
    """LINEAR over a CONCAT, each part once, no constants, and no sums of other parts.

    1. LINEAR(CONCAT(a, b, a), W, bias)  ->  LINEAR(CONCAT(a, b), W with the columns of a added up, bias)
    2. LINEAR(CONCAT(a, constant), W, bias)  ->  LINEAR(a, W_a, bias + W_constant constant)
    3. LINEAR(CONCAT(a, b, a - b), W, bias)  ->  LINEAR(CONCAT(a, b), (W_a + W_difference, W_b - W_difference), bias); a + b likewise
    """
    match node:
        case Node(Op.LINEAR, (Node(Op.CONCAT, parts) as whole, *_)) if whole["axis"] == len(whole.shape) - 1:
            wb = _weights(node)
        case _:
            return None
    if wb is None or any(part.dtype != "float32" for part in parts):
        return None
    w, b = wb
    present = set(parts)
    columns: dict[Node, np.ndarray] = {}
    at = 0
    for part in parts:
        block = w[:, at : at + part.shape[-1]]
        at += part.shape[-1]
        constant = array_of(part) if len(part.shape) == 1 else None
        if constant is not None:
            b = b + block @ constant
            continue
        for term, sign in _terms(part, present):
            signed = block if sign > 0 else -block
            columns[term] = columns[term] + signed if term in columns else signed
    if not columns or len(columns) == len(parts):
        return None
    x = next(iter(columns)) if len(columns) == 1 else Node(Op.CONCAT, columns, axis=whole["axis"])
    after = _with_arrays(node, np.concatenate(list(columns.values()), axis=1), b)
    return Node(Op.LINEAR, (x, *after, *node.inputs[3:]), compute=node["compute"])


def _terms(part: Node, present: Container[Node]) -> list[tuple[Node, int]]:
    """a + b or a - b as (a, 1), (b, 1 or -1), when a and b are present too, repeated to its shape where it broadcasts them."""
    if part.op in (Op.ADD, Op.SUB):
        a, b = (v if v.shape == part.shape else Node(Op.EXPAND, (v,), shape=part.shape) for v in part.inputs)
        if a in present and b in present:
            return [(a, 1), (b, 1 if part.op is Op.ADD else -1)]
    return [(part, 1)]


def _all(node: Node, value: float) -> bool:
    if node.op is not Op.WEIGHT or node["weight"].nbytes > FOLD_BYTES or node["weight"].dtype == "int4":
        return False
    array = array_of(node)
    return array is not None and bool((array == value).all())


def _fits(x: Node, node: Node) -> bool:
    return x.shape == node.shape and x.dtype == node.dtype


def _column(node: Node, of: Node) -> np.ndarray | None:
    """A float32 constant that is one number for each entry of the last axis of `of`, (N,); None when it is something else."""
    if node.op is not Op.WEIGHT or node.dtype != "float32" or not of.shape or len(node.shape) > len(of.shape):
        return None
    if node.shape and (any(n != 1 for n in node.shape[:-1]) or node.shape[-1] not in (1, of.shape[-1])):
        return None
    return np.broadcast_to(node["weight"].array.reshape(-1), (of.shape[-1],))


def _weights(linear: Node) -> tuple[np.ndarray, np.ndarray] | None:
    """The float32 W and b of a LINEAR that computes in float32; None of another."""
    w, b = linear.inputs[1:3]
    plain = w.op is b.op is Op.WEIGHT and w.dtype == b.dtype == linear["compute"] == "float32"
    return (w["weight"].array, b["weight"].array) if plain else None


def _with_arrays(linear: Node, w: np.ndarray | None, b: np.ndarray) -> tuple[Node, Node]:
    old_w, old_b = linear.inputs[1:3]
    new_w = old_w if w is None else weight(old_w["weight"].name, w.astype(np.float32))
    return new_w, weight(old_b["weight"].name, b.astype(np.float32))


def _with(linear: Node, w: np.ndarray | None, b: np.ndarray) -> Node:
    x, _, _, *init = linear.inputs
    return linear.with_inputs((x, *_with_arrays(linear, w, b), *init))


CONSTANTS = (
    fold,
    drop_arithmetic_that_changes_nothing,
    linear_of_matmul,
    scale_and_shift_before_linear,
    merge_columns_of_linear,
)
