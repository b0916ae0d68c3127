"""Graph -> ONNX: the batch is the symbolic dimension "rows", quantized linears are standard QuantizeLinear / DequantizeLinear pairs.

Inputs are the whole inputs of a plain table, (rows, *shape). Constants above SMALL bytes go to one file of external data beside the model,
which ONNX Runtime and OpenVINO map, so that a table of any size costs no protobuf.

What is not said in ONNX's own words:
- CAST to bfloat16 or float16 rounds and comes back as float32, as the interpreter has it; LINEAR's `compute` is left to the runtime's
  precision hint, and a backend without one refuses it;
- tables stay as narrow as they are: rows are gathered first and widened after;
- QLINEAR's scale is the product of both operands' scales; the activation's part is 1 / multiplier where one multiplier stands for
  all of a linear's channels, and 1, with an explicit Mul before, where there are several;
- reductions keep their axes and are squeezed after: OpenVINO 2026.4 fuses what follows a reduction into it, and quantizes the wrong
  channels where an axis went away (tests/backends/test_openvino.py);
- that Mul is taken into the int8 linear before it where only a relu lies between, since relu(y) * m = relu(y * m) for m > 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper

from burnish.errors import BuildError
from burnish.graph.interpret import constant
from burnish.graph.node import Graph, Node, input_node, scalar, weight
from burnish.graph.ops import Op
from burnish.graph.rewrite import Rule, rewrite

OPSET, IR_VERSION = 21, 10
ROWS = "rows"
SMALL = 1024
ALIGN = 4096  # of a tensor in the external file, so that it can be mapped

_TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "bfloat16": TensorProto.BFLOAT16,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}


def to_onnx(graph: Graph, path: Path) -> tuple[Path, ...]:
    """Write `graph` to `path` and its large constants to a .bin beside it; the files written. BuildError names an op ONNX lacks."""
    beside = path.with_suffix(".bin")
    with beside.open("wb") as data:
        model = _Writer(rewrite(graph, (_take_in_multiplier(graph),)), data, beside.name).model()
    path.write_bytes(model.SerializeToString())
    if beside.stat().st_size:
        return path, beside
    beside.unlink()
    return (path,)


class _Writer:
    """The state of one translation: ONNX nodes so far, and under which name each Node's value is found."""

    def __init__(self, graph: Graph, data: BinaryIO, data_name: str) -> None:
        self.graph = graph
        self.data = data
        self.data_name = data_name
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.small: dict[Any, str] = {}
        self.names: dict[Node, str] = {}
        self.scales = _activation_scales(graph)

    def model(self) -> onnx.ModelProto:
        graph = self.graph
        for spec in graph.inputs:
            self.names[input_node(spec)] = spec.name
        for node in self._needed():
            if node.op not in EMIT:
                raise BuildError(f"ONNX has no {node.op.name}. Use the backend inductor or eager, or add it (docs/adding_an_op.md)")
            self.names[node] = EMIT[node.op](self, node)
        outputs = []
        for name, node in graph.outputs:
            value = self.read(node) if node.side != "constant" else self.expand_rows(node)
            self.nodes.append(helper.make_node("Identity", [value], [f"output:{name}"]))
            outputs.append(helper.make_tensor_value_info(f"output:{name}", _TYPES[held(node)], [ROWS, *node.shape]))
        inputs = [helper.make_tensor_value_info(s.name, _TYPES[s.dtype], [ROWS, *s.shape]) for s in graph.inputs]
        made = helper.make_graph(self.nodes, "burnish", inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="burnish")

    def _needed(self) -> list[Node]:
        """What is left to compute, operands first: no constants, and nothing that only a whole input stands on."""
        needed = {node for _, node in self.graph.outputs}
        for node in reversed(self.graph.order):
            if node in needed and node not in self.names:
                needed.update(node.inputs)
        return [node for node in self.graph.order if node in needed and node not in self.names and node.side != "constant"]

    # --- values

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        """A node with one output; the output's name."""
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attrs))
        return name

    def const(self, array: Any, dtype: str | None = None, label: str = "c") -> str:
        """An initializer, the same for small equal arrays; large ones go to the external file."""
        array = np.asarray(array)
        array = np.ascontiguousarray(array).reshape(array.shape)
        dtype = dtype or str(array.dtype)
        key = (dtype, array.shape, array.tobytes()) if array.nbytes <= SMALL else None
        if key in self.small:
            return self.small[key]
        name = f"{label}_{len(self.initializers)}"
        tensor = TensorProto(name=name, data_type=_TYPES[dtype], dims=array.shape)
        if key is not None:
            tensor.raw_data = array.tobytes()
            self.small[key] = name
        else:
            self.data.write(bytes(-self.data.tell() % ALIGN))
            place = {"location": self.data_name, "offset": self.data.tell(), "length": array.nbytes}
            tensor.data_location = TensorProto.EXTERNAL
            for entry, value in place.items():
                tensor.external_data.add(key=entry, value=str(value))
            array.tofile(self.data)
        self.initializers.append(tensor)
        return name

    def read(self, node: Node) -> str:
        """The name of a node's value; a constant one becomes an initializer."""
        if node not in self.names:
            self.names[node] = self.const(constant(node), label=f"constant_{node.op.name.lower()}")
        return self.names[node]

    def expand_rows(self, node: Node) -> str:
        """A constant of shape (*shape) as (rows, *shape)."""
        first = self.graph.inputs[0]
        rows = self.slice(self.add("Shape", first.name), 0, 0, 1)
        shape = self.add("Concat", rows, self.ints(node.shape), axis=0) if node.shape else rows
        return self.add("Expand", self.const(constant(node)[None]), shape)

    def ints(self, values: Iterable[int]) -> str:
        return self.const(np.array(list(values), np.int64))

    def slice(self, x: str, axis: int, start: int, stop: int) -> str:
        return self.add("Slice", x, self.ints([start]), self.ints([stop]), self.ints([axis]))

    def cast(self, x: str, dtype: str) -> str:
        return self.add("Cast", x, to=_TYPES[dtype])

    def operands(self, node: Node, dtype: str | None = None) -> list[str]:
        """The operands' names, as deep as the deepest (1s behind the rows) and of `dtype`, so that ONNX broadcasts as the graph does."""
        depth = max(len(v.shape) for v in node.inputs)
        found = []
        for v in node.inputs:
            name = self.read(v)
            if v.side != "constant" and len(v.shape) < depth:
                name = self.add("Unsqueeze", name, self.ints(range(1, 1 + depth - len(v.shape))))
            if dtype is not None and held(v) != dtype:
                name = self.cast(name, dtype)
            found.append(name)
        return found

    def deepened(self, value: Node, depth: int) -> str:
        """The value with 1s behind its rows until its shape has `depth` axes."""
        name = self.read(value)
        if value.side == "constant" or len(value.shape) == depth:
            return name
        return self.add("Unsqueeze", name, self.ints(range(1, 1 + depth - len(value.shape))))


