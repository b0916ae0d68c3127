"""Entries along axes of several values that can only go together: what a head, an expert, a column of a table or a feature is.

From one axis of one value, with a label an entry, labels are followed through the graph both ways until nothing changes: an addition
wants its operands cut alike, a concatenation shifts labels, a reshape spreads them over blocks, a product of matrices ties the axis that
it sums over (DepGraph, Fang et al. 2023, arXiv:2301.12900, found groups of layers so). Where an op cannot be followed there is no group.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from burnish.graph.interpret import constant
from burnish.graph.node import Graph, Node, weight
from burnish.graph.ops import POINTWISE, REDUCE, Op
from burnish.passes.evidence import Moments, Rows
from burnish.passes.refit import WIDEST, followed, is_plain, refitted, weight_name
from burnish.passes.segments import bounds

MOST = 64  # entries of a group; what has more is a layer of neurons, or a column of single values
COLUMNS = 4  # of a table come and go together: a row ends where a vector of its values ends
RIDGE = 1e-6  # of the mean variance, as in prune
MOST_SEEN = 400  # values that labels are followed through

Place = tuple[Node, int]  # a value and one of its axes
Kept = Callable[[Node, int], np.ndarray]  # which positions along an axis of a value remain
Labels = dict[Place, np.ndarray]  # entry of the group that each position belongs to, -1: to none


@dataclass(frozen=True, eq=False)
class Group:
    """`size` entries that can be left out each by itself, and where they are. `name` is that of a weight, and what of it is cut; as many
    as a multiple of `unit` should remain."""

    name: str
    size: int
    unit: int
    labels: Labels = field(repr=False)
    readers: tuple[Node, ...] = field(repr=False, default=())  # linears whose inputs are cut


class _Stuck(Exception):
    """Labels reached what cannot be cut."""


def groups(graph: Graph) -> list[Group]:
    """Of each kind in turn: columns of tables ("width"), their ids ("features"), axes that a reshape makes, as heads are ("blocks"), and
    operands of a concatenation, as experts are ("parts")."""
    users, outputs = graph.users(), {value for _, value in graph.outputs}
    found: list[Group] = []
    met: set[tuple[Place, int]] = set()
    for kind, place, labels in _seeds(graph):
        size = int(labels.max()) + 1
        if not 2 <= size <= MOST or (place, size) in met:
            continue
        try:
            labelled = _Trace(users, outputs).follow(place, labels)
        except _Stuck:
            continue
        at = _home(graph, labelled)
        if at is None:
            continue
        met |= {(other, size) for other in labelled}
        readers = tuple(node for node in graph.order if node.op is Op.LINEAR and (node.inputs[0], len(node.shape) - 1) in labelled)
        if all(node.inputs[1].shape[1] <= WIDEST for node in readers):
            found.append(Group(f"{at} {kind}", size, COLUMNS if kind == "width" else 1, labelled, readers))
    met_names: Counter[str] = Counter()
    named = []
    for group in found:
        met_names[group.name] += 1
        times = met_names[group.name]
        named.append(group if times == 1 else replace(group, name=f"{group.name}~{times}"))
    return sorted(named, key=_products, reverse=True)


def _products(group: Group) -> float:
    """Multiply-adds that one entry takes part in, about: those of the linears that are cut."""
    found = 0.0
    for node in {*group.readers, *(node for node, _ in group.labels if node.op is Op.LINEAR)}:
        left = 1.0
        for place in ((node, len(node.shape) - 1), (node.inputs[0], len(node.shape) - 1)):
            if place in group.labels:
                left *= 1 - float((group.labels[place] >= 0).mean()) / group.size
        found += (1 - left) * math.prod(node.shape[:-1]) * math.prod(node.inputs[1].shape)
    return found


def _seeds(graph: Graph) -> Iterator[tuple[str, Place, np.ndarray]]:
    made = [node for node in graph.order if node.side != "constant"]
    for node in made:
        if node.op in (Op.LOOKUP, Op.BAG):
            yield "width", (node, len(node.shape) - 1), np.arange(node.shape[-1])
    for node in made:
        if node.op in (Op.LOOKUP, Op.BAG) and len(node.shape) > 1:
            yield "features", (node, 0), np.arange(node.shape[0])
    for node in made:
        if node.op is Op.RESHAPE:
            for axis, n in enumerate(node.shape):
                if len(node.shape) > 1:
                    yield "blocks", (node, axis), np.arange(n)
    for node in made:
        if node.op is Op.CONCAT and len(node.inputs) > 1:
            sizes = [part.shape[node["axis"]] for part in node.inputs]
            yield "parts", (node, node["axis"]), np.repeat(np.arange(len(sizes)), sizes)


def _home(graph: Graph, labels: Labels) -> str | None:
    """The name of the weight that a group cuts first: a table, a linear's outputs, a linear's inputs, or what is multiplied;
    None where it cuts none."""
    names = {}
    for order, node in enumerate(graph.order):
        last = len(node.shape) - 1
        if node.op is Op.WEIGHT and (node, 1) in labels:
            names[0, order] = node["weight"].name
        elif node.op is Op.LINEAR and (node, last) in labels:
            names[1, order] = weight_name(node)
        elif node.op is Op.LINEAR and (node.inputs[0], last) in labels:
            names[2, order] = weight_name(node)
        elif node.op is Op.MATMUL and any((node, axis) in labels for axis in range(len(node.shape))):
            held = [v["weight"].name for v in node.inputs if v.op is Op.WEIGHT]
            if held:
                names[3, order] = held[0]
    return names[min(names)] if names else None


class _Trace:
    """One search for the places that are cut with a first one."""

    def __init__(self, users: Mapping[Node, Sequence[Node]], outputs: set[Node]) -> None:
        self.users, self.outputs = users, outputs
        self.labels: Labels = {}
        self.waiting: dict[Node, None] = {}

    def follow(self, place: Place, labels: np.ndarray) -> Labels:
        """The labels of every place; _Stuck where one cannot be cut."""
        self.put(place, labels)
        while self.waiting:
            node = next(iter(self.waiting))
            del self.waiting[node]
            self.relate(node)
            if len(self.labels) > MOST_SEEN:
                raise _Stuck
        return self.labels

    def at(self, place: Place) -> np.ndarray:
        """Labels of a place, -1 where none is known."""
        return self.labels.get(place, np.full(place[0].shape[place[1]], -1))

    def put(self, place: Place, labels: np.ndarray) -> None:
        """Add labels to a place, and look again at what stands around it. Constants are cut where they are read."""
        node, _ = place
        known = self.at(place)
        if (labels < 0).all() or (node.side == "constant" and node.op is not Op.WEIGHT):
            return
        merged = np.where(known < 0, labels, known)
        if node in self.outputs or ((labels >= 0) & (merged != labels)).any():
            raise _Stuck
        if _goes_whole(merged):  # nothing would be left
            raise _Stuck
        if not np.array_equal(merged, known):
            self.labels[place] = merged
            self.waiting |= dict.fromkeys((node, *self.users[node]))

    def same(self, *places: Place) -> None:
        """All these are cut alike."""
        merged = self.at(places[0])
        for place in places[1:]:
            other = self.at(place)
            if ((merged >= 0) & (other >= 0) & (merged != other)).any():
                raise _Stuck
            merged = np.where(merged < 0, other, merged)
        for place in places:
            self.put(place, merged)

    def labelled(self, node: Node) -> list[int]:
        return [axis for axis in range(len(node.shape)) if (node, axis) in self.labels]

    def relate(self, node: Node) -> None:
        """Carry labels between a node and its operands."""
        op, rank = node.op, len(node.shape)
        if op in (Op.INPUT, Op.WEIGHT):
            if op is Op.WEIGHT and any(user.op not in (Op.LOOKUP, Op.BAG) or user.inputs[0] is not node for user in self.users[node]):
                raise _Stuck
            return
        rows = [v for v in node.inputs if v.side != "constant"]
        if not self.labelled(node) and not any(self.labelled(v) for v in node.inputs):
            return
        if op in POINTWISE or op in (Op.EXPAND, Op.SOFTMAX, Op.LAYERNORM):
            for axis in range(rank):
                self.same((node, axis), *_aligned(rows, node, axis))
        elif op in REDUCE:
            self._reduce(node)
        elif op in (Op.CUMSUM, Op.CUMPROD):
            for axis in range(rank):
                if axis != node["axis"]:
                    self.same((node, axis), (node.inputs[0], axis))
                elif {(node, axis), (node.inputs[0], axis)} & set(self.labels):
                    raise _Stuck
        elif op is Op.CONCAT:
            self._concat(node)
        elif op in (Op.SLICE, Op.TAKE):
            self._pick(node)
        elif op is Op.RESHAPE:
            self._reshape(node)
        elif op is Op.TRANSPOSE:
            for axis, of in enumerate(node["perm"]):
                self.same((node, axis), (node.inputs[0], of))
        elif op is Op.LINEAR:
            x, _, _, *init = node.inputs
            if not is_plain(node) and ({(x, rank - 1), (node, rank - 1)} & set(self.labels)):
                raise _Stuck
            for axis in range(rank):
                self.same((node, axis), *_aligned([v for v in init if v.side != "constant"], node, axis))
                if axis < rank - 1:
                    self.same((node, axis), (x, axis))
        elif op is Op.MATMUL:
            a, b = node.inputs
            for axis in range(rank - 2):
                places = ((v, axis - rank + len(v.shape)) for v in rows)
                self.same((node, axis), *((v, i) for v, i in places if i >= 0 and v.shape[i] == node.shape[axis]))
            if a in rows:
                self.same((node, rank - 2), (a, len(a.shape) - 2))
            if b in rows:
                self.same((node, rank - 1), (b, len(b.shape) - 1))
            if a in rows and b in rows:
                self.same((a, len(a.shape) - 1), (b, len(b.shape) - 2))
        elif op in (Op.LOOKUP, Op.BAG):
            table, ids, *_ = node.inputs
            if (node, rank - 1) in self.labels and (table.op is not Op.WEIGHT or table.dtype != "float32"):
                raise _Stuck
            if table.op is Op.WEIGHT:
                self.same((node, rank - 1), (table, 1))
            for axis in range(rank - 1):
                self.same(*((v, axis) for v in (node, *node.inputs[1:]) if v.side != "constant"))
            if op is Op.BAG and (ids, rank - 1) in self.labels:
                raise _Stuck
        else:
            raise _Stuck

    def _reduce(self, node: Node) -> None:
        (x,), axes = node.inputs, node["axes"]
        left = [axis for axis in range(len(x.shape)) if node["keepdims"] or axis not in axes]
        for to, axis in enumerate(left):
            if axis not in axes:
                self.same((node, to), (x, axis))
        if node.op not in (Op.SUM, Op.MEAN) and any((x, axis) in self.labels for axis in axes):
            raise _Stuck

    def _concat(self, node: Node) -> None:
        along = node["axis"]
        for axis in range(len(node.shape)):
            if axis != along:
                self.same((node, axis), *((v, axis) for v in node.inputs if v.side != "constant"))
        for part, (start, stop) in zip(node.inputs, bounds(node.inputs, along)):
            if part.side == "constant":
                continue
            whole = self.at((node, along)).copy()
            own = self.at((part, along))
            if (own >= 0).any():
                inside = whole[start:stop]
                if ((inside >= 0) & (own >= 0) & (inside != own)).any():
                    raise _Stuck
                whole[start:stop] = np.where(inside < 0, own, inside)
                self.put((node, along), whole)
            inside = self.at((node, along))[start:stop]
            if not _goes_whole(inside):
                self.put((part, along), inside)

    def _pick(self, node: Node) -> None:
        (x,), along = node.inputs, node["axis"]
        for axis in range(len(node.shape)):
            if axis != along:
                self.same((node, axis), (x, axis))
        at = _picked(node)
        self.put((node, along), self.at((x, along))[at])
        back = np.full(x.shape[along], -1)
        back[at] = self.at((node, along))
        if not np.array_equal(back[at], self.at((node, along))):
            raise _Stuck
        self.put((x, along), back)

    def _reshape(self, node: Node) -> None:
        (x,) = node.inputs
        for ours, theirs in _blocks(x.shape, node.shape):
            for source, axes, target, into in ((x, ours, node, theirs), (node, theirs, x, ours)):
                shape = [source.shape[i] for i in axes]
                for place, axis in enumerate(axes):
                    if (source, axis) not in self.labels:
                        continue
                    spread = [-1 if i == place else 1 for i in range(len(axes))]
                    flat = np.broadcast_to(self.at((source, axis)).reshape(spread), shape).reshape([target.shape[i] for i in into])
                    for to, other in enumerate(into):
                        line = np.moveaxis(flat, to, 0).reshape(flat.shape[to], -1)
                        if flat.shape[to] > 1 and (line == line[:, :1]).all():
                            self.put((target, other), line[:, 0])
                            break
                    else:
                        raise _Stuck


def _aligned(values: Sequence[Node], node: Node, axis: int) -> list[Place]:
    """The axes of the values that lie at `axis` of a node they are broadcast to, where they are not."""
    places = [(v, axis - len(node.shape) + len(v.shape)) for v in values]
    return [(v, i) for v, i in places if i >= 0 and v.shape[i] == node.shape[axis]]


def _goes_whole(labels: np.ndarray) -> bool:
    """Whether one entry owns a whole operand of a concatenation: then the operand itself is left out, and need not be cut."""
    return bool(labels[0] >= 0 and (labels == labels[0]).all())


def _picked(node: Node) -> np.ndarray:
    return np.arange(node["start"], node["stop"]) if node.op is Op.SLICE else np.asarray(node["indices"])


def _blocks(a: Sequence[int], b: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of axes of two shapes of as many values that hold the same, axes of size 1 left out."""
    i = j = 0
    while i < len(a) or j < len(b):
        ours, theirs, left, right = [], [], 1, 1
        while True:
            if left <= right and i < len(a):
                left *= a[i]
                ours.append(i)
                i += 1
            elif j < len(b):
                right *= b[j]
                theirs.append(j)
                j += 1
            else:
                break
            if left == right and ours and theirs:
                break
        yield [k for k in ours if a[k] > 1], [k for k in theirs if b[k] > 1]


