"""prune: hidden neurons that the rest can stand in for are removed, and the linears behind them are refitted. Real shapes shrink.

A neuron is worth what its removal costs after all others have done their best to replace it, not its size: with C the covariance of the
neurons on calibration rows and W the weights that read them, removing neuron i costs |W_i|^2 / (C^-1)_ii of output error, and the best
replacement moves the other weights by -W_i (C^-1)_i / (C^-1)_ii. That is the optimal brain surgeon (Hassibi & Stork 1993) with neurons in
the place of weights; removed one after another it gives an order, and so every size at once. What remains is fitted by least squares with
a ridge towards the weights as they were, and the mean of what is gone goes into the bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from burnish.errors import GraphError
from burnish.graph.interpret import constant
from burnish.graph.node import Graph, Node, weight
from burnish.graph.ops import POINTWISE, REDUCE, Op
from burnish.passes.budget import NOTHING, Made, Sizes, at_sizes, shrink
from burnish.passes.coupled import Group, by_worth, cut, groups
from burnish.passes.evidence import Judge, Moments, Rows, macs, moments, split, spread
from burnish.passes.refit import WIDEST, followed, is_plain, refitted, weight_name, weight_names
from burnish.passes.segments import bounds

LEAST = 32  # neurons of a layer below which nothing is gained
RIDGE = 1e-6  # of the mean variance of the neurons: below what float32 resolves
PARTS = (7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 1 / 16)  # of a layer that may remain
TRIED = 12  # groups that are looked at
GROUP_ROWS = (4096, 1024)  # to fit and to judge each on; what is taken is judged on all
GONE = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # entries of a group, or units of them, that may go
STEPS = 512  # removals of one layer; a wider one loses several neurons in each


@dataclass(frozen=True)
class Reader:
    """A LINEAR that reads the neurons of a layer, `start` being where they begin in its input (..., K)."""

    node: Node
    start: int


@dataclass(frozen=True, eq=False)
class Layer:
    """LINEARs whose outputs are the same hidden neurons, more than one where they are added, multiplied or stacked neuron by neuron.

    `between` are the nodes, they and others, that treat each neuron by itself on the way to the readers.
    """

    linears: tuple[Node, ...]
    between: frozenset[Node] = field(repr=False)
    readers: tuple[Reader, ...] = field(repr=False)

    @property
    def width(self) -> int:
        return self.linears[0].shape[-1]

    @property
    def sizes(self) -> list[int]:
        """Widths to try, the largest first: multiples of 64 above 128, else of 16."""
        tried = set()
        for part in PARTS:
            unit = 64 if self.width * part > 128 else 16
            tried.add(-(-int(self.width * part) // unit) * unit)
        return sorted((n for n in tried if n < self.width), reverse=True)


def prune(
    graph: Graph,
    calibration: Rows,
    loss: float = 0.00005,
    keep: float | str = "auto",
    narrowest: int = LEAST,
    widths: Sequence[tuple[str, int]] | str = "auto",
) -> Graph:
    """linear(f(linear(x, W, b)), V, c)  ->  linear(f(linear(x, W_S, b_S)), V', c'), S the neurons that stay; layers of `narrowest` or more.

    1. By default sizes are chosen so that the model saves most at an expected relative loss of AUC of at most `loss` (evidence.Judge): at
       first, for half of it, of what `coupled.groups` finds (heads, experts, columns of tables, features), then of layers.
    2. `keep` instead is the part of every layer that stays, rounded up to what kernels like; groups stay whole.
    3. `widths` instead says how many stay, by the name of the weight of a layer's first linear, or of a group; others stay whole.
    Layers are those that `layers` finds; sizes are multiples of 64 or 16. RecipeError for fewer than 64 calibration rows.
    """
    fit, judging = split(graph, calibration)
    if not isinstance(keep, str):
        found, _, made = _layers_made(graph, fit, narrowest)
        wanted = {i: [n for n in layer.sizes if n >= keep * layer.width] for i, layer in enumerate(found)}
        sizes = {i: each[-1] for i, each in wanted.items() if each}
        return made(sizes, True) if sizes else graph
    judge = Judge(graph, judging)
    if not isinstance(widths, str):
        of_groups = {group.name for group in groups(graph)} & {name for name, _ in widths}
        smaller = without(graph, fit, judge, given={name: size for name, size in widths if name in of_groups})
        _, names, made = _layers_made(smaller, fit, narrowest)
        return at_sizes(smaller, judge, [each for each in widths if each[0] not in of_groups], names, made)
    smaller = without(graph, fit, judge, loss / 2)
    found, _, made = _layers_made(smaller, fit, narrowest)
    return shrink(smaller, judge, loss, [layer.sizes for layer in found], made) if found else smaller


def without(graph: Graph, fit: Rows, judge: Judge, loss: float = 0.0, given: Mapping[str, int] | None = None) -> Graph:
    """The graph with entries of its groups left out, one group after another: as many as the expected loss allows, of the TRIED groups with
    most products; or as many as `given` says, by the group's name."""
    few, quick = spread(fit, GROUP_ROWS[0]), judge.on(GROUP_ROWS[1])
    tried: set[str] = set()
    chosen: dict[str, int] = {}
    there = groups(graph)
    while len(tried) < (TRIED if given is None else len(given)):
        group = next((each for each in there if each.name not in tried and (given is None or each.name in given)), None)
        if group is None:
            break
        tried.add(group.name)
        seen = moments(graph, [reader.inputs[0] for reader in group.readers], few) if group.readers else {}
        try:
            smaller, size = _left_out(graph, group, seen, judge, quick, loss, None if given is None else given[group.name])
        except GraphError:  # another attribute of an op says how long the axis is: it is no axis to be cut
            continue
        if smaller is not graph:
            left = {each.name: each.size for each in groups(smaller)}
            if given is None and any(left.get(name) != n for name, n in {**chosen, group.name: size}.items()):
                continue  # what was done could not be read off the graph, and so not be done again (decided.py)
            graph, chosen[group.name], there = smaller, size, groups(smaller)
    return graph


