"""Pointwise nodes: one expression on vectors each, one loop for all that run over the same values.

The template is the expression table below; `loop` is the filler for groups with no other head, and linear.py puts the same expressions
behind its products, in registers. Operands that broadcast have stride 0 along an axis; axes over which every operand runs on alike are
one loop, and when rows lie without gaps, so are the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from burnish.errors import BuildError
from burnish.graph.interpret import constant
from burnish.graph.node import Node
from burnish.graph.ops import BINARY, COMPARE, UNARY, Op, promote
from burnish.native.code import Code, Ref
from burnish.native.plan import CTYPES, Step, ctype, size, source

UNARY_TEXT: dict[Op, str] = {
    Op.NEG: "-{0}",
    Op.ABS: "v_abs({0})",
    Op.SIGN: "v_sign({0})",
    Op.EXP: "v_exp({0})",
    Op.LOG: "v_log({0})",
    Op.SQRT: "v_sqrt({0})",
    Op.RSQRT: "1.f / v_sqrt({0})",
    Op.SIN: "v_sin({0})",
    Op.COS: "v_cos({0})",
    Op.TANH: "v_tanh({0})",
    Op.SIGMOID: "v_sigmoid({0})",
    Op.RELU: "({0} < 0.f ? V<float>{{}} : {0})",  # NaN stays NaN
    Op.ERF: "v_erf({0})",
    Op.FLOOR: "v_floor({0})",
    Op.ROUND: "v_rint({0})",
}
INTEGER_UNARY: dict[Op, str] = {
    Op.NEG: "wrap_sub({0} & 0, {0})",
    Op.ABS: "({0} < 0 ? wrap_sub({0} & 0, {0}) : {0})",
    Op.SIGN: "(({0} < 0) - ({0} > 0))",  # a true lane is -1
    Op.RELU: "({0} < 0 ? {0} - {0} : {0})",
    Op.FLOOR: "{0}",
    Op.ROUND: "{0}",
}
BINARY_TEXT: dict[Op, str] = {
    Op.ADD: "{0} + {1}",
    Op.SUB: "{0} - {1}",
    Op.MUL: "{0} * {1}",
    Op.DIV: "{0} / {1}",
    Op.POW: "v_pow({0}, {1})",
    Op.MOD: "v_fmod({0}, {1})",
    Op.MINIMUM: "(({0} < {1}) | ({0} != {0}) ? {0} : {1})",
    Op.MAXIMUM: "(({0} > {1}) | ({0} != {0}) ? {0} : {1})",
    Op.ATAN2: "v_atan2({0}, {1})",
}
INTEGER_BINARY: dict[Op, str] = {
    Op.ADD: "wrap_add({0}, {1})",
    Op.SUB: "wrap_sub({0}, {1})",
    Op.MUL: "wrap_mul({0}, {1})",
    Op.MOD: "v_imod({0}, {1})",
    Op.MINIMUM: "({0} < {1} ? {0} : {1})",
    Op.MAXIMUM: "({0} > {1} ? {0} : {1})",
}
DOUBLE_UNARY = frozenset({Op.NEG})
DOUBLE_BINARY = frozenset({Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.MINIMUM, Op.MAXIMUM})
COMPARE_TEXT = {Op.EQ: "==", Op.NE: "!=", Op.LT: "<", Op.LE: "<=", Op.GT: ">", Op.GE: ">="}
INTEGERS = ("int64", "int32", "uint8", "int8", "bool")
POWERS = {1.0: "{0}", 2.0: "{0} * {0}", 3.0: "{0} * {0} * {0}", 0.5: "v_sqrt({0})", -1.0: "1.f / {0}", -0.5: "1.f / v_sqrt({0})"}


def check(step: Step) -> None:
    """BuildError for a pointwise node that has no expression for its dtype."""
    for node in step.body:
        dtype = promote(*(v.dtype for v in node.inputs)) if node.op in COMPARE else node.dtype
        ok = True
        if node.op in UNARY:
            ok = node.op in (INTEGER_UNARY if dtype in INTEGERS else DOUBLE_UNARY if dtype == "float64" else UNARY_TEXT)
        elif node.op in BINARY:
            ok = node.op in (INTEGER_BINARY if dtype in INTEGERS else DOUBLE_BINARY if dtype == "float64" else BINARY_TEXT)
        if not ok:
            raise BuildError(f"the native backend has no {node.op.name} of {dtype}: {node!r}. Cast its operands to float32")


def express(code: Code, node: Node, args: Sequence[str]) -> str:
    """The vector expression of a pointwise node; `args` are vectors of its operands' own types (QUANTIZE: x and multiplier)."""
    match node.op:
        case Op.CAST:
            return cast(args[0], node.inputs[0].dtype, node["dtype"])
        case Op.QUANTIZE:
            k = code.pointer_once("float", "quantize", node)
            return f"quantize({args[0]}, {args[1]}, splat({k}[0]), splat({k}[1]), splat((int32_t){k}[2]))"
        case Op.WHERE:
            a, b = (convert(arg, v.dtype, node.dtype) for arg, v in zip(args[1:], node.inputs[1:]))
            return f"({mask(args[0], node.dtype)} ? {a} : {b})"
        case Op.NOT:
            return f"to<uint8_t>(({args[0]} == 0) & 1)"
        case Op.ISNAN:
            return truth(f"{args[0]} != {args[0]}")
        case Op.AND | Op.OR:
            a, b = (convert(arg, v.dtype, "bool") for arg, v in zip(args, node.inputs))
            return f"({a} {'&' if node.op is Op.AND else '|'} {b})"
        case op if op in COMPARE_TEXT:
            dtype = promote(*(v.dtype for v in node.inputs))
            a, b = (convert(arg, v.dtype, dtype) for arg, v in zip(args, node.inputs))
            return truth(f"{a} {COMPARE_TEXT[op]} {b}")
        case Op.POW if node.inputs[1].side == "constant" and size(node.inputs[1]) == 1:
            exponent = float(constant(node.inputs[1]).ravel()[0])
            return "(" + POWERS.get(exponent, BINARY_TEXT[Op.POW]).format(*args) + ")"
        case op if op in BINARY:
            texts = INTEGER_BINARY if node.dtype in INTEGERS else BINARY_TEXT
            return "(" + texts[op].format(*(convert(arg, v.dtype, node.dtype) for arg, v in zip(args, node.inputs))) + ")"
        case op:
            texts = INTEGER_UNARY if node.dtype in INTEGERS else UNARY_TEXT
            return rounded("(" + texts[op].format(*args) + ")", node.dtype)


