"""Which kernel computes which op: one row each."""

from __future__ import annotations

from collections.abc import Callable

from burnish.errors import BuildError
from burnish.graph.ops import Op
from burnish.native.code import Code
from burnish.native.kernels import inputs, linear, lookup, matmul, move, pointwise, recurrent, reduce, vector
from burnish.native.plan import Step

Emit = Callable[[Code, Step], None]

KERNELS: dict[Op, Emit] = {
    Op.INPUT: inputs.emit,
    Op.LOOKUP: lookup.emit,
    Op.BAG: lookup.emit,
    Op.LINEAR: linear.emit,
    Op.QLINEAR: linear.emit,
    Op.QDOT: linear.emit,
    Op.MATMUL: matmul.emit,
    **{op: reduce.emit for op in (*reduce.AXES, Op.ARGMAX, Op.ARGSORT, Op.CUMSUM, Op.CUMPROD, Op.SOFTMAX, Op.LAYERNORM)},
    **{op: move.emit for op in (Op.CONCAT, Op.SLICE, Op.TAKE, Op.GATHER, Op.TRANSPOSE, Op.EXPAND, Op.RESHAPE)},
    Op.GRU: recurrent.emit,
}
CHECKS: dict[Op, Callable[[Step], None]] = {
    Op.BAG: lookup.check,
    Op.MATMUL: matmul.check,
    **{op: reduce.check for op in (Op.SOFTMAX, Op.LAYERNORM)},
}
TEMPLATES = (
    vector.TEMPLATE,
    inputs.TEMPLATE,
    linear.TEMPLATE,
    lookup.TEMPLATE,
    reduce.TEMPLATE,
    matmul.TEMPLATE,
    move.TEMPLATE,
    recurrent.TEMPLATE,
)


def check(step: Step) -> None:
    """BuildError that names a node for which there is no kernel."""
    if step.head is not None:
        if step.head.op not in KERNELS:
            raise BuildError(f"the native backend has no kernel for {step.head.op.name}: {step.head!r}. Use another backend for this model")
        if step.head.op in CHECKS:
            CHECKS[step.head.op](step)
    pointwise.check(step)


def emit(code: Code, step: Step) -> None:
    """The text of a step's body."""
    (KERNELS[step.head.op] if step.head is not None else pointwise.emit)(code, step)