def _left_out(
    graph: Graph, group: Group, seen: Mapping[Node, Moments], judge: Judge, quick: Judge, loss: float, given: int | None
) -> tuple[Graph, int]:
    """The graph with as many entries of one group left out as the loss allows, or with `given` that stay, and how many do; itself where
    none may go."""
    if group.readers:
        order = by_worth(group, seen)
    else:  # its entries meet in sums and products only, as experts do under their gate: what each is worth, the scores say
        entries = np.arange(group.size)
        order = np.argsort([quick.loss(cut(graph, {group: np.delete(entries, i)}, seen)) for i in entries], kind="stable")

    def made(size: int) -> Graph:
        return cut(graph, {group: np.sort(order[-size:])}, seen)

    if given is not None:
        return made(given), given
    whole, sizes = macs(graph), [n for n in range(group.size - 1, 1, -1) if n % group.unit == 0]
    fits = []
    for size in [sizes[gone - 1] for gone in GONE if gone <= len(sizes)]:
        smaller = made(size)
        if macs(smaller) >= whole or quick.loss(smaller) > loss + NOTHING:
            break
        fits.append((smaller, size))
    return next((each for each in reversed(fits) if judge.loss(each[0]) <= loss + NOTHING), (graph, group.size))


def _layers_made(graph: Graph, fit: Rows, narrowest: int) -> tuple[list[Layer], list[str], Made]:
    """The layers of a graph, the name of each, and what makes the graph with some of them at other sizes."""
    found = layers(graph, narrowest)
    seen = moments(graph, [reader.node.inputs[0] for layer in found for reader in layer.readers], fit) if found else {}
    order = {layer: removal(layer, seen) for layer in found}

    def made(sizes: Sizes, refit: bool) -> Graph:
        kept = {found[i]: np.sort(order[found[i]][-size:]) for i, size in sizes.items()}
        return pruned(graph, kept, seen, fit if refit else None)

    return found, weight_names([layer.linears[0] for layer in found]), made