def by_worth(group: Group, seen: Mapping[Node, Moments]) -> np.ndarray:
    """(size,) the entries, those first that the rest can best replace: by the part of its readers' outputs that each alone would take with
    it when all other inputs had done their best to stand in (prune.removal, with blocks of inputs in the place of single ones)."""
    costs = np.zeros(group.size)
    for reader in group.readers:
        labels = group.labels[reader.inputs[0], len(reader.shape) - 1]
        w, c = constant(reader.inputs[1]).astype(np.float64), seen[reader.inputs[0]].covariance
        inverse = np.linalg.inv(c + max(RIDGE * np.trace(c) / len(c), 1e-30) * np.eye(len(c)))
        whole = np.trace(w @ c @ w.T) or 1.0
        for entry in range(group.size):
            at = np.flatnonzero(labels == entry)
            costs[entry] += np.trace(w[:, at] @ np.linalg.solve(inverse[np.ix_(at, at)], w[:, at].T)) / whole
    return np.argsort(costs, kind="stable")


def cut(graph: Graph, kept: Mapping[Group, np.ndarray], seen: Mapping[Node, Moments], refit: Rows | None = None) -> Graph:
    """The graph in which of each group only the entries `kept` remain; linears that read them are fitted to what they gave before, and with
    the rows `refit` every linear behind them too."""
    masks: dict[Place, np.ndarray] = {}
    for group, entries in kept.items():
        for place, labels in group.labels.items():
            stays = (labels < 0) | np.isin(labels, entries)
            masks[place] = masks[place] & stays if place in masks else stays

    def kept_of(node: Node, axis: int) -> np.ndarray:
        return np.flatnonzero(masks[node, axis]) if (node, axis) in masks else np.arange(node.shape[axis])

    def shape_of(node: Node) -> tuple[int, ...]:
        return tuple(len(kept_of(node, axis)) for axis in range(len(node.shape)))

    def change(node: Node, operands: tuple[Node, ...]) -> Node:
        own = [axis for axis in range(len(node.shape)) if (node, axis) in masks]
        if node.side == "constant" and node.op is not Op.WEIGHT:
            return node
        if node.op is Op.LINEAR:
            return _linear(node, operands, kept_of, seen, graph, refit)
        if node.op in (Op.WEIGHT, Op.INPUT):
            for axis in own:
                at = kept_of(node, axis)
                if node.op is Op.WEIGHT:
                    node = weight(node["weight"].name, np.ascontiguousarray(constant(node).take(at, axis)))
                else:
                    node = Node(Op.TAKE, (node,), axis=axis, indices=tuple(at))
            return node
        if not own and operands == node.inputs:
            return node
        if node.op in (Op.RESHAPE, Op.EXPAND):
            return Node(node.op, operands, shape=shape_of(node))
        if node.op in (Op.SLICE, Op.TAKE):
            axis = node["axis"]
            there = {int(old): new for new, old in enumerate(kept_of(node.inputs[0], axis))}
            picked = tuple(there[int(old)] for old in _picked(node)[kept_of(node, axis)])
            if node.op is Op.SLICE:
                return Node(Op.SLICE, operands, axis=axis, start=picked[0], stop=picked[-1] + 1)
            return Node(Op.TAKE, operands, axis=axis, indices=picked)
        if node.op is Op.CONCAT:
            axis, parts = node["axis"], []
            stays = np.isin(np.arange(node.shape[axis]), kept_of(node, axis))
            for old, new, (start, stop) in zip(node.inputs, operands, bounds(node.inputs, axis)):
                if stays[start:stop].any():
                    where = {other: kept_of(node, other) for other in range(len(node.shape)) if other != axis}
                    parts.append(_constant_at(old, where | {axis: np.flatnonzero(stays[start:stop])}) if old.side == "constant" else new)
            return parts[0] if len(parts) == 1 else Node(Op.CONCAT, parts, axis=axis)
        if node.op is Op.MATMUL:
            operands = _matmul(node, operands, kept_of)
        elif node.op is Op.LAYERNORM:
            where = dict(enumerate(kept_of(node, axis) for axis in range(len(node.shape))))
            skip = len(node.shape) - len(node.inputs[1].shape)
            operands = (operands[0], *(_constant_at(v, {i - skip: at for i, at in where.items() if i >= skip}) for v in node.inputs[1:]))
        elif node.op in POINTWISE:
            operands = tuple(_broadcast(old, new, node, kept_of) for old, new in zip(node.inputs, operands))
        return node.with_inputs(operands)

    return graph.map(change)


