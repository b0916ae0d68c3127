"""Lookups end each on its own side and in its own table, and no table is copied."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from burnish.graph.node import Graph, Node, input_node, scalar, weight
from burnish.graph.ops import Op
from burnish.inputs import Input
from burnish.passes.embedding import embedding
from burnish.testing import assert_same_function, graphs, lookup, model_cases, op_cases, reshape, rows, table

SIDES = ["request", "candidate", "candidate", "request", "candidate"]
SIZES = (4, 7, 3, 5, 6)
OFFSETS = (0, 4, 11, 14, 19)
IDS = Input("ids", "int64", (5,), SIDES, SIZES)
CASES = op_cases() | model_cases()
T = table(25, 3, 1)


def embedded(node, *specs):
    before = Graph(specs or (IDS,), {"y": node})
    after = embedding(before)
    assert_same_function(before, after, rtol=0, atol=0)
    return after


def sides(graph, op=Op.LOOKUP):
    return [node.side for node in graph.order if node.op is op]


def test_request_ids_and_candidate_ids_of_one_table_are_looked_up_apart():
    ids = input_node(IDS)
    unknown = Input("ids", "int64", (5,), SIDES)
    for node, spec in ((lookup(table(7, 3, 1), ids), IDS), (lookup(T, input_node(unknown)), unknown)):
        after = embedding(Graph([spec], {"y": node}))
        assert set(sides(after)) == {"request", "candidate"}
        assert len({v.inputs[0] for v in after.order if v.op is Op.LOOKUP}) == 1


def test_the_lookup_is_found_through_casts_and_offsets():
    spec = Input("columns", "float32", (5,), SIDES, SIZES)
    ids = Node(Op.ADD, (Node(Op.CAST, (input_node(spec),), dtype="int64"), weight("o", np.array(OFFSETS))))
    assert set(sides(embedded(lookup(T, ids), spec))) == {"request", "candidate"}


def test_a_bag_over_histories_of_both_sides_is_split_along_its_fields_not_along_itself():
    spec = Input("ids", "int64", (4, 3), ["request", "candidate", "request", "candidate"], 6)
    t = table(6, 2, 1)
    assert set(sides(embedded(Node(Op.BAG, (t, input_node(spec)), mode="mean", ignore=0), spec), Op.BAG)) == {"request", "candidate"}
    assert sides(
        embedded(
            Node(Op.BAG, (t, input_node(IDS.__class__("ids", "int64", (5,), SIDES, 6))), mode="max"), Input("ids", "int64", (5,), SIDES, 6)
        ),
        Op.BAG,
    ) == ["candidate"]


def test_a_bag_of_one_is_a_lookup_unless_an_id_is_ignored():
    spec = Input("id", "int64", (1,), cardinality=6)
    t, ids = table(6, 2, 1), input_node(spec)
    assert embedded(Node(Op.BAG, (t, ids), mode="mean"), spec).outputs == (("y", lookup(t, reshape(ids))),)
    weighted = Node(Op.BAG, (t, ids, Node(Op.CAST, (ids,), dtype="float32")), mode="sum")
    assert Op.BAG not in {v.op for v in embedded(weighted, spec).order}
    ignoring = Node(Op.BAG, (t, ids), mode="sum", ignore=0)
    assert embedded(ignoring, spec).outputs == (("y", ignoring),)


def test_one_table_of_many_columns_becomes_a_view_a_column():
    node = lookup(T, Node(Op.ADD, (input_node(IDS), weight("offsets", np.array(OFFSETS)))))
    after = embedded(node)
    tables = [v.inputs[0]["weight"] for v in after.order if v.op is Op.LOOKUP]
    assert sorted(t.name for t in tables) == sorted(f"table1[{a}:{a + n}]" for a, n in zip(OFFSETS, SIZES))
    assert all(np.shares_memory(t.array, T["weight"].array) for t in tables)
    assert not any(v.op is Op.ADD for v in after.order)


@pytest.mark.parametrize("why", ["cardinality unknown", "slices overlap", "table read elsewhere", "table too short"])
def test_a_shared_table_stays_whole_when(why):
    spec = Input("ids", "int64", (5,), SIDES, None if why == "cardinality unknown" else SIZES)
    offsets = {"slices overlap": (0, 3, 11, 14, 19), "table too short": (0, 4, 11, 14, 20)}.get(why, OFFSETS)
    outputs = {"y": lookup(T, Node(Op.ADD, (input_node(spec), weight("offsets", np.array(offsets)))))}
    if why == "table read elsewhere":
        outputs["z"] = lookup(T, Node(Op.MINIMUM, (input_node(spec), scalar(3, "int64"))))
    after = embedding(Graph([spec], outputs))
    assert {v for v in after.order if v.op is Op.WEIGHT and v.shape[1:] == (3,)} == {T}
    assert set(sides(after)) == {"request", "candidate"}


@pytest.mark.parametrize("name", CASES)
def test_embedding_keeps_every_bit_that_tidy_keeps(name):
    assert_same_function(CASES[name], embedding(CASES[name]))


@settings(derandomize=True, deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_embedding_keeps_what_random_graphs_compute(graph):
    assert_same_function(graph, embedding(graph), n=3, atol=1e-4)


def test_rows_stay_within_the_cardinalities_the_views_rely_on():
    ids = rows(Graph([IDS], {"y": input_node(IDS)}), 200)["ids"]
    assert (ids.max(axis=0) < SIZES).all() and (ids >= 0).all()