def held(node: Node) -> str:
    """The dtype of a node's ONNX value: bfloat16 and float16 values are float32 that hold representable numbers only."""
    return "float32" if node.dtype in ("bfloat16", "float16") else node.dtype


def _take_in_multiplier(graph: Graph) -> Rule:
    """The rule for this graph: a multiplier of several values moves into a QLINEAR whose value is read by nothing else."""
    users = graph.users()
    outputs = {node for _, node in graph.outputs}

    def alone(node: Node) -> bool:
        return len(users.get(node, ())) == 1 and node not in outputs

    def rule(node: Node) -> Node | None:
        """quantize(relu(qlinear(x, w, scale, bias)), m)  ->  quantize(relu(qlinear(x, w, scale * m, bias * m)), 1)"""
        match node:
            case Node(Op.QUANTIZE, (Node(Op.RELU, (Node(Op.QLINEAR) as linear,)) as relu, m)) if alone(relu) and alone(linear):
                factor = constant(m)
                if factor.ndim != 1 or np.all(factor == factor[0]):
                    return None
                x, w, scale, bias, *init = linear.inputs
                parts = [weight(f"{part.op.name}*m", constant(part) * factor) for part in (scale, bias)]
                scaled = relu.with_inputs((linear.with_inputs((x, w, *parts, *init)),))
                return node.with_inputs((scaled, scalar(1.0)))
        return None

    return rule


