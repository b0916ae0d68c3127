"""Heads, experts, columns of tables and features are found wherever they are cut together, and go exactly where they truly do nothing."""

import numpy as np
import pytest

from burnish import testing
from burnish.decided import filled
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, weight
from burnish.graph.ops import Op
from burnish.graph.verify import verify
from burnish.inputs import Input
from burnish.passes.coupled import cut, groups
from burnish.passes.evidence import macs, moments
from burnish.passes.prune import prune
from burnish.passes.tidy import tidy
from burnish.recipe import Prune

LENGTH, HEADS, EACH = 5, 4, 8
WIDE = HEADS * EACH


def linear(x: Node, w: np.ndarray, name: str) -> Node:
    return Node(Op.LINEAR, (x, weight(name, w.astype(np.float32)), weight(f"{name}.b", np.zeros(len(w), np.float32))))


def attention(packed: bool, dead: int | None = None) -> Graph:
    """Self-attention of four heads over a sequence, q, k and v of three linears or `packed` into one; head `dead` has no values."""
    rng = np.random.default_rng(0)
    x = Input("x", "float32", (LENGTH, 12))
    w = [rng.normal(size=(WIDE, 12)) / 3 for _ in "qkv"]
    if dead is not None:
        w[2][dead * EACH : (dead + 1) * EACH] = 0
    if packed:
        whole = linear(input_node(x), np.concatenate(w), "qkv")
        parts = [Node(Op.SLICE, (whole,), axis=1, start=i * WIDE, stop=(i + 1) * WIDE) for i in range(3)]
    else:
        parts = [linear(input_node(x), each, name) for each, name in zip(w, "qkv")]
    q, k, v = (Node(Op.TRANSPOSE, (testing.reshape(part, LENGTH, HEADS, EACH),), perm=(1, 0, 2)) for part in parts)
    met = Node(Op.SOFTMAX, (Node(Op.MATMUL, (q, Node(Op.TRANSPOSE, (k,), perm=(0, 2, 1)))),), axis=2)
    mixed = testing.reshape(Node(Op.TRANSPOSE, (Node(Op.MATMUL, (met, v)),), perm=(1, 0, 2)), LENGTH, WIDE)
    out = Node(Op.SUM, (linear(mixed, rng.normal(size=(9, WIDE)), "out"),), axes=(0,))
    return Graph([x], {"y": testing.sigmoid(linear(out, rng.normal(size=(1, 9)), "head"))})


def shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {node.inputs[1]["weight"].name: node.inputs[1].shape for node in graph.order if node.op is Op.LINEAR}


@pytest.mark.parametrize("packed", [False, True], ids=["three linears", "packed"])
def test_a_head_that_does_nothing_goes_from_queries_keys_values_and_what_reads_them(packed):
    graph, rng = attention(packed, dead=2), np.random.default_rng(1)
    rows = {"x": rng.normal(size=(400, LENGTH, 12)).astype(np.float32)}
    found = verify(prune(graph, rows, loss=0))
    left = shapes(found)
    assert left["out"] == (9, WIDE - EACH)
    assert left["qkv"] == (3 * (WIDE - EACH), 12) if packed else left["q"] == left["k"] == left["v"] == (WIDE - EACH, 12)
    np.testing.assert_allclose(interpret(found, rows)["y"], interpret(graph, rows)["y"], atol=1e-4)
    alive = attention(packed)
    assert shapes(prune(alive, rows, loss=0))["out"] == (9, WIDE)


def test_an_expert_that_is_never_chosen_goes_with_its_place_at_the_gates():
    graph = testing.mmoe(ids=4, experts=4, expert=(20, 20), tower=(8,))
    gates = [node for node in graph.order if node.op is Op.LINEAR and node.shape == (4,)]
    never = {node.inputs[2]: weight("never", np.array([0, -1e9, 0, 0], np.float32)) for node in gates}
    graph = tidy(graph.map(lambda node, operands: never.get(node) or node.with_inputs(operands)))
    rows = testing.rows(graph, 400, seed=1)
    found = verify(prune(graph, rows, loss=0))
    assert [node.shape for node in found.order if node.op is Op.SOFTMAX] == [(3,), (3,)]
    assert sum(shape[0] == 20 for shape in (node.inputs[1].shape for node in found.order if node.op is Op.LINEAR)) == 6
    for name, value in interpret(graph, rows).items():
        np.testing.assert_allclose(interpret(found, rows)[name], value, atol=1e-4)


def fields(tables: list[np.ndarray]) -> Graph:
    """A factorization machine and a linear over the rows of one merged table, as `Embeddings` leaves them."""
    rng = np.random.default_rng(0)
    count, (rows, width) = len(tables), tables[0].shape
    ids = Input("ids", "int64", (count,), cardinality=rows)
    start = weight("offsets", np.arange(count) * rows)
    looked = Node(Op.LOOKUP, (weight("table", np.concatenate(tables).astype(np.float32)), Node(Op.ADD, (input_node(ids), start))))
    total = Node(Op.SUM, (looked,), axes=(0,))
    pairs = Node(Op.SUB, (Node(Op.MUL, (total, total)), Node(Op.SUM, (Node(Op.MUL, (looked, looked)),), axes=(0,))))
    flat = testing.reshape(looked, count * width)
    deep = linear(Node(Op.RELU, (linear(flat, rng.normal(size=(24, count * width)), "first"),)), rng.normal(size=(1, 24)), "second")
    return Graph([ids], {"y": testing.sigmoid(Node(Op.ADD, (testing.reshape(deep), Node(Op.SUM, (pairs,), axes=(0,)))))})