def rounded(expression: str, dtype: str) -> str:
    return {"bfloat16": f"v_round_bf16({expression})", "float16": f"v_round_f16({expression})"}.get(dtype, expression)


def truth(comparison: str) -> str:
    """A comparison's lanes of -1 and 0 as bytes 1 and 0."""
    return f"to<uint8_t>(({comparison}) & 1)"


def mask(byte: str, dtype: str) -> str:
    """Bytes 1 and 0 as the lanes that select among values of `dtype`."""
    return f"(to<{({4: 'int32_t', 8: 'int64_t', 1: 'int8_t'})[width(dtype)]}>({byte}) != 0)"


def width(dtype: str) -> int:
    return {"double": 8, "int64_t": 8, "float": 4, "int32_t": 4}.get(CTYPES[dtype], 1)


def convert(arg: str, have: str, want: str) -> str:
    """The same values in another dtype; bool from a number is != 0."""
    if want == "bool" and have != "bool":
        return truth(f"{arg} != 0")
    return arg if CTYPES[have] == CTYPES[want] else f"to<{CTYPES[want]}>({arg})"


def cast(arg: str, have: str, want: str) -> str:
    return rounded(convert(arg, have, want), want)


Loader = Callable[[Node], str]


def body(code: Code, step: Step, known: dict[Node, str], load: Loader, store: Callable[[Node, str], None]) -> None:
    """Write the step's pointwise nodes one after another. `known` maps the head, if any, to its vector; members follow."""
    for node in step.body:
        args = []
        for operand in node.inputs:
            value = source(operand)[0] if operand.side != "constant" else operand
            args.append(known[value] if value in known else load(operand))
        name = code.fresh("y")
        code.add(f"const V<{ctype(node)}> {name} = {express(code, node, args)};")
        known[node] = name
        if node in step.stored:
            store(node, name)


def axes_of(shape: tuple[int, ...], operands: Sequence[tuple[int, ...]]) -> tuple[list[int], list[list[int]]]:
    """Loop sizes and, for each operand, its strides; adjacent axes over which every operand runs on (or stands still) are one."""
    rank = len(shape)
    strides = []
    for operand in operands:
        full = (1,) * (rank - len(operand)) + tuple(operand)
        strides.append([0 if full[i] == 1 else math.prod(full[i + 1 :]) for i in range(rank)])
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in operands]
    for i, n in enumerate(shape):
        if n == 1:
            continue
        if sizes and all(m[-1] == s[i] * n for m, s in zip(merged, strides)):
            sizes[-1] *= n
            for m, s in zip(merged, strides):
                m[-1] = s[i]
        else:
            sizes.append(n)
            for m, s in zip(merged, strides):
                m.append(s[i])
    return sizes or [1], [m or [0] for m in merged]