def _activation_scales(graph: Graph) -> dict[Node, np.float32]:
    """For each QUANTIZE and each integer dot, the scale of the activation: one for all QUANTIZEs that meet in a dot."""
    roots: dict[Node, set[Node]] = {}
    for node in graph.order:
        if node.op is Op.QUANTIZE:
            roots[node] = {node}
        elif node.op in (Op.QLINEAR, Op.QDOT):
            roots[node] = set(roots.get(node.inputs[0], ()))
        elif node.dtype == "uint8":
            roots[node] = set().union(*(roots.get(v, set()) for v in node.inputs))
    groups: list[set[Node]] = []
    for node in graph.order:
        if node.op in (Op.QLINEAR, Op.QDOT, Op.QUANTIZE):
            group = {node} | roots[node]
            for other in [g for g in groups if g & group]:
                group |= other
                groups.remove(other)
            groups.append(group)
    scales = {}
    for group in groups:
        multipliers = {float(m) for node in group if node.op is Op.QUANTIZE for m in constant(node.inputs[1]).ravel()}
        one = np.float32(1 / multipliers.pop()) if len(multipliers) == 1 else np.float32(1)
        scales.update(dict.fromkeys(group, one))
    return scales


# --- one function an op


def _columns(w: _Writer, node: Node) -> str:
    """A half is read from the whole input."""
    half = node["half"]
    if half.columns == tuple(range(half.columns[0], half.columns[-1] + 1)):
        return w.slice(half.name, 1, half.columns[0], half.columns[-1] + 1)
    return w.add("Gather", half.name, w.ints(half.columns), axis=1)


def _simple(op: str) -> Callable[[_Writer, Node], str]:
    return lambda w, node: w.add(op, *w.operands(node, held(node)))


def _compare(op: str, negate: bool = False) -> Callable[[_Writer, Node], str]:
    def emit(w: _Writer, node: Node) -> str:
        dtypes = {held(v) for v in node.inputs}
        common = dtypes.pop() if len(dtypes) == 1 else str(np.result_type(*dtypes))
        found = w.add(op, *w.operands(node, "int32" if common == "bool" and op != "Equal" else common))
        return w.add("Not", found) if negate else found

    return emit


def _logical(op: str) -> Callable[[_Writer, Node], str]:
    return lambda w, node: w.add(op, *w.operands(node, "bool"))


def _reduce(op: str) -> Callable[[_Writer, Node], str]:
    def emit(w: _Writer, node: Node) -> str:
        axes = [axis + 1 for axis in node["axes"]]
        if not axes:
            return w.read(node.inputs[0])
        reduced = w.add(op, w.read(node.inputs[0]), w.ints(axes), keepdims=1)
        return reduced if node["keepdims"] else w.add("Squeeze", reduced, w.ints(axes))

    return emit


def _relu(w: _Writer, node: Node) -> str:
    x = w.read(node.inputs[0])
    return w.add("Relu", x) if held(node).startswith("float") else w.add("Max", x, w.const(np.zeros((), held(node))))


def _rsqrt(w: _Writer, node: Node) -> str:
    return w.add("Reciprocal", w.add("Sqrt", w.read(node.inputs[0])))


def _isnan(w: _Writer, node: Node) -> str:
    return w.add("IsNaN", w.read(node.inputs[0]))


def _mod(w: _Writer, node: Node) -> str:
    """The result has the sign of the divisor; ONNX says so for integers only."""
    a, b = w.operands(node, held(node))
    if not held(node).startswith("float"):
        return w.add("Mod", a, b)
    return w.add("Sub", a, w.add("Mul", w.add("Floor", w.add("Div", a, b)), b))


def _atan2(w: _Writer, node: Node) -> str:
    """atan(y / x), half a turn on where x < 0, and 0 at the origin."""
    y, x = w.operands(node, held(node))

    def number(v: float) -> str:
        return w.const(np.asarray(v, held(node)))

    half_turn = w.add("Where", w.add("Less", y, number(0)), number(-math.pi), number(math.pi))
    turn = w.add("Where", w.add("Less", x, number(0)), half_turn, number(0))
    origin = w.add("And", w.add("Equal", y, number(0)), w.add("Equal", x, number(0)))
    return w.add("Where", origin, number(0), w.add("Add", w.add("Atan", w.add("Div", y, x)), turn))


