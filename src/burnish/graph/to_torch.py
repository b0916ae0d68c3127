"""The torch twin of a Graph: the same function as flat tensor code (a torch.fx.GraphModule), for training, Inductor and exporters.

Values carry the rows as their first axis, constants carry none, and half floats are float32 tensors that hold representable numbers
only: all as in interpret.py, with which the twin agrees op by op, quantized ones bit for bit. Everything static was decided while the
code was made, so what runs is tensor code only: no dict, no shape test, no branch.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from burnish.errors import GraphError
from burnish.graph.interpret import read_by_row
from burnish.graph.node import Graph, Node, weight
from burnish.graph.ops import Op, promote

DTYPES = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int32": torch.int32,
    "int64": torch.int64,
    "float16": torch.float32,  # values; weights of these two dtypes are kept as they are and widened when read
    "bfloat16": torch.float32,
    "float32": torch.float32,
    "float64": torch.float64,
}
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}

# operands that training may change; other constants (temperatures, masks, epsilons) stay as they are
TRAINABLE: dict[Op, tuple[int, ...]] = {
    Op.LOOKUP: (0,),
    Op.BAG: (0,),
    Op.LINEAR: (1, 2),
    Op.MATMUL: (0, 1),
    Op.LAYERNORM: (1, 2),
    Op.GRU: (2, 3, 4, 5),
}

Row = Callable[["_Twin", Node, tuple[Any, ...]], Any]
Tensors = tuple[Any, ...]  # fx.Proxy while the twin is made, torch.Tensor when one calls a row of TWIN directly


def to_torch(graph: Graph, rows: Mapping[Node, Row] | None = None) -> fx.GraphModule:
    """A module whose forward takes a plain table, every input (N, *shape) by position or name, and returns the output (N, *shape), or
    a dict of them when there are several.

    Weights of floating dtype are Parameters named after `graph.weights` (a name that is no identifier gets underscores), of which only
    those in TRAINABLE places ask for a gradient; the rest are buffers. Mapped arrays stay mapped, and are not trained. `rows`: nodes that
    are computed otherwise than by their op's row of TWIN.
    """
    rows = rows or {}
    root, code = nn.Module(), fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(code)
    builder = _Twin(graph, root, code, tracer)
    places: dict[str, Any] = {spec.name: fx.Proxy(code.placeholder(_identifier(spec.name)), tracer) for spec in graph.inputs}
    count = next(iter(places.values())).shape[0] if places else 1
    for node in graph.order:
        if node.op is Op.INPUT:
            half = node["half"]
            whole = places[half.name]
            builder.values[node] = whole if half.columns is None else torch.index_select(whole, 1, builder.indices(half.columns))
        elif node.op is not Op.WEIGHT and node not in builder.read_by_row:
            if node.op not in TWIN:
                raise GraphError(f"the torch twin has no {node.op.name}. Add it to graph/to_torch.py (docs/adding_an_op.md)")
            row = rows.get(node, TWIN[node.op])
            value = row(builder, node, tuple(builder.read(operand) for operand in node.inputs))
            builder.values[node] = _round(value, node.dtype) if node.dtype in HALVES else value
    outputs = {}
    for name, node in graph.outputs:
        value = builder.read(node)
        outputs[name] = (value[None].expand(count, *node.shape) if node.side == "constant" else value).node
    code.output(outputs if len(outputs) > 1 else next(iter(outputs.values())))
    code.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    code.lint()
    return fx.GraphModule(root, code, "RankerTwin")


def trained_weights(graph: Graph, twin: nn.Module) -> dict[Node, Node]:
    """For each float32 WEIGHT that asks for a gradient in `twin`, the graph's twin, one that holds the values it has there."""
    parameters = dict(twin.named_parameters())
    return {
        node: weight(node["weight"].name, parameters[name].detach().numpy().copy())
        for node, name in weight_names(graph).items()
        if node.dtype == "float32" and name in parameters and parameters[name].requires_grad
    }


def weight_names(graph: Graph) -> dict[Node, str]:
    """What the WEIGHT nodes are called in a twin: the names of `graph.weights` as identifiers that nothing else has."""
    held = {id(w): name for name, w in graph.weights.items()}
    taken = set(dir(nn.Module()))
    names = {}
    for node in graph.order:
        if node.op is Op.WEIGHT:
            name = _identifier(held[id(node["weight"])])
            while name in taken:
                name += "_"
            taken.add(name)
            names[node] = name
    return names


