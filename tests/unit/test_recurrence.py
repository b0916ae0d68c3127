"""Recurrences written out step by step become one GRU, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest

from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, scalar, weight
from burnish.graph.ops import Op
from burnish.graph.verify import verify
from burnish.inputs import Input
from burnish.passes.recurrence import tidy_recurrences
from burnish.testing.builders import Weights, rows

STEPS, WIDTH, HIDDEN = 5, 3, 4
INPUTS = (Input("x", "float32", (STEPS, WIDTH)), Input("a", "float32", (STEPS,)))


def part(x: Node, start: int, stop: int) -> Node:
    return Node(Op.SLICE, (x,), axis=0, start=start, stop=stop)


def cell(x: Node, h: Node, w: Weights, score: Node | None, how: str, keeps: bool = False) -> Node:
    """One step, its six products in one linear of x and one of h. `keeps`: the update gate weighs the old state, as in torch's GRU."""
    made = Weights(w.random.bit_generator.seed_seq.entropy)  # the same weights in every step
    own = Node(Op.LINEAR, (x, made.normal(3 * HIDDEN, WIDTH), made.normal(3 * HIDDEN)))
    old = Node(Op.LINEAR, (h, made.normal(3 * HIDDEN, HIDDEN), made.normal(3 * HIDDEN)))
    gates = [(part(own, i * HIDDEN, (i + 1) * HIDDEN), part(old, i * HIDDEN, (i + 1) * HIDDEN)) for i in range(3)]
    reset, update = (Node(Op.SIGMOID, (Node(Op.ADD, pair),)) for pair in gates[:2])
    new = Node(Op.TANH, (Node(Op.ADD, (gates[2][0], Node(Op.MUL, (reset, gates[2][1])))),))
    if score is not None:
        update = Node(Op.MUL, (score, update)) if how == "scale" else score
    rest = Node(Op.SUB, (scalar(1.0), update))
    into, stays = (rest, update) if keeps else (update, rest)
    return Node(Op.ADD, (Node(Op.MUL, (stays, h)), Node(Op.MUL, (into, new))))


def unrolled(how: str, *, keeps: bool = False, last: bool = False) -> Graph:
    x, a = (input_node(spec) for spec in INPUTS)
    h: Node = weight("h0", np.zeros(HIDDEN, np.float32))
    states = []
    for t in range(STEPS):
        step = Node(Op.RESHAPE, (part(x, t, t + 1),), shape=(WIDTH,))
        h = cell(step, h, Weights(3), part(a, t, t + 1) if how != "none" else None, how, keeps)
        states.append(Node(Op.RESHAPE, (h,), shape=(1, HIDDEN)))
    used = INPUTS if how != "none" else INPUTS[:1]
    return Graph(used, {"y": h if last else Node(Op.CONCAT, states, axis=0)})


def grus(graph: Graph) -> list[Node]:
    return [node for node in graph.order if node.op is Op.GRU]


@pytest.mark.parametrize("how", ["none", "scale", "replace"])
@pytest.mark.parametrize("last", [False, True], ids=["all states", "the last state"])
def test_a_cell_of_ones_own_becomes_one_gru(how, last):
    graph = unrolled(how, last=last)
    rolled = verify(tidy_recurrences(graph))
    assert [node["scores"] for node in grus(rolled)] == [None if how == "none" else how]
    assert not any(node.op is Op.TANH for node in rolled.order)
    table = rows(graph, 9, seed=1)
    np.testing.assert_allclose(interpret(rolled, table)["y"], interpret(graph, table)["y"], rtol=1e-5, atol=1e-6)


def test_a_gate_that_weighs_the_old_state_is_rolled_too():
    graph = unrolled("none", keeps=True)
    rolled = tidy_recurrences(graph)
    assert len(grus(rolled)) == 1
    table = rows(graph, 9, seed=2)
    np.testing.assert_allclose(interpret(rolled, table)["y"], interpret(graph, table)["y"], rtol=1e-5, atol=1e-6)


def test_what_is_rolled_reads_its_steps_as_they_lie():
    rolled = tidy_recurrences(unrolled("scale"))
    (gru,) = grus(rolled)
    assert gru.inputs[0] is input_node(INPUTS[0]) and gru.inputs[6] is input_node(INPUTS[1])
    assert rolled.outputs[0][1] is gru


def test_steps_of_different_weights_stay_as_they_are():
    x = input_node(INPUTS[0])
    h: Node = weight("h0", np.zeros(HIDDEN, np.float32))
    for t in range(STEPS):
        h = cell(Node(Op.RESHAPE, (part(x, t, t + 1),), shape=(WIDTH,)), h, Weights(t), None, "none")
    assert not grus(tidy_recurrences(Graph(INPUTS[:1], {"y": h})))


def test_a_step_whose_input_is_made_of_the_state_before_stays_as_it_is():
    """A decoder: what it reads at a step depends on where it is, so there are no steps to read beforehand."""
    x = input_node(INPUTS[0])
    w = Weights(9)
    back = w.normal(WIDTH, HIDDEN)
    h: Node = weight("h0", np.zeros(HIDDEN, np.float32))
    for t in range(STEPS):
        step = Node(Op.RESHAPE, (part(x, t, t + 1),), shape=(WIDTH,))
        h = cell(Node(Op.MUL, (step, Node(Op.LINEAR, (h, back, weight("0", np.zeros(WIDTH, np.float32)))))), h, Weights(3), None, "none")
    assert not grus(tidy_recurrences(Graph(INPUTS[:1], {"y": h})))
