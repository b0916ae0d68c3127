"""Node and Graph: what is computed, as frozen values. Equal nodes are the same object, so a graph is a dag without a builder."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from burnish.errors import GraphError
from burnish.graph.ops import DEFAULTS, OPS, Op
from burnish.graph.weights import Weight
from burnish.inputs import SIDES, Input

_MOST_ROWS: dict[str, int] = {side: i for i, side in enumerate(SIDES)}
_interned: weakref.WeakValueDictionary[Any, Node] = weakref.WeakValueDictionary()


class Node:
    """One value of a ranker: an op applied to other values. Interned, so `is` is equality and a hash costs nothing.

    `shape` is that of one row for a request or candidate value, and the whole shape for a constant. `side` is that of the operand with
    the most rows: constant < request < candidate. Operands broadcast behind the rows. `Node(Op.RELU, (x,))` matches
    `case Node(Op.RELU, (Node(Op.LINEAR) as linear,))`.

    `where` is the line of the user's code that a captured node came from ("ranker.py:41"), for sentences; it is no part of the value, and
    a node that a pass made has none.
    """

    __slots__ = ("__weakref__", "attrs", "dtype", "inputs", "op", "shape", "side", "where")
    __match_args__ = ("op", "inputs")
    op: Op
    inputs: tuple[Node, ...]
    attrs: tuple[tuple[str, Any], ...]
    shape: tuple[int, ...]
    dtype: str
    side: str
    where: str

    def __new__(cls, op: Op, inputs: Iterable[Node] = (), **attrs: Any) -> Node:
        inputs = tuple(inputs)
        spec = OPS[op]
        unknown = [name for name in attrs if name not in spec.attrs]
        if unknown:
            raise GraphError(f"{op.name} has no attribute {unknown[0]!r}; it has {', '.join(spec.attrs) or 'none'}")
        full = {}
        for name in spec.attrs:
            if name not in attrs and name not in DEFAULTS:
                raise GraphError(f"{op.name} lacks its attribute {name!r}")
            full[name] = _plain(attrs.get(name, DEFAULTS.get(name)))
        if not spec.arity[0] <= len(inputs) <= spec.arity[1]:
            raise GraphError(f"{op.name} takes {spec.arity[0]} to {spec.arity[1]} operands, met {len(inputs)}")
        key = (op, inputs, tuple(full.items()))
        found = _interned.get(key)
        if found is not None:
            return found
        self = object.__new__(cls)
        shape, dtype = spec.infer(inputs, full)
        if op is Op.INPUT:
            side = full["half"].side
        else:
            side = SIDES[max((_MOST_ROWS[v.side] for v in inputs), default=0)]
        for name, value in zip(("op", "inputs", "attrs", "shape", "dtype", "side"), (*key, tuple(shape), dtype, side)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "where", "")
        return _interned.setdefault(key, self)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a Node is frozen; make another with with_attrs or with_inputs")

    def __getitem__(self, name: str) -> Any:
        for key, value in self.attrs:
            if key == name:
                return value
        raise KeyError(f"{self.op.name} has no attribute {name!r}")

    def with_attrs(self, **attrs: Any) -> Node:
        return Node(self.op, self.inputs, **{**dict(self.attrs), **attrs}).at(self.where)

    def with_inputs(self, inputs: Iterable[Node]) -> Node:
        return Node(self.op, inputs, **dict(self.attrs)).at(self.where)

    def at(self, where: str) -> Node:
        """The node itself, which now says that it came from `where`, unless it says so of another line already."""
        if where and not self.where:
            object.__setattr__(self, "where", where)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.op, self.inputs, self.attrs)

    def __repr__(self) -> str:
        told = f"{self.op.name}{list(self.shape)} {self.dtype} {self.side}"
        return f"{told} ({self.where})" if self.where else told


def _plain(value: Any) -> Any:
    """An attribute as Python's own values: numpy's numbers and lists would compare and print differently."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(_plain(v) for v in value)
    return value.item() if isinstance(value, np.generic) else value


def _rebuild(op: Op, inputs: tuple[Node, ...], attrs: tuple[tuple[str, Any], ...]) -> Node:
    return Node(op, inputs, **dict(attrs))