class _Twin:
    """What the rows of TWIN need while the code is made: the values so far, and where constants are kept."""

    def __init__(self, graph: Graph, root: nn.Module, code: fx.Graph, tracer: fx.proxy.TracerBase) -> None:
        self.root, self.code, self.tracer = root, code, tracer
        self.values: dict[Node, Any] = {}
        self.read_by_row = read_by_row(graph)
        trained = {node.inputs[i] for node in graph.order for i in TRAINABLE.get(node.op, ()) if i < len(node.inputs)}
        self.names = weight_names(graph)
        for node, name in self.names.items():
            self._keep(name, node, node in trained)

    def _keep(self, name: str, node: Node, trained: bool) -> None:
        tensor, mapped = _tensor(node)
        if tensor.is_floating_point():
            self.root.register_parameter(name, nn.Parameter(tensor, requires_grad=trained and not mapped))
        else:
            self.root.register_buffer(name, tensor)

    def read(self, node: Node) -> Any:
        """The value of a node, float32 where it is a half float; None of a table that is only read by row."""
        if node.op is not Op.WEIGHT or node in self.read_by_row:
            return self.values.get(node)
        return self.held(node).float() if node.dtype in HALVES else self.held(node)

    def held(self, node: Node) -> Any:
        """The tensor of a WEIGHT as it is kept."""
        return fx.Proxy(self.code.get_attr(self.names[node]), self.tracer)

    def module(self, name: str, module: nn.Module, *x: Any) -> Any:
        """What `module`, kept as a part of the twin under `name`, makes of x."""
        self.root.add_module(name, module)
        return fx.Proxy(self.code.call_module(name, tuple(value.node for value in x)), self.tracer)

    def indices(self, indices: tuple[int, ...]) -> Any:
        """A buffer of int64 indices."""
        return self.constant(torch.tensor(indices, dtype=torch.int64))

    def constant(self, tensor: torch.Tensor) -> Any:
        """A buffer that is no weight of the graph."""
        name = "constant_" + str(sum(1 for key, _ in self.root.named_buffers() if key.startswith("constant_")))
        self.root.register_buffer(name, tensor)
        return fx.Proxy(self.code.get_attr(name), self.tracer)

    def rows_of_table(self, table: Node, ids: Any) -> Any:
        """Rows (*ids.shape, W) of a constant table, of which only those rows are widened."""
        if table.op is Op.DEQUANTIZE:
            q, scale = (self.held(v) for v in table.inputs)
            rows = q[ids]
            rows = _unpack_int4(rows) if table.inputs[0].dtype == "int4" else rows
            return rows.float() * scale[ids]
        if table.op is Op.WEIGHT:
            rows = F.embedding(ids, self.held(table))
            return rows.float() if table.dtype in HALVES else rows
        if table.op is Op.CAST and table.inputs[0].op is Op.WEIGHT:
            return _to_dtype(F.embedding(ids, self.held(table.inputs[0])), table.dtype)
        return F.embedding(ids, self.whole(table))

    def whole(self, node: Node) -> Any:
        """A computed table, all of it."""
        if node.op is Op.WEIGHT:
            return self.held(node).float() if node.dtype in HALVES else self.held(node)
        return TWIN[node.op](self, node, tuple(self.whole(v) for v in node.inputs))


def _tensor(node: Node) -> tuple[torch.Tensor, bool]:
    """A WEIGHT's tensor, a copy unless it is mapped, and whether it is mapped."""
    held = node["weight"]
    mapped = isinstance(held.array, np.memmap)
    with warnings.catch_warnings():  # a mapped array is read-only, and so is every use of it here
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(held.array if mapped else np.array(held.array))
    return (tensor.view(torch.bfloat16) if held.dtype == "bfloat16" else tensor), mapped


def _identifier(name: str) -> str:
    name = re.sub(r"\W", "_", name)
    return name if name[:1].isalpha() or name[:1] == "_" else f"w_{name}"


