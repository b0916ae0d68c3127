"""tidy, and recurrences that were written out step by step as one GRU: cells of a user's own, which a trace unrolls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from burnish.graph.interpret import constant
from burnish.graph.node import Graph, Node, weight
from burnish.graph.ops import Op
from burnish.passes.segments import piece
from burnish.passes.tidy import tidy

Scores = Literal["scale", "replace"] | None


def tidy_recurrences(graph: Graph) -> Graph:
    """`tidy`; then each run of at least two steps of one GRU cell becomes a GRU over all steps, which sums in another order.

    A step is h' = (1 - u) h + u tanh(x W + r (h V)) or h' = (1 - z) tanh(...) + z h, with gates r and z sigmoids of sums of linears of x
    and h, and u a sigmoid too, or a score of the step times one ("scale": DIEN's AUGRU), or the score itself ("replace": AGRU).
    """
    graph = tidy(graph)
    steps = {step.state: step for node in graph.order for step in _step(node)}
    for chain in _chains(steps):
        states = {step.state for step in chain}
        fed = [v for step in chain for v in (step.x, step.score) if v is not None]
        if len(chain) > 1 and not _above(fed, states):
            graph = tidy(_redirected(graph, _rolled(chain)), side_by_side)
            return tidy_recurrences(graph)  # another chain may read this one's states
    return graph


def side_by_side(node: Node) -> Node | None:
    """CONCAT(RESHAPE(x[0:4]), RESHAPE(x[4:8]))  ->  RESHAPE(x[0:8]): pieces of a flat value that lie as they are put together."""
    if node.op is not Op.CONCAT or node["axis"] != 0 or len(node.shape) < 2:
        return None
    pieces = [part.inputs[0] for part in node.inputs if part.op is Op.RESHAPE]
    flat = [p for p in pieces if p.op is Op.SLICE and len(p.shape) == 1]
    if len(flat) < len(node.inputs) or any(a.inputs != b.inputs or a["stop"] != b["start"] for a, b in pairwise(flat)):
        return None
    return Node(Op.RESHAPE, (piece(flat[0].inputs[0], 0, flat[0]["start"], flat[-1]["stop"]),), shape=node.shape)


@dataclass(frozen=True, eq=False)
class _Step:
    state: Node
    before: Node
    x: Node
    score: Node | None
    how: Scores
    weights: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # w_ih, w_hh, b_ih, b_hh as Op.GRU takes them

    begins: bool  # the state before is a constant that was folded into the biases, and w_hh is not known

    def follows(self, other: _Step) -> bool:
        if self.before is not other.state or self.how != other.how or self.x.shape != other.x.shape or self.begins:
            return False
        if not other.begins:
            return all(np.array_equal(a, b) for a, b in zip(self.weights, other.weights))
        w_ih, w_hh, b_ih, b_hh = self.weights
        hidden = w_hh.shape[1]
        folded = w_hh @ np.broadcast_to(constant(other.before), (hidden,)) + b_hh
        first = (w_ih, np.concatenate([b_ih[: 2 * hidden] + folded[: 2 * hidden], b_ih[2 * hidden :]]), folded[2 * hidden :])
        found = (other.weights[0], other.weights[2], other.weights[3][2 * hidden :])
        return all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(first, found))


def _either(node: Node, op: Op) -> Iterator[tuple[Node, Node]]:
    """The operands of a commutative op, both ways."""
    if node.op is op:
        a, b = node.inputs
        yield a, b
        yield b, a


def _step(node: Node) -> Iterator[_Step]:
    """The step that `node` is the state behind, if it is one."""
    if len(node.shape) != 1 or node.dtype != "float32":
        return
    for kept, added in _either(node, Op.ADD):
        for gate, new in _either(added, Op.MUL):
            if new.op is not Op.TANH:
                continue
            for rest, before in _either(kept, Op.MUL):
                if _is_rest_of(rest, gate):  # (1 - u) h + u n
                    found = _cell(node, before, gate, new, flipped=False)
                elif _is_rest_of(gate, rest):  # z h + (1 - z) n
                    found = _cell(node, before, rest, new, flipped=True)
                else:
                    continue
                if found is not None:
                    yield found
                    return


def _is_rest_of(rest: Node, gate: Node) -> bool:
    """Whether `rest` is 1 - gate."""
    return (
        rest.op is Op.SUB and rest.inputs[1] is gate and rest.inputs[0].side == "constant" and bool(np.all(constant(rest.inputs[0]) == 1))
    )


def _cell(state: Node, before: Node, gate: Node, new: Node, flipped: bool) -> _Step | None:
    """`gate` weighs the new state, or with `flipped` the old one."""
    hidden = state.shape[0]
    score: Node | None = None
    how: Scores = None
    update: Node | None = gate
    for a, b in _either(gate, Op.MUL):
        if a.shape in ((), (1,)) and b.op is Op.SIGMOID:
            score, how, update = a, "scale", b
    if update is gate and gate.shape in ((), (1,)):
        score, how, update = gate, "replace", None
    if score is not None and flipped:
        return None
    product = next((t for t in _terms(new.inputs[0]) if t.op is Op.MUL and any(r.op is Op.SIGMOID for r in t.inputs)), None)
    if product is None or (update is not None and update.op is not Op.SIGMOID):
        return None
    for reset, inner in _either(product, Op.MUL):
        if reset.op is not Op.SIGMOID:
            continue
        sums = [_Sum(hidden), _Sum(hidden), _Sum(hidden), _Sum(hidden)]
        parts = (reset.inputs[0], update.inputs[0] if update is not None else None, new.inputs[0], inner)
        if not all(p is None or s.take(p, product) for s, p in zip(sums, parts)):
            continue
        sums_r, sums_z, sums_n, sums_h = sums
        if score is None and not flipped:  # GRU's own gate weighs the old state: sigmoid(-a) = 1 - sigmoid(a)
            sums_z.negate()
        return _put_together(state, before, score, how, sums_r, sums_z, sums_n, sums_h)
    return None


def _terms(node: Node) -> list[Node]:
    return [t for operand in node.inputs for t in _terms(operand)] if node.op is Op.ADD else [node]


class _Sum:
    """A sum of linears of a few values: for each value its weights (H, K), and a bias (H,)."""

    def __init__(self, hidden: int) -> None:
        self.weights: dict[Node, np.ndarray] = {}
        self.bias = np.zeros(hidden, np.float32)

    def take(self, node: Node, but: Node) -> bool:
        """Whether all terms of `node` but `but` are linears or constants; they are summed up here."""
        for term in _terms(node):
            if term is but:
                continue
            start, stop, value = 0, self.bias.shape[0], term
            if term.op is Op.SLICE and term.inputs[0].op is Op.LINEAR and len(term.shape) == 1:
                start, stop, value = term["start"], term["stop"], term.inputs[0]
            if value.op is Op.LINEAR and len(value.inputs) == 3 and value["compute"] == "float32" and len(value.shape) == 1:
                x, w, b = value.inputs
                own = constant(w)[start:stop]
                self.weights[x] = self.weights[x] + own if x in self.weights else own
                self.bias = self.bias + constant(b)[start:stop]
            elif value.side == "constant" and value.shape in ((), (1,), self.bias.shape):
                self.bias = self.bias + constant(value)
            else:
                return False
        return self.bias.shape[0] == stop - start if node.shape else False

    def negate(self) -> None:
        self.weights = {x: -w for x, w in self.weights.items()}
        self.bias = -self.bias

    def of(self, x: Node, width: int) -> np.ndarray:
        return self.weights.get(x, np.zeros((self.bias.shape[0], width), np.float32))


def _put_together(state: Node, before: Node, score: Node | None, how: Scores, *sums: _Sum) -> _Step | None:
    """One step of Op.GRU, when its gates read one x and the state before."""
    reset, update, new, inner = sums
    hidden = state.shape[0]
    read = {value for s in sums for value in s.weights}
    old = [value for value in read if _same_state(value, before, hidden)]
    xs = [value for value in read if value not in old]
    begins = not old and before.side == "constant"
    if len(old) != (0 if begins else 1) or len(xs) != 1 or xs[0] in inner.weights or any(h in new.weights for h in old):
        return None
    (x,), h = xs, before if begins else old[0]
    w_ih = np.concatenate([s.of(x, x.shape[0]) for s in (reset, update, new)])
    w_hh = np.concatenate([s.of(h, hidden) for s in (reset, update, inner)])
    b_ih = np.concatenate([reset.bias, update.bias, new.bias])
    b_hh = np.concatenate([np.zeros(2 * hidden, np.float32), inner.bias])
    return _Step(state, h, x, score, how, (w_ih, w_hh, b_ih, b_hh), begins)


def _same_state(value: Node, before: Node, hidden: int) -> bool:
    """Whether a linear's operand is the state that is kept: the same node, or the same constant before it was broadcast."""
    if value is before:
        return True
    if value.side != "constant" or before.side != "constant":
        return False
    return bool(np.array_equal(np.broadcast_to(constant(value), (hidden,)), np.broadcast_to(constant(before), (hidden,))))


def _chains(steps: dict[Node, _Step]) -> list[list[_Step]]:
    """Runs of steps, each of which reads the state that the one before it left, the longest first."""
    next_of: dict[Node, list[_Step]] = {}
    for step in steps.values():
        previous = steps.get(step.before)
        if previous is not None and step.follows(previous):
            next_of.setdefault(previous.state, []).append(step)
    later = {step.state for found in next_of.values() for step in found}
    chains = []
    for step in steps.values():
        if step.state in later:
            continue
        chain = [step]
        while len(found := next_of.get(chain[-1].state, [])) == 1:
            chain.append(found[0])
        chains.append(chain)
    return sorted(chains, key=len, reverse=True)


def _above(values: list[Node], wanted: set[Node]) -> bool:
    """Whether any of `wanted` is computed on the way to `values`."""
    seen, stack = set(values), list(values)
    while stack:
        node = stack.pop()
        if node in wanted:
            return True
        for operand in node.inputs:
            if operand not in seen:
                seen.add(operand)
                stack.append(operand)
    return False


def _rolled(chain: list[_Step]) -> dict[Node, Node]:
    """Each state of the chain as an entry of one GRU."""
    first, steps, hidden = chain[0], len(chain), chain[0].state.shape[0]
    x = Node(Op.CONCAT, [Node(Op.RESHAPE, (s.x,), shape=(1, s.x.shape[0])) for s in chain], axis=0)
    begin = first.before
    if begin.side == "constant":
        begin = weight("first state", np.broadcast_to(constant(begin), (hidden,)).astype(np.float32))
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    operands = [x, begin, *(weight(f"rolled {name}", array.astype(np.float32)) for name, array in zip(names, chain[-1].weights))]
    if first.how is not None:
        scores = [Node(Op.RESHAPE, (s.score,), shape=(1,)) for s in chain if s.score is not None]
        operands.append(Node(Op.CONCAT, scores, axis=0))
    gru = Node(Op.GRU, operands, scores=first.how)
    assert gru.shape == (steps, hidden)
    return {s.state: Node(Op.RESHAPE, (Node(Op.SLICE, (gru,), axis=0, start=t, stop=t + 1),), shape=(hidden,)) for t, s in enumerate(chain)}


def _redirected(graph: Graph, instead: dict[Node, Node]) -> Graph:
    """The graph with every value of `instead` replaced, also among the operands of what replaces it."""
    done: dict[Node, Node] = {}
    for _, root in graph.outputs:
        stack = [root]
        while stack:
            node = stack[-1]
            source = instead.get(node, node)
            waiting = [operand for operand in source.inputs if operand not in done] if node not in done else []
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            if node not in done:
                done[node] = source.with_inputs(done[operand] for operand in source.inputs)
    return Graph(graph.inputs, {name: done[node] for name, node in graph.outputs})
