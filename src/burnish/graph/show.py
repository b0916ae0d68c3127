"""What a graph is and what it costs: one line a node, multiply-accumulates and bytes per node and side, and a roofline in words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from burnish.graph.node import Graph, Node
from burnish.graph.ops import Op

BYTES = {"bool": 1, "uint8": 1, "int8": 1, "int4": 0.5, "int32": 4, "int64": 8, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
MOVES = frozenset((Op.SLICE, Op.TAKE, Op.RESHAPE, Op.TRANSPOSE, Op.EXPAND, Op.CONCAT, Op.CAST))


@dataclass(frozen=True)
class NodeCost:
    """What one node does for one row. `macs`: multiply-accumulates of products; `flops`: other arithmetic, one a value (several for
    exp, softmax and the like); `weight_bytes`: constants read whole; `row_bytes`: table rows read; `out_bytes`: values made."""

    node: Node
    macs: int
    flops: int
    weight_bytes: int
    row_bytes: int
    out_bytes: int

    @property
    def side(self) -> str:
        return self.node.side


@dataclass(frozen=True)
class Total:
    macs: int
    flops: int
    weight_bytes: int
    row_bytes: int


@dataclass(frozen=True)
class Cost:
    """Costs of a graph for one row; `request` is paid once a request where a backend factors, `candidate` for every candidate."""

    nodes: tuple[NodeCost, ...]
    request: Total
    candidate: Total
    table_bytes: int
    weight_bytes: int

    @property
    def macs(self) -> int:
        return self.request.macs + self.candidate.macs

    @property
    def flops(self) -> int:
        return self.request.flops + self.candidate.flops

    @property
    def row_bytes(self) -> int:
        return self.request.row_bytes + self.candidate.row_bytes

    @property
    def dominant(self) -> tuple[NodeCost, ...]:
        """The nodes that do most of the arithmetic: the fewest that make up 80 %, at most eight, the largest first."""
        whole, got, chosen = sum(map(_work, self.nodes)), 0, []
        for each in sorted(self.nodes, key=_work, reverse=True)[:8]:
            if got >= 0.8 * whole or not _work(each):
                break
            chosen.append(each)
            got += _work(each)
        return tuple(chosen)

    def roofline(self, candidates: int = 128, gmacs: float = 100.0, gbytes: float = 10.0) -> str:
        """The floor of one request in words: arithmetic at `gmacs` (10^9 MAC/s, one core), table rows at `gbytes` (10^9 bytes/s)."""
        arithmetic = (self.request.macs + candidates * self.candidate.macs) / gmacs / 1e3
        rows = (self.request.row_bytes + candidates * self.candidate.row_bytes) / gbytes / 1e3
        unfactored = candidates * self.macs / gmacs / 1e3
        bound = "products" if arithmetic >= rows else "table rows"
        return (
            f"{candidates} candidates: {arithmetic:,.1f} µs of products at {gmacs:g} GMAC/s, "
            f"{rows:,.1f} µs of table rows at {gbytes:g} GB/s. "
            f"{bound.capitalize()} decide. Without request factoring the products take {unfactored:,.1f} µs."
        )


def _work(cost: NodeCost) -> int:
    return cost.macs + cost.flops


# operations a value, as a rule of thumb
HEAVY = {Op.EXP: 8, Op.LOG: 8, Op.TANH: 10, Op.SIGMOID: 8, Op.ERF: 10, Op.SIN: 8, Op.COS: 8, Op.POW: 16, Op.ATAN2: 16, Op.SQRT: 2}
HEAVY |= {Op.RSQRT: 2, Op.SOFTMAX: 12, Op.LAYERNORM: 6}


def node_cost(node: Node, tables: frozenset[Node] = frozenset()) -> NodeCost:
    """What `node` does for one row; constants cost nothing, they are folded or packed when built."""
    if node.side == "constant" or node.op is Op.INPUT:
        return NodeCost(node, 0, 0, 0, 0, 0)
    size = math.prod(node.shape)
    macs, flops, row_bytes = 0, 0, 0
    match node.op:
        case Op.LINEAR | Op.QLINEAR | Op.QDOT:
            macs = size * node.inputs[1].shape[1]
        case Op.MATMUL:
            macs = size * node.inputs[0].shape[-1]
        case Op.GRU:
            steps, width = node.inputs[0].shape
            hidden = node.shape[-1]
            macs, flops = steps * 3 * hidden * (width + hidden), steps * hidden * 40
        case Op.LOOKUP | Op.BAG:
            row_bytes = int(math.prod(node.inputs[1].shape) * table_row_bytes(node.inputs[0]))
            flops = math.prod(node.inputs[1].shape) * node.shape[-1] if node.op is Op.BAG else 0
        case Op.SUM | Op.MEAN | Op.MAX | Op.MIN | Op.PROD | Op.ARGMAX:
            flops = math.prod(node.inputs[0].shape)
        case Op.ARGSORT:
            flops = int(size * max(1.0, math.log2(node.shape[node["axis"]])) * 2)
        case op if op not in MOVES and op is not Op.GATHER:
            flops = size * HEAVY.get(op, 1)
    weights = sum(constant_bytes(v) for v in node.inputs if v.side == "constant" and v not in tables)
    return NodeCost(node, macs, flops, weights, row_bytes, int(size * BYTES[node.dtype]))


def table_row_bytes(table: Node) -> float:
    """Bytes read for one row of a table: of what is stored, with its scale where it has one."""
    if table.op is Op.WEIGHT:
        return table.shape[1] * BYTES[table.dtype]
    return sum(table_row_bytes(v) for v in table.inputs)


def constant_bytes(node: Node) -> int:
    """Bytes of the weights under a constant node, each once."""
    held = {v for v in Graph((), {"": node}).order if v.op is Op.WEIGHT}
    return sum(v["weight"].nbytes for v in held)


def cost(graph: Graph) -> Cost:
    tables = frozenset(node.inputs[0] for node in graph.order if node.op in (Op.LOOKUP, Op.BAG))
    nodes = tuple(node_cost(node, tables) for node in graph.order)
    held = {node for node in graph.order if node.op is Op.WEIGHT}
    under = {v for t in tables for v in Graph((), {"": t}).order if v.op is Op.WEIGHT}
    return Cost(
        nodes,
        _total(c for c in nodes if c.side == "request"),
        _total(c for c in nodes if c.side == "candidate"),
        sum(v["weight"].nbytes for v in under),
        sum(v["weight"].nbytes for v in held - under),
    )


def _total(costs: Iterable[NodeCost]) -> Total:
    chosen = list(costs)
    return Total(
        sum(c.macs for c in chosen), sum(c.flops for c in chosen), sum(c.weight_bytes for c in chosen), sum(c.row_bytes for c in chosen)
    )


def facts(graph: Graph, candidates: int = 128) -> dict[str, Any]:
    """The costs of a graph as JSON: totals of each side, bytes, the roofline in words, and every node that does something."""
    c = cost(graph)
    nodes = [
        {"op": each.node.op.name, "shape": list(each.node.shape), "dtype": each.node.dtype, "side": each.side}
        | {"weight": _weight_name(each.node).strip(), "macs": each.macs, "flops": each.flops}
        | {"weight_bytes": each.weight_bytes, "row_bytes": each.row_bytes, "out_bytes": each.out_bytes}
        for each in c.nodes
        if each.out_bytes
    ]
    return {
        "inputs": [_input_line(spec) for spec in graph.inputs],
        "outputs": {name: list(node.shape) for name, node in graph.outputs},
        "request": asdict(c.request),
        "candidate": asdict(c.candidate),
        "table_bytes": c.table_bytes,
        "weight_bytes": c.weight_bytes,
        "roofline": c.roofline(candidates),
        "nodes": nodes,
    }


def show(graph: Graph) -> str:
    """One line a node: `%7 = LINEAR(%6, deep.0.weight, deep.0.bias) f32 (1024,) candidate  361,472 MAC`."""
    numbers: dict[Node, int] = {}
    for node in graph.order:
        if node.op is not Op.WEIGHT:
            numbers[node] = len(numbers)

    def named(node: Node) -> str:
        return node["weight"].name if node.op is Op.WEIGHT else f"%{numbers[node]}"

    lines = [f"input {_input_line(spec)}" for spec in graph.inputs]
    for node, number in numbers.items():
        attrs = [f"{name}={_short(v)}" for name, v in node.attrs if name not in ("half", "weight") and v is not None]
        inside = [node["half"].name] if node.op is Op.INPUT else [named(v) for v in node.inputs]
        if len(inside) > 8:
            inside = [*inside[:4], f"... {len(inside) - 6} more", *inside[-2:]]
        macs = node_cost(node).macs
        told = f"  {macs:,} MAC" if macs else ""
        lines.append(f"%{number} = {node.op.name}({', '.join([*inside, *attrs])}) {node.dtype} {_shape(node.shape)} {node.side}{told}")
    lines += [f"output {name} = {named(node)}" for name, node in graph.outputs]
    return "\n".join(lines)


def _input_line(spec: Any) -> str:
    side = spec.side
    if not isinstance(side, str):
        side = f"{side.count('request')} request + {side.count('candidate')} candidate columns"
    return f"{spec.name}: {spec.dtype} {_shape(spec.shape)} {side}"


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 8:
        return f"({', '.join(map(str, value[:4]))}, ... {len(value)} in all)"
    return str(value)


def summary(graph: Graph, candidates: int = 128) -> str:
    """The costs of a graph in a few lines, for `burnish inspect`."""
    c = cost(graph)
    lines = [
        f"per request    {c.request.macs:>12,} MAC  {c.request.flops:>10,} other  {_bytes(c.request.row_bytes):>10} of table rows",
        f"per candidate  {c.candidate.macs:>12,} MAC  {c.candidate.flops:>10,} other  {_bytes(c.candidate.row_bytes):>10} of table rows",
        f"tables {_bytes(c.table_bytes)}, other weights {_bytes(c.weight_bytes)}",
    ]
    whole = sum(map(_work, c.nodes)) or 1
    lines += [
        f"{100 * _work(d) / whole:5.1f} %  {d.node.op.name} {_shape(d.node.shape)} {d.node.side}{_weight_name(d.node)}" for d in c.dominant
    ]
    lines.append(c.roofline(candidates))
    return "\n".join(lines)


def _weight_name(node: Node) -> str:
    names = [v["weight"].name for v in node.inputs if v.op is Op.WEIGHT]
    return f"  {names[0]}" if names else ""


def _bytes(n: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:,.0f} {unit}" if unit == "B" else f"{n:,.1f} {unit}"
        n /= 1000
    raise AssertionError