def _round(x: Any, dtype: str) -> Any:
    """float32 -> float32 that `dtype` can represent."""
    return x.to(HALVES[dtype]).float() if dtype in HALVES else x


def deeper(x: Any, value: Node, depth: int) -> Any:
    """A row value with 1s behind its rows until it has `depth` axes behind them, so that operands align on the right."""
    if value.side != "constant":
        for _ in range(depth - len(value.shape)):
            x = x.unsqueeze(1)
    return x


def _aligned(node: Node, x: Tensors) -> Tensors:
    depth = max(len(v.shape) for v in node.inputs)
    return tuple(deeper(a, v, depth) for v, a in zip(node.inputs, x))


def _same_rows(node: Node, x: Tensors) -> Tensors:
    """Constants get rows when any other operand has them."""
    if node.side == "constant":
        return x
    rows = next(a for v, a in zip(node.inputs, x) if v.side != "constant").shape[0]
    return tuple(a[None].expand(rows, *v.shape) if v.side == "constant" else a for v, a in zip(node.inputs, x))


def _behind(node: Node) -> int:
    return 0 if node.inputs[0].side == "constant" else 1


def _to(x: Any, value: Node, dtype: str) -> Any:
    return x if DTYPES[value.dtype] == DTYPES[dtype] else x.to(DTYPES[dtype])


def _unary(fn: Callable[..., Any]) -> Callable[[_Twin, Node, Tensors], Any]:
    return lambda twin, node, x: fn(x[0])


def _binary(fn: Callable[..., Any]) -> Callable[[_Twin, Node, Tensors], Any]:
    def run(twin: _Twin, node: Node, x: Tensors) -> Any:
        dtype = promote(*(v.dtype for v in node.inputs))
        return fn(*(_to(a, v, dtype) for a, v in zip(_aligned(node, x), node.inputs)))

    return run


def _to_dtype(x: Any, dtype: str) -> Any:
    return x.to(HALVES[dtype]).float() if dtype in HALVES else x.to(DTYPES[dtype])


def _where(twin: _Twin, node: Node, x: Tensors) -> Any:
    condition, a, b = _aligned(node, x)
    return torch.where(condition, _to(a, node.inputs[1], node.dtype), _to(b, node.inputs[2], node.dtype))


def _linear(twin: _Twin, node: Node, x: Tensors) -> Any:
    a, w, b, *init = x
    a, w = _round(a, node["compute"]), _round(w, node["compute"])
    if not init:
        return F.linear(a, w, b)
    return F.linear(a, w) + deeper(init[0], node.inputs[3], len(node.shape)) + b


def quantize(x: Any, multiplier: Any, zero_point: int) -> Any:
    """affine.quantize on tensors, the same bits."""
    t = x * multiplier
    t = torch.where(t > -zero_point, t, float(-zero_point))  # NaN compares false and becomes low
    t = torch.where(t < 255 - zero_point, t, float(255 - zero_point))
    return (torch.round(t).to(torch.int32) + zero_point).to(torch.uint8)


def dot(q: Any, weight: Any, zero_point: int) -> Any:
    """affine.dot on tensors, the same bits: float64 holds every sum exactly."""
    return ((q.double() - zero_point) @ weight.double().T).to(torch.int64).to(torch.int32)


def _qdot(twin: _Twin, node: Node, x: Tensors) -> Any:
    acc = dot(x[0], x[1], node["zero_point"])
    return acc + deeper(x[2], node.inputs[2], len(node.shape)) if len(x) > 2 else acc


def _qlinear(twin: _Twin, node: Node, x: Tensors) -> Any:
    acc = dot(x[0], x[1], node["zero_point"])
    acc = acc + deeper(x[4], node.inputs[4], len(node.shape)) if len(x) > 4 else acc
    return acc.float() * x[2] + x[3]


def _unpack_int4(packed: Any) -> Any:
    """(..., W/2) uint8 -> (..., W) int8 in [-8, 7], the even column from the low nibble."""
    both = torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2).to(torch.int8)
    return torch.where(both > 7, both - 16, both)


def _dequantize(twin: _Twin, node: Node, x: Tensors) -> Any:
    q = _unpack_int4(x[0]) if node.inputs[0].dtype == "int4" else x[0]
    return q.float() * x[1]