def outside(step: Step) -> list[Node]:
    """Operands of the step's pointwise nodes that other steps, or the packed file, hold."""
    members = set(step.nodes)
    found: dict[Node, None] = {}
    for node in step.body:
        for operand in node.inputs:
            if operand.side == "constant" or source(operand)[0] not in members:
                found[operand] = None
    return list(found)


def emit(code: Code, step: Step) -> None:
    """A loop for a group with no head."""
    lead = step.body[0]
    operands = outside(step)
    refs = {v: code.read(v) for v in operands}
    outs = {v: code.write(v) for v in step.body if v in step.stored}
    for node in step.body:
        if node.op is Op.QUANTIZE:
            code.pointer_once("float", "quantize", node)
    flat = [lead.shape if size(v) == size(lead) else v.shape if size(v) > 1 else () for v in operands]
    sizes, strides = axes_of(lead.shape, [*flat, lead.shape])
    gapless = all(
        (r.stride == "0" and size(v) == 1) or (v.side == step.side and code.plan.buffer_of(v).stride == size(v) == size(lead))
        for v, r in refs.items()
    ) and all(code.plan.buffer_of(v).stride == size(v) for v in outs)
    if gapless and len(sizes) == 1:
        along = {v: [0 if v.side == "constant" else 1] for v in operands}
        _inner(code, step, refs, along, outs, "", f"M * {size(lead)}", None)
        return
    with code.block("for (i64 m = 0; m < M; m++)"):
        at: dict[Node, str] = {}
        loops = [f"i{d}" for d in range(len(sizes) - 1)]
        for v, s in zip([*operands, None], strides):
            terms = [f"{loop} * {stride}" for loop, stride in zip(loops, s) if stride]
            if v is not None:
                at[v] = " + ".join(terms)
        out_at = " + ".join(f"{loop} * {stride}" for loop, stride in zip(loops, strides[-1]) if stride)
        depth = code.depth
        for loop, n in zip(loops, sizes):
            code.add(f"for (i64 {loop} = 0; {loop} < {n}; {loop}++) {{")
            code.depth += 1
        offsets = {v: f"{r.row()}" + (f" + {at[v]}" if at[v] else "") for v, r in refs.items()}
        _inner(code, step, refs, dict(zip(operands, strides)), outs, out_at, str(sizes[-1]), offsets)
        while code.depth > depth:
            code.depth -= 1
            code.add("}")


def _inner(
    code: Code,
    step: Step,
    refs: dict[Node, Ref],
    strides: dict[Node, list[int]],
    outs: dict[Node, Ref],
    out_at: str,
    n: str,
    offsets: dict[Node, str] | None,
) -> None:
    """The innermost loop, vectors of LANES; `n` a number, or an expression of M when the rows are part of the loop."""

    def load(v: Node) -> str:
        base = offsets[v] if offsets else refs[v].name
        return f"load({base} + i)" if strides[v][-1] else f"splat(*({base}))"

    exact = not n.isdigit() or out_at != "" or not all(code.padded(v) for v in outs)
    last = f"{n}"

    def store(v: Node, name: str) -> None:
        base = outs[v].row() if offsets else outs[v].name
        where = f"{base} + {out_at} + i" if out_at else f"{base} + i"
        if not offsets:  # the buffer's slack takes what lies behind the last row
            code.add(f"store({where}, {name});")
        else:
            code.add(f"put({where}, {name}, lanes);" if exact else f"store({where}, {name});")

    if exact and offsets:
        with code.block("auto some = [&](i64 i, auto count) FORCE"):
            code.add("constexpr int lanes = decltype(count)::value;")
            body(code, step, {}, load, store)
        code.lines[-1] += ";"
        whole = int(last) if last.isdigit() else 0
        if whole:
            code.add(f"for (i64 i = 0; i < {whole} / LANES * LANES; i += LANES) some(i, C<LANES>{{}});")
            code.add(f"if constexpr ({whole} % LANES != 0) some({whole} / LANES * LANES, C<{whole} % LANES>{{}});")
    else:
        with code.block(f"for (i64 i = 0; i < {last}; i += LANES)"):
            body(code, step, {}, load, store)