def weight(name: str, array: np.ndarray, dtype: str | None = None) -> Node:
    """A WEIGHT node holding `array`; see Weight for the dtypes numpy lacks."""
    return Node(Op.WEIGHT, weight=Weight(name, array, dtype))


def scalar(value: float | int | bool, dtype: str = "float32") -> Node:
    """A constant of shape ()."""
    return weight(str(value), np.asarray(value, dtype))


def input_node(spec: Input) -> Node:
    """The value of a whole input: its INPUT half, or both halves concatenated and put back in the order of the columns."""
    halves = [Node(Op.INPUT, half=half) for half in spec.halves]
    if len(halves) == 1:
        return halves[0]
    order = [c for half in spec.halves for c in half.columns or ()]
    return Node(Op.TAKE, (Node(Op.CONCAT, halves, axis=0),), axis=0, indices=tuple(order.index(i) for i in range(spec.columns)))


class Graph:
    """A ranker: `inputs` in forward's order and named `outputs`, each a Node with one value a row. Frozen."""

    __slots__ = ("inputs", "order", "outputs")
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, Node], ...]
    order: tuple[Node, ...]

    def __init__(self, inputs: Iterable[Input], outputs: Mapping[str, Node]) -> None:
        put = super().__setattr__
        put("inputs", tuple(inputs))
        names = [spec.name for spec in self.inputs]
        if len(set(names)) < len(names):
            raise GraphError(f"two inputs have one name: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
        put("outputs", tuple(outputs.items()))
        put("order", _topological(node for _, node in self.outputs))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a Graph is frozen; passes return a new one")

    @property
    def weights(self) -> dict[str, Weight]:
        """Every Weight of the graph under a unique name, in the order the nodes need them."""
        found: dict[str, Weight] = {}
        times: dict[str, int] = {}
        for node in self.order:
            if node.op is Op.WEIGHT:
                held = node["weight"]
                name = held.name
                while name in found:
                    times[held.name] = times.get(held.name, 1) + 1
                    name = f"{held.name}~{times[held.name]}"
                found[name] = held
        return found

    def users(self) -> dict[Node, list[Node]]:
        """For each node the nodes that read it; a node read twice by one user is listed twice. Outputs are not users."""
        found: dict[Node, list[Node]] = {node: [] for node in self.order}
        for node in self.order:
            for operand in node.inputs:
                found[operand].append(node)
        return found

    def map(self, change: Callable[[Node, tuple[Node, ...]], Node]) -> Graph:
        """A graph in which each node, operands first, became `change(node, its new operands)`."""
        new: dict[Node, Node] = {}
        for node in self.order:
            new[node] = change(node, tuple(new[operand] for operand in node.inputs))
        return Graph(self.inputs, {name: new[node] for name, node in self.outputs})

    def __reduce__(self) -> tuple[Any, ...]:
        index = {node: i for i, node in enumerate(self.order)}
        flat = [(node.op, tuple(index[v] for v in node.inputs), node.attrs) for node in self.order]
        return _unflatten, (self.inputs, flat, [(name, index[node]) for name, node in self.outputs])

    def __repr__(self) -> str:
        return f"Graph({len(self.order)} nodes, inputs {[i.name for i in self.inputs]}, outputs {[n for n, _ in self.outputs]})"


def _unflatten(inputs: tuple[Input, ...], flat: list[Any], outputs: list[tuple[str, int]]) -> Graph:
    nodes: list[Node] = []
    for op, operands, attrs in flat:
        nodes.append(_rebuild(op, tuple(nodes[i] for i in operands), attrs))
    return Graph(inputs, {name: nodes[i] for name, i in outputs})


def _topological(roots: Iterable[Node]) -> tuple[Node, ...]:
    """All nodes under `roots`, operands before users, in a fixed order; no recursion, so depth does not matter."""
    done: dict[Node, None] = {}
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if ready:
            done[node] = None
        else:
            stack.append((node, True))
            stack.extend((operand, False) for operand in reversed(node.inputs) if operand not in done)
    return tuple(done)