def layers(graph: Graph, narrowest: int = LEAST) -> list[Layer]:
    """The layers whose neurons reach nothing but linears, each neuron alone.

    Between may stand what `_each_alone` lists, and concatenations with other things. Where neurons of two linears meet, as experts under a
    gate do, or a layer and what it skips, they are pruned together. Left alone: a neuron that is an output or that meets anything else,
    and a linear with an init.
    """
    users, outputs = graph.users(), {value for _, value in graph.outputs}
    found: list[Layer] = []
    for node in graph.order:
        if _makes_neurons(node) and node.shape[-1] >= narrowest and not any(node in layer.linears for layer in found):
            layer = _layer(node, users, outputs)
            if layer is not None:
                found.append(layer)
    return found


def _layer(first: Node, users: Mapping[Node, Sequence[Node]], outputs: set[Node]) -> Layer | None:
    width = first.shape[-1]
    alone: dict[Node, None] = {}  # values (..., width) whose entry i depends on neuron i only
    joined: dict[Node, None] = {}  # concatenations of them with other things
    readers: list[Reader] = []
    waiting = [first]
    while waiting:
        value = waiting.pop()
        if value in alone:
            continue
        alone[value] = None
        if not _makes_neurons(value):
            if not _each_alone(value, width):
                return None
            waiting.extend(v for v in value.inputs if v.side != "constant" and v.shape[-1:] == (width,))
        for user in dict.fromkeys(users[value]):
            if is_plain(user) and user.inputs[0] is value and user.inputs.count(value) == 1:
                readers.append(Reader(user, 0))
            elif user.op is Op.CONCAT and user["axis"] == len(user.shape) - 1:
                spans = zip(user.inputs, bounds(user.inputs, user["axis"]))
                starts = [start for part, (start, _) in spans if part is value]
                if not all(is_plain(reader) and reader.inputs[0] is user and reader.inputs.count(user) == 1 for reader in users[user]):
                    return None
                joined[user] = None
                readers.extend(Reader(reader, start) for reader in users[user] for start in starts)
            else:
                waiting.append(user)
    if not readers or outputs & {*alone, *joined} or any(reader.node.inputs[1].shape[1] > WIDEST for reader in readers):
        return None
    return Layer(tuple(v for v in alone if _makes_neurons(v)), frozenset((*alone, *joined)), tuple(readers))


def _makes_neurons(node: Node) -> bool:
    return is_plain(node) and len(node.inputs) == 3


def _each_alone(node: Node, width: int) -> bool:
    """Whether entry i of `node`, (..., width), depends on entry i of its operands only, and on what is the same for all entries.

    1. Pointwise ops, of values (..., width), (..., 1) or ()    2. SUM, MEAN, MAX, MIN, PROD over other axes
    3. CONCAT, SLICE, TAKE, SOFTMAX along other axes            4. RESHAPE, EXPAND, TRANSPOSE that leave the last axis as it is
    """
    last = len(node.shape) - 1
    if node.shape[-1:] != (width,) or not node.inputs:
        return False
    if node.op in POINTWISE:
        return all(v.shape[-1:] in ((width,), (1,), ()) for v in node.inputs)
    if node.inputs[0].shape[-1:] != (width,):
        return False
    if node.op in REDUCE:
        return len(node.inputs[0].shape) - 1 not in node["axes"]
    if node.op in (Op.CONCAT, Op.SLICE, Op.TAKE, Op.SOFTMAX):
        return node["axis"] != last
    return node.op in (Op.RESHAPE, Op.EXPAND) or (node.op is Op.TRANSPOSE and node["perm"][-1] == last)