def _broadcast(old: Node, new: Node, node: Node, kept_of: Kept) -> Node:
    """A constant operand of a pointwise node where the node is cut."""
    if old.side != "constant":
        return new
    skip = len(node.shape) - len(old.shape)
    return _constant_at(old, {i: kept_of(node, i + skip) for i, n in enumerate(old.shape) if n == node.shape[i + skip]})


def _matmul(node: Node, operands: tuple[Node, ...], kept_of: Kept) -> tuple[Node, ...]:
    """The operands of a product of matrices, of which one may be constant."""
    a, b = node.inputs
    summed = next((kept_of(v, len(v.shape) - 1 - i) for i, v in enumerate((a, b)) if v.side != "constant"), None)
    rank, found = len(node.shape), list(operands)
    for i, v in enumerate((a, b)):
        if v.side == "constant" and summed is not None:
            own = len(v.shape)
            outer = own - 2 + i  # the axis that the product keeps
            before = {axis: kept_of(node, axis + rank - own) for axis in range(own - 2) if v.shape[axis] == node.shape[axis + rank - own]}
            found[i] = _constant_at(v, before | {outer: kept_of(node, rank - 2 + i), own - 1 - i: summed})
    return tuple(found)


def _constant_at(node: Node, at: Mapping[int, np.ndarray]) -> Node:
    """A constant at some of its entries along some axes."""
    array = constant(node)
    if all(len(entries) == array.shape[axis] for axis, entries in at.items()):
        return node
    for axis, entries in at.items():
        array = array.take(entries, axis)
    return weight(node["weight"].name if node.op is Op.WEIGHT else "constant", np.ascontiguousarray(array), node.dtype)