def _where(w: _Writer, node: Node) -> str:
    _, a, b = node.inputs
    names = w.operands(node)
    taken = [n if held(v) == held(node) else w.cast(n, held(node)) for v, n in zip((a, b), names[1:])]
    return w.add("Where", names[0], *taken)


def _cast(w: _Writer, node: Node) -> str:
    x, dtype = w.read(node.inputs[0]), node["dtype"]
    if dtype in ("bfloat16", "float16"):
        return w.cast(w.cast(x, dtype), "float32")
    return x if held(node.inputs[0]) == dtype else w.cast(x, dtype)


def _table_rows(w: _Writer, table: Node, ids: str) -> str:
    """Rows of a constant table: gathered as narrow as they are kept, then widened."""
    narrow, dtype = table, None
    if table.op in (Op.DEQUANTIZE, Op.CAST) and table.inputs[0].op is Op.WEIGHT:
        narrow = table.inputs[0]
    if narrow.op is not Op.WEIGHT:
        return w.add("Gather", w.read(table), ids, axis=0)
    held_weight = narrow["weight"]
    dtype = "uint8" if held_weight.dtype == "int4" else held_weight.dtype
    if narrow not in w.names:
        w.names[narrow] = w.const(held_weight.array, dtype, "table")
    rows = w.add("Gather", w.names[narrow], ids, axis=0)
    if table.op is Op.DEQUANTIZE:
        if held_weight.dtype == "int4":
            rows = _unpack_int4(w, rows, table.shape[1])
        scale = w.add("Gather", w.read(table.inputs[1]), ids, axis=0)  # (..., 1)
        return w.add("Mul", w.cast(rows, "float32"), scale)
    return rows if dtype == held(table) else w.cast(rows, held(table))


def _unpack_int4(w: _Writer, packed: str, width: int) -> str:
    """(..., W/2) uint8 -> (..., W) int32 in [-8, 7], the even column from the low nibble."""
    both = w.cast(packed, "int32")
    sixteen, eight, last = w.const(np.int32(16)), w.const(np.int32(8)), w.ints([-1])
    pair = [w.add("Unsqueeze", w.add(op, both, sixteen), last) for op in ("Mod", "Div")]
    shape = w.add("Concat", w.slice(w.add("Shape", packed), 0, 0, -1), w.ints([width]), axis=0)
    flat = w.add("Reshape", w.add("Concat", *pair, axis=-1), shape)
    return w.add("Sub", w.add("Mod", w.add("Add", flat, eight), sixteen), eight)


def _lookup(w: _Writer, node: Node) -> str:
    return _table_rows(w, node.inputs[0], w.read(node.inputs[1]))


def _bag(w: _Writer, node: Node) -> str:
    table, ids, *weights = node.inputs
    rows = _table_rows(w, table, w.read(ids))  # (..., L, W)
    zero, along, last = w.const(np.zeros((), held(node))), w.ints([-2]), w.ints([-1])
    if weights:
        rows = w.add("Mul", rows, w.add("Unsqueeze", w.read(weights[0]), last))
    kept = None
    if node["ignore"] is not None:
        kept = w.add("Not", w.add("Equal", w.read(ids), w.const(np.asarray(node["ignore"], ids.dtype))))
    if node["mode"] == "max":
        if kept is None:
            return w.add("Squeeze", w.add("ReduceMax", rows, along, keepdims=1), along)
        lowest = w.const(np.asarray(-np.inf, held(node)))
        top = w.add("ReduceMax", w.add("Where", w.add("Unsqueeze", kept, last), rows, lowest), along, keepdims=1)
        any_kept = w.cast(w.add("ReduceMax", w.cast(kept, "int32"), last, keepdims=1), "bool")
        return w.add("Where", any_kept, w.add("Squeeze", top, along), zero)
    if kept is not None:
        rows = w.add("Where", w.add("Unsqueeze", kept, last), rows, zero)
    total = w.add("Squeeze", w.add("ReduceSum", rows, along, keepdims=1), along)
    if node["mode"] == "sum":
        return total
    if kept is None:
        return w.add("Div", total, w.const(np.asarray(ids.shape[-1], held(node))))
    count = w.add("ReduceSum", w.cast(kept, held(node)), last, keepdims=1)
    return w.add("Div", total, w.add("Max", count, w.const(np.ones((), held(node)))))


