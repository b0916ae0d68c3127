"""The reference: a Graph computed with numpy, one op after another. Passes and backends are held against it.

Values of request or candidate side carry the rows as their first axis, either all of them or one that stands for all (a request beside
its candidates); constants carry none. bfloat16 and float16 values are float32 arrays that hold representable numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from burnish.errors import GraphError
from burnish.graph.node import Graph, Node
from burnish.graph.ops import Op, promote
from burnish.graph.weights import from_bfloat16, to_bfloat16, unpack_int4
from burnish.inputs import Half
from burnish.quantize import affine

Arrays = tuple[np.ndarray, ...]


def interpret(graph: Graph, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A plain table, every input (N, *shape) -> every output (N, *shape)."""
    n = len(next(iter(rows.values())))

    def read(half: Half) -> np.ndarray:
        whole = np.asarray(rows[half.name])
        return whole if half.columns is None else whole[:, list(half.columns)]

    return _run(graph, read, n)


def interpret_request(graph: Graph, request: Mapping[str, np.ndarray], candidates: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One request, its halves without rows, and N candidates (N, *half shape) -> every output (N, *shape)."""
    n = len(next(iter(candidates.values()))) if candidates else 1

    def read(half: Half) -> np.ndarray:
        return np.asarray(request[half.name])[None] if half.side == "request" else np.asarray(candidates[half.name])

    return _run(graph, read, n)


def evaluate(node: Node, operands: Arrays) -> np.ndarray:
    """One node on the arrays of its operands; constants are folded with it."""
    if node.op not in EVALUATE:
        raise GraphError(f"the interpreter has no {node.op.name}. Add it to graph/interpret.py (docs/adding_an_op.md)")
    with np.errstate(all="ignore"):
        return round_to(EVALUATE[node.op](node, operands), node.dtype)


def _run(graph: Graph, read: Callable[[Half], np.ndarray], n: int) -> dict[str, np.ndarray]:
    last = {operand: i for i, node in enumerate(graph.order) for operand in node.inputs}
    keep = {node for _, node in graph.outputs}
    skipped = read_by_row(graph)
    values: dict[Node, np.ndarray] = {}
    for i, node in enumerate(graph.order):
        if node.op is Op.INPUT:
            values[node] = read(node["half"])
        elif node not in skipped:
            values[node] = evaluate(node, tuple(values.get(v, _UNREAD) for v in node.inputs))
        for operand in node.inputs:
            if last[operand] == i and operand not in keep:
                values.pop(operand, None)
    out = {}
    for name, node in graph.outputs:
        value = values[node]
        if node.side == "constant":
            value = value[None]
        out[name] = np.ascontiguousarray(np.broadcast_to(value, (n, *value.shape[1:])))
    return out


_UNREAD = np.empty(0)


def read_by_row(graph: Graph) -> set[Node]:
    """What only lookups need: tables and what widens them. They are read by row, so that no packed table is ever widened whole."""
    needed = {node for _, node in graph.outputs}
    for node in reversed(graph.order):
        if node in needed:
            needed.update(node.inputs[1:] if node.op in (Op.LOOKUP, Op.BAG) else node.inputs)
    return set(graph.order) - needed


def table_rows(table: Node, ids: np.ndarray) -> np.ndarray:
    """Rows (*ids.shape, W) of a constant table: a WEIGHT, or DEQUANTIZE or CAST of one, of which only those rows are widened."""
    if table.op is Op.WEIGHT:
        return _weight_rows(table, ids)
    if table.op is Op.CAST and table.inputs[0].op is Op.WEIGHT:
        return _to_dtype(_weight_rows(table.inputs[0], ids), table.dtype)
    if table.op is Op.DEQUANTIZE and table.inputs[0].op is table.inputs[1].op is Op.WEIGHT:
        return _weight_rows(table.inputs[0], ids).astype(np.float32) * _weight_rows(table.inputs[1], ids)
    return constant(table)[ids]


def constant(node: Node) -> np.ndarray:
    """The array of a node of side constant."""
    return evaluate(node, tuple(constant(v) for v in node.inputs))


def _weight_rows(node: Node, ids: np.ndarray) -> np.ndarray:
    held = node["weight"]
    return decode(held.array[ids], held.dtype)


def decode(array: np.ndarray, dtype: str) -> np.ndarray:
    """A Weight's array as the numbers it stands for, in a dtype of numpy: float32 for the half floats, int8 for int4."""
    if dtype == "bfloat16":
        return from_bfloat16(array)
    if dtype == "float16":
        return array.astype(np.float32)
    return unpack_int4(array) if dtype == "int4" else array


def _align(node: Node, operands: Arrays) -> Arrays:
    """Row values get 1s behind their rows until they are as deep as the deepest operand, so that numpy aligns them."""
    depth = max(len(v.shape) for v in node.inputs)
    return tuple(
        a if v.side == "constant" or len(v.shape) == depth else a.reshape(a.shape[0], *(1,) * (depth - len(v.shape)), *v.shape)
        for v, a in zip(node.inputs, operands)
    )


def _behind(node: Node) -> int:
    """How many axes of the first operand's array stand before axis 0 of its shape."""
    return 0 if node.inputs[0].side == "constant" else 1


def _same_rows(node: Node, operands: Arrays) -> Arrays:
    """Every operand with the rows of the one that has most; constants too when any other has rows."""
    if node.side == "constant":
        return operands
    n = max(a.shape[0] for v, a in zip(node.inputs, operands) if v.side != "constant")
    return tuple(np.broadcast_to(a if v.side != "constant" else a[None], (n, *v.shape)) for v, a in zip(node.inputs, operands))


def round_to(x: np.ndarray, dtype: str) -> np.ndarray:
    """float32 -> float32 that bfloat16 or float16 can represent; other dtypes leave it."""
    if dtype == "bfloat16":
        return from_bfloat16(to_bfloat16(x))
    return x.astype(np.float16).astype(np.float32) if dtype == "float16" else x


def _to_dtype(x: np.ndarray, dtype: str) -> np.ndarray:
    return round_to(x.astype(np.float32), dtype) if dtype in ("bfloat16", "float16") else x.astype(dtype, copy=False)


def _erf(x: np.ndarray) -> np.ndarray:
    return np.array(list(map(math.erf, x.ravel().tolist())), np.float64).reshape(x.shape)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _linear(node: Node, x: Arrays) -> np.ndarray:
    a, w, b, *init = x
    compute = node["compute"]
    y = round_to(a, compute) @ round_to(w, compute).T
    if init:
        y = y + _align_to(init[0], node.inputs[3], node)
    return (y + b).astype(np.float32, copy=False)


def _qdot(node: Node, x: Arrays) -> np.ndarray:
    init = _align_to(x[2], node.inputs[2], node) if len(x) > 2 else None
    return affine.dot(x[0], x[1], node["zero_point"], init)


def _qlinear(node: Node, x: Arrays) -> np.ndarray:
    init = _align_to(x[4], node.inputs[4], node) if len(x) > 4 else None
    return affine.rescale(affine.dot(x[0], x[1], node["zero_point"], init), x[2], x[3])


def _align_to(a: np.ndarray, value: Node, node: Node) -> np.ndarray:
    if value.side == "constant" or len(value.shape) == len(node.shape):
        return a
    return a.reshape(a.shape[0], *(1,) * (len(node.shape) - len(value.shape)), *value.shape)


def _bag(node: Node, x: Arrays) -> np.ndarray:
    ids = x[1]
    kept = np.ones(ids.shape, bool) if node["ignore"] is None else ids != node["ignore"]
    rows = table_rows(node.inputs[0], np.where(kept, ids, 0))  # (..., L, W); an ignored id need not be one of the table's
    if len(x) > 2:
        rows = rows * x[2][..., None]
    if node["mode"] == "max":
        top = np.where(kept[..., None], rows, -np.inf).max(axis=-2)
        return np.where(kept.any(axis=-1, keepdims=True), top, 0).astype(rows.dtype)
    total = np.where(kept[..., None], rows, 0).sum(axis=-2, dtype=rows.dtype)
    if node["mode"] == "mean":
        total = total / np.maximum(kept.sum(axis=-1), 1)[..., None].astype(rows.dtype)
    return total


def _reduce(fn: Callable[..., np.ndarray]) -> Callable[[Node, Arrays], np.ndarray]:
    def run(node: Node, x: Arrays) -> np.ndarray:
        axes = tuple(a + _behind(node) for a in node["axes"])
        return fn(x[0], axis=axes, keepdims=node["keepdims"]).astype(x[0].dtype)

    return run


def _argsort(node: Node, x: Arrays) -> np.ndarray:
    axis = node["axis"] + _behind(node)
    if not node["descending"]:
        return np.argsort(x[0], axis=axis, kind="stable")
    back = np.flip(x[0], axis)  # stable and descending: sort the mirror image, mirror the result
    return x[0].shape[axis] - 1 - np.flip(np.argsort(back, axis=axis, kind="stable"), axis)


def _layernorm(node: Node, x: Arrays) -> np.ndarray:
    value, gain, bias = x
    axes = tuple(range(value.ndim - gain.ndim, value.ndim))
    centred = value - value.mean(axis=axes, keepdims=True)
    spread = np.sqrt((centred * centred).mean(axis=axes, keepdims=True) + np.float32(node["eps"]))
    return (centred / spread * gain + bias).astype(value.dtype)


def _gru(node: Node, x: Arrays) -> np.ndarray:
    steps, h, w_ih, w_hh, b_ih, b_hh, *scores = x
    if node.inputs[0].side == "constant":
        raise GraphError("GRU of a constant should have been folded away")
    varying = [a for v, a in zip((node.inputs[1], *node.inputs[6:]), (h, *scores)) if v.side != "constant"]
    n = max(a.shape[0] for a in (steps, *varying))
    h = np.broadcast_to(h, (n, h.shape[-1]))
    gates_in = steps @ w_ih.T + b_ih  # (N, T, 3H)
    out = []
    for t in range(node.shape[0]):
        r_in, z_in, n_in = np.split(gates_in[:, t], 3, axis=-1)
        r_h, z_h, n_h = np.split(h @ w_hh.T + b_hh, 3, axis=-1)
        reset, update = sigmoid(r_in + r_h), sigmoid(z_in + z_h)
        new = np.tanh(n_in + reset * n_h)
        if scores:
            score = scores[0][..., t, None]  # one for all rows, or one a row
            update = 1 - (score * update if node["scores"] == "scale" else score)
        h = (1 - update) * new + update * h
        out.append(h)
    return np.stack(out, axis=1).astype(np.float32)


def _gather(node: Node, x: Arrays) -> np.ndarray:
    value, indices = _same_rows(node, x)
    axis = node["axis"] + (node.side != "constant")
    trimmed = tuple(slice(None) if i == axis else slice(0, n) for i, n in enumerate(indices.shape))
    return np.take_along_axis(value[trimmed], indices, axis)


def _expand(node: Node, x: Arrays) -> np.ndarray:
    (value,) = node.inputs
    shape = node["shape"]
    if value.side == "constant":
        return np.broadcast_to(x[0], shape)
    rows = x[0].shape[0]
    return np.broadcast_to(x[0].reshape(rows, *(1,) * (len(shape) - len(value.shape)), *value.shape), (rows, *shape))


def _transpose(node: Node, x: Arrays) -> np.ndarray:
    if node.side == "constant":
        return x[0].transpose(node["perm"])
    return x[0].transpose(0, *(i + 1 for i in node["perm"]))


def _pointwise(fn: Callable[..., np.ndarray]) -> Callable[[Node, Arrays], np.ndarray]:
    """Operands are first widened to the dtype that Node inference promotes them to; numpy's own promotion is another."""

    def run(node: Node, x: Arrays) -> np.ndarray:
        dtype = promote(*(v.dtype for v in node.inputs))
        dtype = "float32" if dtype in ("bfloat16", "float16") else dtype
        y = np.asarray(fn(*(a.astype(dtype, copy=False) for a in _align(node, x))))
        return _to_dtype(y, node.dtype)

    return run


def _where(node: Node, x: Arrays) -> np.ndarray:
    condition, a, b = _align(node, x)
    return _to_dtype(np.where(condition, a, b), node.dtype)


_F = _pointwise
EVALUATE: dict[Op, Callable[[Node, Arrays], np.ndarray]] = {
    Op.WEIGHT: lambda node, x: decode(node["weight"].array, node["weight"].dtype),
    Op.LOOKUP: lambda node, x: table_rows(node.inputs[0], x[1]),
    Op.BAG: _bag,
    Op.LINEAR: _linear,
    Op.MATMUL: _pointwise(np.matmul),
    Op.QUANTIZE: lambda node, x: affine.quantize(x[0], x[1], node["zero_point"]),
    Op.DEQUANTIZE: lambda node, x: x[0].astype(np.float32) * x[1],
    Op.QLINEAR: _qlinear,
    Op.QDOT: _qdot,
    Op.CAST: lambda node, x: _to_dtype(x[0], node["dtype"]),
    Op.NEG: _F(np.negative),
    Op.ABS: _F(np.abs),
    Op.SIGN: _F(np.sign),
    Op.EXP: _F(np.exp),
    Op.LOG: _F(np.log),
    Op.SQRT: _F(np.sqrt),
    Op.RSQRT: _F(lambda a: (1 / np.sqrt(a)).astype(a.dtype)),
    Op.SIN: _F(np.sin),
    Op.COS: _F(np.cos),
    Op.TANH: _F(np.tanh),
    Op.SIGMOID: _F(sigmoid),
    Op.RELU: _F(lambda a: np.maximum(a, a.dtype.type(0))),
    Op.ERF: _F(_erf),
    Op.FLOOR: _F(np.floor),
    Op.ROUND: _F(np.rint),
    Op.NOT: _F(np.logical_not),
    Op.ISNAN: _F(np.isnan),
    Op.ADD: _F(np.add),
    Op.SUB: _F(np.subtract),
    Op.MUL: _F(np.multiply),
    Op.DIV: _F(np.divide),
    Op.POW: _F(np.power),
    Op.MOD: _F(np.mod),
    Op.MINIMUM: _F(np.minimum),
    Op.MAXIMUM: _F(np.maximum),
    Op.ATAN2: _F(np.arctan2),
    Op.EQ: _F(np.equal),
    Op.NE: _F(np.not_equal),
    Op.LT: _F(np.less),
    Op.LE: _F(np.less_equal),
    Op.GT: _F(np.greater),
    Op.GE: _F(np.greater_equal),
    Op.AND: _F(np.logical_and),
    Op.OR: _F(np.logical_or),
    Op.WHERE: _where,
    Op.SUM: _reduce(np.sum),
    Op.MEAN: _reduce(np.mean),
    Op.MAX: _reduce(np.max),
    Op.MIN: _reduce(np.min),
    Op.PROD: _reduce(np.prod),
    Op.ARGMAX: lambda node, x: np.argmax(x[0], axis=node["axis"] + _behind(node)),
    Op.ARGSORT: _argsort,
    Op.CUMSUM: lambda node, x: np.cumsum(x[0], axis=node["axis"] + _behind(node), dtype=x[0].dtype),
    Op.CUMPROD: lambda node, x: np.cumprod(x[0], axis=node["axis"] + _behind(node), dtype=x[0].dtype),
    Op.SOFTMAX: lambda node, x: softmax(x[0], node["axis"] + _behind(node)),
    Op.LAYERNORM: _layernorm,
    Op.GRU: _gru,
    Op.CONCAT: lambda node, x: _to_dtype(np.concatenate(_same_rows(node, x), node["axis"] + (node.side != "constant")), node.dtype),
    Op.SLICE: lambda node, x: x[0][(slice(None),) * (node["axis"] + _behind(node)) + (slice(node["start"], node["stop"]),)],
    Op.TAKE: lambda node, x: np.take(x[0], node["indices"], axis=node["axis"] + _behind(node)),
    Op.GATHER: _gather,
    Op.RESHAPE: lambda node, x: x[0].reshape(node["shape"] if node.side == "constant" else (x[0].shape[0], *node["shape"])),
    Op.TRANSPOSE: _transpose,
    Op.EXPAND: _expand,
}