def _linear(node: Node, operands: tuple[Node, ...], kept_of: Kept, seen: Mapping[Node, Moments], graph: Graph, refit: Rows | None) -> Node:
    """A linear whose outputs, inputs or other axes are cut, fitted to what it gave before."""
    if operands == node.inputs and len(kept_of(node, len(node.shape) - 1)) == node.shape[-1]:
        return node
    x, _, _, *init = operands
    if not is_plain(node):
        return node.with_inputs(operands)
    w, b, name = constant(node.inputs[1]), constant(node.inputs[2]), weight_name(node)
    columns = kept_of(node.inputs[0], len(node.shape) - 1)
    rows = kept_of(node, len(node.shape) - 1)
    follows = followed(graph, node, operands, w[:, columns], refit) if refit is not None else None
    if follows is not None:
        w, b = follows[0]
    elif len(columns) < w.shape[1]:
        w, b = refitted(w, b, w[:, columns], seen[node.inputs[0]], np.arange(w.shape[1]), columns)
    if len(rows) < len(w):
        w, b = w[rows], b[rows]
        init = [_constant_at(v, {len(v.shape) - 1: rows}) if v.side == "constant" else v for v in init]
    return Node(Op.LINEAR, (x, weight(name, w), weight(f"{name}.bias", b), *init))