def test_columns_of_a_table_that_hold_nothing_go_from_all_that_read_it():
    tables = [np.random.default_rng(i).normal(size=(50, 8)) / 4 for i in range(3)]
    for table in tables:
        table[:, [1, 3, 6, 7]] = 0
    graph = fields(tables)
    rows = {"ids": np.random.default_rng(9).integers(0, 50, (400, 3))}
    found = verify(prune(graph, rows, loss=0))
    assert shapes(found)["first"] == (24, 12) and found.weights["table"].shape == (150, 4)
    np.testing.assert_allclose(interpret(found, rows)["y"], interpret(graph, rows)["y"], atol=1e-5)


def test_a_feature_that_says_nothing_is_no_longer_looked_up():
    tables = [np.random.default_rng(i).normal(size=(50, 8)) / 4 for i in range(3)]
    tables[1][:] = 0
    graph = fields(tables)
    rows = {"ids": np.random.default_rng(9).integers(0, 50, (400, 3))}
    found = verify(prune(graph, rows, loss=0))
    assert shapes(found)["first"] == (24, 16) and found.inputs == graph.inputs
    assert {node.shape for node in found.order if node.op is Op.LOOKUP} == {(2, 8)}
    np.testing.assert_allclose(interpret(found, rows)["y"], interpret(graph, rows)["y"], atol=1e-5)


def test_what_was_decided_of_groups_is_kept_when_it_is_given_again():
    tables = [np.random.default_rng(i).normal(size=(50, 8)) / 4 for i in range(3)]
    tables[1][:, :4] = tables[0][:, :4] = tables[2][:, :4] = 0
    graph = fields(tables)
    rows = {"ids": np.random.default_rng(9).integers(0, 50, (400, 3))}
    once = prune(graph, rows, loss=0)
    step = filled(Prune(loss=0), graph, once)
    assert dict(step.widths)["table width"] == 4
    again = prune(graph, rows, widths=step.widths)
    assert shapes(again) == shapes(once) and again.weights["table"].shape == once.weights["table"].shape


@pytest.mark.parametrize("name", testing.MODELS)
def test_every_group_of_every_ranker_can_be_cut(name):
    graph = tidy(
        testing.MODELS[name](**{"dcn_v2": {"ids": 4, "deep": (32,)}, "dlrm": {"ids": 3, "bottom": (32,), "top": (32,)}}.get(name, {}))
    )
    rows = testing.rows(graph, 80, seed=1)
    found = groups(graph)
    assert found
    seen = moments(graph, [reader.inputs[0] for group in found for reader in group.readers], rows)
    for group in found[:8]:
        smaller = verify(cut(graph, {group: np.arange(group.size - 1)}, seen, rows))
        assert macs(smaller) <= macs(graph) and smaller.inputs == graph.inputs
        for output, value in interpret(graph, rows).items():
            assert interpret(smaller, rows)[output].shape == value.shape


def test_labels_end_where_an_op_cannot_be_followed():
    """An axis that is sorted, an output, and a table that something reads otherwise than by row belong to no group."""
    x = Input("x", "float32", (4, 6))
    assert groups(Graph([x], {"y": testing.reshape(input_node(x), 2, 12)})) == []
    ids = Input("ids", "int64", (2,), cardinality=9)
    table = weight("t", np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32))
    looked = Node(Op.LOOKUP, (table, input_node(ids)))
    tied = Node(Op.LINEAR, (Node(Op.SUM, (looked,), axes=(0,)), table, weight("b", np.zeros(9, np.float32))))
    assert not any("width" in group.name for group in groups(Graph([ids], {"y": tied})))


def test_a_constant_stack_that_is_multiplied_is_cut_with_its_experts():
    """Heads as a product with constants (experts, in, out), as low-rank mixtures have them: the stack's own axis is cut too."""
    rng = np.random.default_rng(0)
    x = Input("x", "float32", (12,))
    stacked = Node(Op.MATMUL, (testing.reshape(input_node(x), 1, 1, 12), weight("stack", rng.normal(size=(4, 12, 7)).astype(np.float32))))
    mixed = Node(Op.SUM, (Node(Op.RELU, (testing.reshape(stacked, 4, 7),)),), axes=(0,))
    graph = Graph([x], {"y": testing.sigmoid(linear(mixed, rng.normal(size=(1, 7)), "head"))})
    rows = {"x": rng.normal(size=(80, 12)).astype(np.float32)}
    (group,) = [group for group in groups(graph) if group.size == 4]
    smaller = verify(cut(graph, {group: np.arange(3)}, {}))
    assert {node.shape for node in smaller.order if node.op is Op.MATMUL} == {(3, 1, 7)}
    without = graph.map(
        lambda node, operands: (
            weight("stack", np.concatenate([node["weight"].array[:3], np.zeros((1, 12, 7), np.float32)]))
            if node.op is Op.WEIGHT and node["weight"].name == "stack"
            else node.with_inputs(operands)
            if operands
            else node
        )
    )
    np.testing.assert_allclose(interpret(smaller, rows)["y"], interpret(without, rows)["y"], rtol=1e-5)