def _bag(twin: _Twin, node: Node, x: Tensors) -> Any:
    ids, ignore = x[1], node["ignore"]
    rows = twin.rows_of_table(node.inputs[0], ids if ignore is None else torch.where(ids != ignore, ids, 0))  # (..., L, W)
    if len(x) > 2:
        rows = rows * x[2].unsqueeze(-1)
    length = node.inputs[1].shape[-1]
    if ignore is None:
        return {"sum": rows.sum, "mean": rows.mean, "max": rows.amax}[node["mode"]](dim=-2)
    kept = (ids != ignore).unsqueeze(-1)
    if node["mode"] == "max":
        return torch.where(kept.any(dim=-2), torch.where(kept, rows, float("-inf")).amax(dim=-2), 0.0)
    total = torch.where(kept, rows, 0.0).sum(dim=-2)
    return total / kept.sum(dim=-2).clamp(1, length) if node["mode"] == "mean" else total


def _axes(node: Node) -> list[int]:
    return [axis + _behind(node) for axis in node["axes"]]


def _reduce(fn: Callable[..., Any]) -> Callable[[_Twin, Node, Tensors], Any]:
    def run(twin: _Twin, node: Node, x: Tensors) -> Any:
        axes = _axes(node)
        return fn(x[0], axes, keepdim=node["keepdims"]).to(DTYPES[node.dtype]) if axes else x[0]

    return run


def _prod(twin: _Twin, node: Node, x: Tensors) -> Any:
    value = x[0]
    for axis in sorted(_axes(node), reverse=True):
        value = torch.prod(value, axis, keepdim=node["keepdims"])
    return value.to(DTYPES[node.dtype])


def _along(fn: Callable[..., Any]) -> Callable[[_Twin, Node, Tensors], Any]:
    return lambda twin, node, x: fn(x[0], node["axis"] + _behind(node))


def _argsort(twin: _Twin, node: Node, x: Tensors) -> Any:
    return torch.argsort(x[0], dim=node["axis"] + _behind(node), descending=node["descending"], stable=True)


def _layernorm(twin: _Twin, node: Node, x: Tensors) -> Any:
    return F.layer_norm(x[0], node.inputs[1].shape, x[1], x[2], node["eps"])


def _gru(twin: _Twin, node: Node, x: Tensors) -> Any:
    steps, first, *weights = x
    if node.inputs[0].side == "constant":
        raise GraphError("GRU of a constant should have been folded away")
    if node["scores"]:
        return _attended_gru(node, x)
    if node.inputs[1].side == "constant":
        first = first[None].expand(steps.shape[0], *node.inputs[1].shape)
    return torch.gru(steps, first[None].contiguous(), weights, True, 1, 0.0, False, False, True)[0]


def _attended_gru(node: Node, x: Tensors) -> Any:
    """Step by step: torch has no GRU whose update gate takes scores."""
    steps, h, w_ih, w_hh, b_ih, b_hh, scores = x
    gates, out = F.linear(steps, w_ih, b_ih), []
    for t in range(node.shape[0]):
        r_in, z_in, n_in = gates[:, t].chunk(3, -1)
        r_h, z_h, n_h = F.linear(h, w_hh, b_hh).chunk(3, -1)
        new = torch.tanh(n_in + torch.sigmoid(r_in + r_h) * n_h)
        update = scores[..., t, None]  # one for all rows, or one a row
        if node["scores"] == "scale":
            update = update * torch.sigmoid(z_in + z_h)
        h = (1 - update) * h + update * new
        out.append(h)
    return torch.stack(out, 1)


def _concat(twin: _Twin, node: Node, x: Tensors) -> Any:
    parts = [_to(a, v, node.dtype) for a, v in zip(_same_rows(node, x), node.inputs)]
    return torch.cat(parts, node["axis"] + (node.side != "constant"))


def _gather(twin: _Twin, node: Node, x: Tensors) -> Any:
    value, indices = _same_rows(node, x)
    return torch.gather(value, node["axis"] + (node.side != "constant"), indices.long())


def _take(twin: _Twin, node: Node, x: Tensors) -> Any:
    return torch.index_select(x[0], node["axis"] + _behind(node), twin.indices(node["indices"]))