def removal(layer: Layer, seen: Mapping[Node, Moments]) -> np.ndarray:
    """(width,) the neurons in the order in which they are best removed, each when those before it are gone."""
    inverses, outgoing = [], []
    for reader in layer.readers:
        span = slice(reader.start, reader.start + layer.width)
        c = seen[reader.node.inputs[0]].covariance[span, span]
        w = constant(reader.node.inputs[1]).astype(np.float64)[:, span]
        whole = np.trace(w @ c @ w.T) or 1.0
        inverses.append(np.linalg.inv(c + max(RIDGE * np.trace(c) / len(c), 1e-30) * np.eye(len(c))))
        outgoing.append(w / whole**0.5)
    left = np.arange(layer.width)
    order: list[int] = []
    at_once = -(-layer.width // STEPS)
    while len(left) > 1:
        costs = sum((w**2).sum(axis=0) / np.diag(p) for w, p in zip(outgoing, inverses))
        gone = np.argsort(costs, kind="stable")[: min(at_once, len(left) - 1)]
        stay = np.setdiff1d(np.arange(len(left)), gone)
        for i, (w, p) in enumerate(zip(outgoing, inverses)):
            share = np.linalg.solve(p[np.ix_(gone, gone)], p[gone][:, stay])
            outgoing[i] = w[:, stay] - w[:, gone] @ share
            inverses[i] = p[np.ix_(stay, stay)] - p[np.ix_(stay, gone)] @ share
        order.extend(left[gone].tolist())
        left = left[stay]
    return np.array([*order, *left])


def pruned(graph: Graph, kept: Mapping[Layer, np.ndarray], seen: Mapping[Node, Moments], refit: Rows | None = None) -> Graph:
    """The graph in which of each of the layers only the neurons `kept` (ascending) remain, and the linears that read them are refitted.

    With the rows `refit`, so is every other linear behind them, and each to make up for what the others lose.
    """
    rows = {node: stay for layer, stay in kept.items() for node in layer.linears}
    columns: dict[Node, np.ndarray] = {}  # LINEAR -> which entries of its input remain
    between: dict[Node, tuple[int, np.ndarray]] = {}
    for layer, stay in kept.items():
        for reader in layer.readers:
            there = columns.setdefault(reader.node, np.ones(reader.node.inputs[1].shape[1], bool))
            there[reader.start : reader.start + layer.width] = np.isin(np.arange(layer.width), stay)
        between.update({node: (layer.width, stay) for node in layer.between if _each_alone(node, layer.width)})

    def change(node: Node, operands: tuple[Node, ...]) -> Node:
        if is_plain(node) and (node in columns or node in rows or operands != node.inputs):
            x, _, _, *init = operands
            w, b, name = constant(node.inputs[1]), constant(node.inputs[2]), weight_name(node)
            stay = np.flatnonzero(columns[node]) if node in columns else np.arange(w.shape[1])
            follows = followed(graph, node, operands, w[:, stay], refit) if refit is not None else None
            if follows is not None:
                w, b = follows[0]
            elif node in columns:
                w, b = refitted(w, b, w[:, stay], seen[node.inputs[0]], np.arange(w.shape[1]), stay)
            if node in rows:
                w, b = w[rows[node]], b[rows[node]]
            return Node(Op.LINEAR, (x, weight(name, w), weight(f"{name}.bias", b), *init))
        if node in between:
            width, stay = between[node]
            operands = tuple(_entries(v, stay, width) if v.side == "constant" else v for v in operands)
            if node.op in (Op.RESHAPE, Op.EXPAND):
                return Node(node.op, operands, shape=(*node.shape[:-1], len(stay)))
        return node if operands == node.inputs else node.with_inputs(operands)

    return graph.map(change)


def _entries(node: Node, stay: np.ndarray, width: int) -> Node:
    """A constant (..., width) at the neurons that stay; one that is the same for all neurons as it is."""
    if not node.shape or node.shape[-1] != width:
        return node
    return weight(node["weight"].name if node.op is Op.WEIGHT else "constant", constant(node)[..., stay], node.dtype)
