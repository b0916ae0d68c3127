"""Printing a graph, and what it costs: multiply-accumulates, bytes of tables and weights, per side."""

from __future__ import annotations

import json

import numpy as np

from burnish.graph.node import Graph, Node, input_node, scalar, weight
from burnish.graph.ops import Op
from burnish.graph.show import cost, facts, show, summary
from burnish.inputs import Input


def ranker() -> Graph:
    """Two ids of the request and one of the candidate through one table, a linear each, and their sum."""
    spec = Input("ids", "int64", (3,), ["request", "request", "candidate"], 100)
    order = input_node(spec)
    request, candidate = order.inputs[0].inputs
    table = weight("table", np.zeros((100, 8), np.float32))
    wide = weight("wide", np.zeros((4, 16), np.float32))
    narrow = weight("narrow", np.zeros((4, 8), np.float32))
    bias = weight("bias", np.ones(4, np.float32))
    r = Node(Op.RESHAPE, (Node(Op.LOOKUP, (table, request)),), shape=(16,))
    c = Node(Op.RESHAPE, (Node(Op.LOOKUP, (table, candidate)),), shape=(8,))
    hidden = Node(Op.LINEAR, (c, narrow, bias, Node(Op.LINEAR, (r, wide, bias))))
    return Graph([spec], {"score": Node(Op.SIGMOID, (Node(Op.SUM, (hidden,), axes=(0,)),))})


def test_macs_and_table_rows_are_counted_for_each_side():
    c = cost(ranker())
    assert (c.request.macs, c.candidate.macs, c.macs) == (4 * 16, 4 * 8, 96)
    assert (c.request.row_bytes, c.candidate.row_bytes) == (2 * 8 * 4, 8 * 4)
    assert c.table_bytes == 100 * 8 * 4
    assert c.weight_bytes == (4 * 16 + 4 * 8 + 4) * 4


def test_rows_of_packed_tables_count_as_they_are_stored():
    ids = input_node(Input("ids", "int64", (5,), cardinality=10))
    int8 = Node(Op.DEQUANTIZE, (weight("t", np.zeros((10, 8), np.int8)), weight("s", np.ones((10, 1), np.float32))))
    bf16 = Node(Op.CAST, (weight("b", np.zeros((10, 8), np.uint16), "bfloat16"),), dtype="float32")
    for table, row in ((int8, 8 + 4), (bf16, 16)):
        graph = Graph([Input("ids", "int64", (5,), cardinality=10)], {"e": Node(Op.LOOKUP, (table, ids))})
        assert cost(graph).row_bytes == 5 * row


def test_a_quantized_linear_and_a_product_in_each_row_count_their_macs():
    x = input_node(Input("x", "float32", (6, 8)))
    q = Node(Op.QUANTIZE, (x, scalar(1.0)), zero_point=128)
    w = weight("w", np.zeros((3, 8), np.int8))
    linear = Node(Op.QLINEAR, (q, w, weight("s", np.ones(3, np.float32)), weight("b", np.ones(3, np.float32))), zero_point=128)
    dots = Node(Op.MATMUL, (x, Node(Op.TRANSPOSE, (x,), perm=(1, 0))))
    c = cost(Graph([Input("x", "float32", (6, 8))], {"a": linear, "b": dots}))
    assert c.macs == 6 * 3 * 8 + 6 * 6 * 8
    assert [d.node.op for d in c.dominant] == [Op.MATMUL, Op.QLINEAR]


def test_constants_cost_nothing_at_scoring_time():
    x = input_node(Input("x", "float32", (4,)))
    folded = Node(Op.EXP, (Node(Op.ADD, (weight("a", np.zeros(4, np.float32)), scalar(1.0))),))
    c = cost(Graph([Input("x", "float32", (4,))], {"y": Node(Op.MUL, (x, folded))}))
    assert (c.macs, c.flops) == (0, 4)


def test_a_graph_prints_one_line_a_node():
    assert show(ranker()).splitlines() == [
        "input ids: int64 (3,) 2 request + 1 candidate columns",
        "%0 = INPUT(ids) int64 (1,) candidate",
        "%1 = LOOKUP(table, %0) float32 (1, 8) candidate",
        "%2 = RESHAPE(%1, shape=(8,)) float32 (8,) candidate",
        "%3 = INPUT(ids) int64 (2,) request",
        "%4 = LOOKUP(table, %3) float32 (2, 8) request",
        "%5 = RESHAPE(%4, shape=(16,)) float32 (16,) request",
        "%6 = LINEAR(%5, wide, bias, compute=float32) float32 (4,) request  64 MAC",
        "%7 = LINEAR(%2, narrow, bias, %6, compute=float32) float32 (4,) candidate  32 MAC",
        "%8 = SUM(%7, axes=(0,), keepdims=False) float32 () candidate",
        "%9 = SIGMOID(%8) float32 () candidate",
        "output score = %9",
    ]


def test_the_summary_names_what_dominates_and_the_floor():
    text = summary(ranker(), candidates=1000)
    assert "per request              64 MAC" in text
    assert "per candidate            32 MAC" in text
    assert "LINEAR (4,) request  wide" in text
    assert "1000 candidates: 0.3 µs of products at 100 GMAC/s, 3.2 µs of table rows at 10 GB/s. Table rows decide." in text
    assert "Without request factoring the products take 1.0 µs." in text


def test_the_facts_are_json_and_leave_constants_out():
    told = json.loads(json.dumps(facts(ranker())))
    assert told["request"]["macs"] == 64 and told["candidate"]["macs"] == 32
    assert told["outputs"] == {"score": []}
    assert {node["op"] for node in told["nodes"]} == {"LOOKUP", "RESHAPE", "LINEAR", "SUM", "SIGMOID"}
    assert next(node for node in told["nodes"] if node["macs"] == 64)["weight"] == "wide"