def _slice(twin: _Twin, node: Node, x: Tensors) -> Any:
    return x[0].narrow(node["axis"] + _behind(node), node["start"], node["stop"] - node["start"])


def _reshape(twin: _Twin, node: Node, x: Tensors) -> Any:
    return x[0].reshape(node["shape"] if node.side == "constant" else (-1, *node["shape"]))


def _transpose(twin: _Twin, node: Node, x: Tensors) -> Any:
    return x[0].permute(node["perm"] if node.side == "constant" else (0, *(axis + 1 for axis in node["perm"])))


def _expand(twin: _Twin, node: Node, x: Tensors) -> Any:
    if node.side == "constant":
        return x[0].expand(node["shape"])
    return deeper(x[0], node.inputs[0], len(node["shape"])).expand(-1, *node["shape"])


TWIN: dict[Op, Row] = {
    Op.LOOKUP: lambda twin, node, x: twin.rows_of_table(node.inputs[0], x[1]),
    Op.BAG: _bag,
    Op.LINEAR: _linear,
    Op.MATMUL: lambda twin, node, x: torch.matmul(*_aligned(node, x)),
    Op.QUANTIZE: lambda twin, node, x: quantize(x[0], x[1], node["zero_point"]),
    Op.DEQUANTIZE: _dequantize,
    Op.QLINEAR: _qlinear,
    Op.QDOT: _qdot,
    Op.CAST: lambda twin, node, x: _to_dtype(x[0], node["dtype"]),
    Op.NEG: _unary(torch.neg),
    Op.ABS: _unary(torch.abs),
    Op.SIGN: _unary(torch.sign),
    Op.EXP: _unary(torch.exp),
    Op.LOG: _unary(torch.log),
    Op.SQRT: _unary(torch.sqrt),
    Op.RSQRT: _unary(torch.rsqrt),
    Op.SIN: _unary(torch.sin),
    Op.COS: _unary(torch.cos),
    Op.TANH: _unary(torch.tanh),
    Op.SIGMOID: _unary(torch.sigmoid),
    Op.RELU: _unary(torch.relu),
    Op.ERF: _unary(torch.erf),
    Op.FLOOR: _unary(torch.floor),
    Op.ROUND: _unary(torch.round),
    Op.NOT: _unary(torch.logical_not),
    Op.ISNAN: _unary(torch.isnan),
    Op.ADD: _binary(torch.add),
    Op.SUB: _binary(torch.sub),
    Op.MUL: _binary(torch.mul),
    Op.DIV: _binary(torch.div),
    Op.POW: _binary(torch.pow),
    Op.MOD: _binary(torch.remainder),
    Op.MINIMUM: _binary(torch.minimum),
    Op.MAXIMUM: _binary(torch.maximum),
    Op.ATAN2: _binary(torch.atan2),
    Op.EQ: _binary(torch.eq),
    Op.NE: _binary(torch.ne),
    Op.LT: _binary(torch.lt),
    Op.LE: _binary(torch.le),
    Op.GT: _binary(torch.gt),
    Op.GE: _binary(torch.ge),
    Op.AND: _binary(torch.logical_and),
    Op.OR: _binary(torch.logical_or),
    Op.WHERE: _where,
    Op.SUM: _reduce(torch.sum),
    Op.MEAN: _reduce(torch.mean),
    Op.MAX: _reduce(torch.amax),
    Op.MIN: _reduce(torch.amin),
    Op.PROD: _prod,
    Op.ARGMAX: _along(torch.argmax),
    Op.ARGSORT: _argsort,
    Op.CUMSUM: lambda twin, node, x: torch.cumsum(x[0], node["axis"] + _behind(node), dtype=DTYPES[node.dtype]),
    Op.CUMPROD: lambda twin, node, x: torch.cumprod(x[0], node["axis"] + _behind(node), dtype=DTYPES[node.dtype]),
    Op.SOFTMAX: _along(torch.softmax),
    Op.LAYERNORM: _layernorm,
    Op.GRU: _gru,
    Op.CONCAT: _concat,
    Op.SLICE: _slice,
    Op.TAKE: _take,
    Op.GATHER: _gather,
    Op.RESHAPE: _reshape,
    Op.TRANSPOSE: _transpose,
    Op.EXPAND: _expand,
}