def _linear(w: _Writer, node: Node) -> str:
    x, weight, bias, *init = node.inputs
    if len(x.shape) == 1 and x.side != "constant":
        y = w.add("Gemm", w.read(x), w.read(weight), w.read(bias), transB=1)
    else:
        y = w.add("Add", w.add("MatMul", w.read(x), w.const(constant(weight).T, label="weight")), w.read(bias))
    return w.add("Add", y, w.deepened(init[0], len(node.shape))) if init else y


def _matmul(w: _Writer, node: Node) -> str:
    return w.add("MatMul", *w.operands(node, held(node)))


def _quantize(w: _Writer, node: Node) -> str:
    x, multiplier = node.inputs
    value = w.read(x)
    if w.scales[node] == 1:  # several multipliers meet in one linear, or one of 1
        factor = constant(multiplier)
        if not np.all(factor == 1):
            value = w.add("Mul", value, w.const(factor))
    return w.add("QuantizeLinear", value, w.const(w.scales[node]), w.const(np.uint8(node["zero_point"])))


def _qdot(w: _Writer, node: Node) -> str:
    x, weight, *init = node.inputs
    zero_point = w.const(np.uint8(node["zero_point"]))
    acc = w.add("MatMulInteger", w.read(x), w.const(constant(weight).T, label="weight"), zero_point)
    return w.add("Add", acc, w.deepened(init[0], len(node.shape))) if init else acc


def _qlinear(w: _Writer, node: Node) -> str:
    x, weight, scale, bias, *init = node.inputs
    if init:  # the integer sum is needed as it is
        acc = _qdot(w, Node(Op.QDOT, (x, weight, *init), zero_point=node["zero_point"]))
        return w.add("Add", w.add("Mul", w.cast(acc, "float32"), w.read(scale)), w.read(bias))
    activation = w.add("DequantizeLinear", w.read(x), w.const(w.scales[node]), w.const(np.uint8(node["zero_point"])))
    part = (constant(scale) / w.scales[node]).astype(np.float32)
    wide = w.add(
        "DequantizeLinear", w.const(constant(weight).T, label="weight"), w.const(part), w.const(np.zeros(len(part), np.int8)), axis=1
    )
    return w.add("Add", w.add("MatMul", activation, wide), w.read(bias))


def _argmax(w: _Writer, node: Node) -> str:
    return w.add("ArgMax", w.read(node.inputs[0]), axis=node["axis"] + 1, keepdims=0)


def _argsort(w: _Writer, node: Node) -> str:
    """TopK of everything. ONNX breaks ties by the lower index, which is what stable means; OpenVINO does so unless the axis is the last."""
    (x,) = node.inputs
    axis, last = node["axis"] + 1, w.ints([-1])
    value = w.cast(w.read(x), "int32") if x.dtype == "bool" else w.read(x)
    behind = axis == len(x.shape)
    value = w.add("Unsqueeze", value, last) if behind else value
    name = f"topk_{len(w.nodes)}"
    count = w.ints([x.shape[node["axis"]]])
    attrs = {"axis": axis, "largest": int(node["descending"]), "sorted": 1}
    w.nodes.append(helper.make_node("TopK", [value, count], [f"{name}_values", name], name=name, **attrs))
    return w.add("Squeeze", name, last) if behind else name


def _cumsum(w: _Writer, node: Node) -> str:
    return w.add("CumSum", w.read(node.inputs[0]), w.const(np.int64(node["axis"] + 1)))


def _cumprod(w: _Writer, node: Node) -> str:
    """log2(length) times: multiply by itself, moved on by 1, 2, 4 ... places, with ones before."""
    (x,) = node.inputs
    axis, length, value = node["axis"] + 1, x.shape[node["axis"]], w.read(x)
    step = 1
    while step < length:
        pads = [0] * (2 * (len(x.shape) + 1))
        pads[axis] = step
        moved = w.add("Pad", w.slice(value, axis, 0, length - step), w.ints(pads), w.const(np.ones((), held(x))))
        value = w.add("Mul", value, moved)
        step *= 2
    return value


def _softmax(w: _Writer, node: Node) -> str:
    return w.add("Softmax", w.read(node.inputs[0]), axis=node["axis"] + 1)


def _layernorm(w: _Writer, node: Node) -> str:
    x, gain, bias = node.inputs
    if gain.side == "constant" and bias.side == "constant":
        names = (w.read(x), w.read(gain), w.read(bias))
        return w.add("LayerNormalization", *names, axis=len(x.shape) + 1 - len(gain.shape), epsilon=float(node["eps"]))
    axes, depth = w.ints(range(len(x.shape) + 1 - len(gain.shape), len(x.shape) + 1)), len(x.shape)
    centred = w.add("Sub", w.read(x), w.add("ReduceMean", w.read(x), axes))
    spread = w.add("ReduceMean", w.add("Mul", centred, centred), axes)
    normal = w.add("Div", centred, w.add("Sqrt", w.add("Add", spread, w.const(np.asarray(node["eps"], held(x))))))
    return w.add("Add", w.add("Mul", normal, w.deepened(gain, depth)), w.deepened(bias, depth))


def _gru(w: _Writer, node: Node) -> str:
    """ONNX has the gates in the order update, reset, new, and time before rows."""
    if node["scores"]:
        return _attended_gru(w, node)
    x, h0, *weights = node.inputs
    if x.side == "constant" or any(v.side != "constant" for v in weights):
        raise BuildError("ONNX's GRU needs steps that vary by row and constant weights. Use the backend inductor or eager")
    hidden = h0.shape[0]

    def gates(node: Node) -> np.ndarray:
        reset, update, new = np.split(constant(node), 3)
        return np.concatenate([update, reset, new])

    w_ih, w_hh, b_ih, b_hh = map(gates, weights)
    first = w.expand_rows(h0) if h0.side == "constant" else w.read(h0)
    operands = [
        w.add("Transpose", w.read(x), perm=[1, 0, 2]),
        w.const(w_ih[None]),
        w.const(w_hh[None]),
        w.const(np.concatenate([b_ih, b_hh])[None]),
        "",
        w.add("Unsqueeze", first, w.ints([0])),
    ]
    states = w.add("GRU", *operands, hidden_size=hidden, linear_before_reset=1)  # (steps, 1, rows, hidden)
    return w.add("Transpose", w.add("Squeeze", states, w.ints([1])), perm=[1, 0, 2])


def _attended_gru(w: _Writer, node: Node) -> str:
    """Step by step: ONNX has no GRU whose update gate takes scores."""
    x, h0, w_ih, w_hh, b_ih, b_hh, scores = node.inputs
    steps, hidden = node.shape
    one = w.const(np.float32(1))
    gates = w.add("Add", w.add("MatMul", w.read(x), w.const(constant(w_ih).T)), w.const(constant(b_ih)))  # (rows or 1, steps, 3 hidden)
    score = w.read(scores) if scores.side != "constant" else w.const(constant(scores)[None])
    h = w.read(h0) if h0.side != "constant" else w.const(constant(h0)[None])
    back, bias, states = w.const(constant(w_hh).T), w.const(constant(b_hh)), []
    for t in range(steps):
        own = w.add("Squeeze", w.slice(gates, 1, t, t + 1), w.ints([1]))
        old = w.add("Add", w.add("MatMul", h, back), bias)
        (r_in, z_in, n_in), (r_h, z_h, n_h) = ([w.slice(value, 1, i * hidden, (i + 1) * hidden) for i in range(3)] for value in (own, old))
        reset = w.add("Sigmoid", w.add("Add", r_in, r_h))
        new = w.add("Tanh", w.add("Add", n_in, w.add("Mul", reset, n_h)))
        update = w.slice(score, 1, t, t + 1)
        if node["scores"] == "scale":
            update = w.add("Mul", update, w.add("Sigmoid", w.add("Add", z_in, z_h)))
        h = w.add("Add", w.add("Mul", w.add("Sub", one, update), h), w.add("Mul", update, new))
        states.append(w.add("Unsqueeze", h, w.ints([1])))
    return w.add("Concat", *states, axis=1)


def _concat(w: _Writer, node: Node) -> str:
    parts = []
    for v in node.inputs:
        name = w.expand_rows(v) if v.side == "constant" else w.read(v)
        parts.append(name if held(v) == held(node) else w.cast(name, held(node)))
    return parts[0] if len(parts) == 1 else w.add("Concat", *parts, axis=node["axis"] + 1)


def _slice(w: _Writer, node: Node) -> str:
    return w.slice(w.read(node.inputs[0]), node["axis"] + 1, node["start"], node["stop"])


def _take(w: _Writer, node: Node) -> str:
    return w.add("Gather", w.read(node.inputs[0]), w.ints(node["indices"]), axis=node["axis"] + 1)


def _gather(w: _Writer, node: Node) -> str:
    x, indices = node.inputs
    value = w.expand_rows(x) if x.side == "constant" else w.read(x)
    places = w.expand_rows(indices) if indices.side == "constant" else w.read(indices)
    for axis, (have, want) in enumerate(zip(x.shape, indices.shape)):
        if axis != node["axis"] and want < have:  # not a Slice: OpenVINO drops one before GatherElements, then finds the shapes do not fit
            value = w.add("Gather", value, w.ints(range(want)), axis=axis + 1)
    return w.add("GatherElements", value, places, axis=node["axis"] + 1)


def _reshape(w: _Writer, node: Node) -> str:
    return w.add("Reshape", w.read(node.inputs[0]), w.ints([-1, *node["shape"]]))


def _transpose(w: _Writer, node: Node) -> str:
    return w.add("Transpose", w.read(node.inputs[0]), perm=[0, *(axis + 1 for axis in node["perm"])])


def _expand(w: _Writer, node: Node) -> str:
    return w.add("Expand", w.deepened(node.inputs[0], len(node.shape)), w.ints([1, *node["shape"]]))


EMIT: dict[Op, Callable[[_Writer, Node], str]] = {
    Op.INPUT: _columns,
    Op.LOOKUP: _lookup,
    Op.BAG: _bag,
    Op.LINEAR: _linear,
    Op.MATMUL: _matmul,
    Op.QUANTIZE: _quantize,
    Op.QLINEAR: _qlinear,
    Op.QDOT: _qdot,
    Op.CAST: _cast,
    **{
        op: _simple(op.name.capitalize())
        for op in (Op.NEG, Op.ABS, Op.SIGN, Op.EXP, Op.LOG, Op.SQRT, Op.SIN, Op.COS, Op.TANH, Op.SIGMOID, Op.ERF, Op.FLOOR, Op.ROUND)
    },
    Op.RSQRT: _rsqrt,
    Op.RELU: _relu,
    Op.NOT: _logical("Not"),
    Op.ISNAN: _isnan,
    **{op: _simple(op.name.capitalize()) for op in (Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.POW)},
    Op.MOD: _mod,
    Op.MINIMUM: _simple("Min"),
    Op.MAXIMUM: _simple("Max"),
    Op.ATAN2: _atan2,
    Op.EQ: _compare("Equal"),
    Op.NE: _compare("Equal", negate=True),
    Op.LT: _compare("Less"),
    Op.LE: _compare("LessOrEqual"),
    Op.GT: _compare("Greater"),
    Op.GE: _compare("GreaterOrEqual"),
    Op.AND: _logical("And"),
    Op.OR: _logical("Or"),
    Op.WHERE: _where,
    Op.SUM: _reduce("ReduceSum"),
    Op.MEAN: _reduce("ReduceMean"),
    Op.MAX: _reduce("ReduceMax"),
    Op.MIN: _reduce("ReduceMin"),
    Op.PROD: _reduce("ReduceProd"),
    Op.ARGMAX: _argmax,
    Op.ARGSORT: _argsort,
    Op.CUMSUM: _cumsum,
    Op.CUMPROD: _cumprod,
    Op.SOFTMAX: _softmax,
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
