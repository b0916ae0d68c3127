"""One small graph and more for every op: what an interpreter, a twin or a backend must compute, or refuse by name."""

from __future__ import annotations

import numpy as np

from burnish.graph.node import Graph, Node, input_node, scalar, weight
from burnish.graph.ops import BINARY, COMPARE, REDUCE, UNARY, Op
from burnish.graph.weights import pack_int4, to_bfloat16
from burnish.inputs import Input
from burnish.quantize.affine import quantize_rows
from burnish.testing.builders import Weights, concat, linear, lookup, reshape, table
from burnish.testing.models import dcn_v2, deepfm, din, dlrm, mmoe, two_tower

SPECS = (
    Input("r", "float32", (7,), "request"),
    Input("c", "float32", (7,), "candidate"),
    Input("x", "float32", (5, 3), ("candidate", "request", "candidate", "request", "request")),
    Input("ids", "int64", (4,), ("request", "candidate", "candidate", "request"), (11, 11, 11, 11)),
    Input("flags", "bool", (7,), "candidate"),
)


def op_cases() -> dict[str, Graph]:
    """Graphs named after the op they are about (`lookup`, `lookup of int4 rows`), each over the inputs it needs of SPECS.

    Sizes are odd, sides are mixed, values stay inside each op's domain.
    """
    r, c, x, ids, flags = (input_node(spec) for spec in SPECS)
    w = Weights(5)
    positive = Node(Op.ADD, (Node(Op.ABS, (c,)), scalar(0.25)))
    domain = {Op.LOG: positive, Op.SQRT: positive, Op.RSQRT: positive, Op.NOT: flags}
    cases: dict[str, Node | dict[str, Node]] = {}
    for op in UNARY:
        cases[op.name.lower()] = Node(op, (domain.get(op, c),))
    for op in (*BINARY, *COMPARE):
        a, b = (flags, Node(Op.GT, (r, scalar(0.0)))) if op in (Op.AND, Op.OR) else (c, r)
        cases[op.name.lower()] = Node(op, (positive if op is Op.POW else a, b))
    for op in BINARY:
        if op not in (Op.DIV, Op.POW, Op.ATAN2):
            divisor = w.random.integers(1, 9, 4)
            cases[f"{op.name.lower()} of integers"] = Node(op, (ids, weight("k", divisor)))
    cases |= {
        "add of one row and many": Node(Op.ADD, (x, reshape(r, 7, 1, 1))),
        "not": Node(Op.NOT, (flags,)),
        "isnan": Node(Op.ISNAN, (Node(Op.LOG, (c,)),)),
        "where": Node(Op.WHERE, (flags, c, r)),
        "where with constants": Node(Op.WHERE, (Node(Op.EQ, (ids, scalar(0, "int64"))), scalar(-1.5), scalar(2.5))),
        "cast to float": Node(Op.CAST, (ids,), dtype="float32"),
        "cast to int": Node(Op.CAST, (Node(Op.MUL, (c, scalar(3.0))),), dtype="int64"),
        "cast to bool": Node(Op.CAST, (ids,), dtype="bool"),
        "cast to bfloat16": Node(Op.CAST, (Node(Op.CAST, (c,), dtype="bfloat16"),), dtype="float32"),
    }
    for op in REDUCE:
        cases[op.name.lower()] = Node(op, (x,), axes=(0,))
        cases[f"{op.name.lower()} of both axes"] = Node(op, (x,), axes=(0, 1))
        cases[f"{op.name.lower()} keeping axes"] = Node(op, (x,), axes=(1,), keepdims=True)
    rounded = Node(Op.ROUND, (x,))  # has ties
    cases |= {
        "argmax": Node(Op.ARGMAX, (x,), axis=0),
        "argsort": Node(Op.ARGSORT, (rounded,), axis=0),
        "argsort descending": Node(Op.ARGSORT, (rounded,), axis=1, descending=True),
        "cumsum": Node(Op.CUMSUM, (x,), axis=0),
        "cumprod": Node(Op.CUMPROD, (x,), axis=1),
        "softmax": Node(Op.SOFTMAX, (x,), axis=1),
        "softmax of fields": Node(Op.SOFTMAX, (x,), axis=0),
        "layernorm": Node(Op.LAYERNORM, (x, w.normal(3), w.normal(3)), eps=1e-5),
        "layernorm of all": Node(Op.LAYERNORM, (x, w.normal(5, 3), w.normal(5, 3)), eps=1e-3),
        "concat": concat([r, c, w.normal(2), r]),
        "concat of columns": concat([x, x, Node(Op.EXPAND, (reshape(r, 7, 1),), shape=(7, 3))]),
        "slice": Node(Op.SLICE, (x,), axis=0, start=1, stop=4),
        "take": Node(Op.TAKE, (x,), axis=1, indices=(2, 0, 2)),
        "gather": Node(Op.GATHER, (x, Node(Op.MOD, (reshape(ids, 4, 1), scalar(5, "int64")))), axis=0),
        "reshape": reshape(x, 3, 5),
        "transpose": Node(Op.TRANSPOSE, (reshape(x, 5, 1, 3),), perm=(2, 0, 1)),
        "expand": Node(Op.EXPAND, (reshape(c, 7, 1),), shape=(2, 7, 4)),
        "matmul": Node(Op.MATMUL, (x, Node(Op.TRANSPOSE, (x,), perm=(1, 0)))),
        "matmul of request and candidate": Node(Op.MATMUL, (reshape(r, 1, 1, 7), reshape(Node(Op.MUL, (c, r)), 7, 1))),
        "matmul by a constant": Node(Op.MATMUL, (x, w.normal(3, 9))),
        "input": {"r": r, "x": x, "ids": ids},
        "weight": {"w": w.normal(3), "sum": Node(Op.SUM, (c,), axes=(0,))},
    }
    return {name: _graph(value) for name, value in (cases | _tables(ids, w) | _linears(r, c, x, w) | _gru(x, c, w)).items()}


def model_cases() -> dict[str, Graph]:
    """Small rankers of the usual families: odd widths, mixed columns, several outputs."""
    return {
        "dcn_v2": dcn_v2(5, 7, 8, 2, (33, 17), 50),
        "dcn_v2 mixed columns": dcn_v2(5, 7, 8, 2, (33, 17), 50, mixed=True),
        "dcn_v2 parallel, low rank": dcn_v2(3, 6, 4, 2, (20,), 50, parallel=True, rank=5),
        "dcn_v2 of the candidate alone": dcn_v2(4, 5, 8, 1, (16,), 50, request=0.0),
        "dlrm": dlrm(5, 6, 8, (17, 9), (21, 10), 50),
        "deepfm": deepfm(4, 9, 5, (19, 8), 50),
        "din": din(9, 8, 60, 13, (21, 10)),
        "mmoe": mmoe(5, 6, 4, 3, (15, 7), (5,), cardinality=50),
        "two_tower": two_tower(6, 8, (19, 11), 50),
    }


def _tables(ids: Node, w: Weights) -> dict[str, Node]:
    t = table(11, 6, w)
    values = t["weight"].array
    q8, scale8 = quantize_rows(values)
    q4, scale4 = quantize_rows(values, limit=7)
    int8 = Node(Op.DEQUANTIZE, (weight("t8", q8), weight("s8", scale8[:, None])))
    int4 = Node(Op.DEQUANTIZE, (weight("t4", pack_int4(q4), "int4"), weight("s4", scale4[:, None])))
    bfloat16 = Node(Op.CAST, (weight("tb", to_bfloat16(values), "bfloat16"),), dtype="float32")
    float16 = Node(Op.CAST, (weight("th", values.astype(np.float16)),), dtype="float32")
    bags = {f"bag {mode}": Node(Op.BAG, (t, ids), mode=mode) for mode in ("sum", "mean", "max")}
    ignoring = {f"{name} ignoring id 0": bag.with_attrs(ignore=0) for name, bag in bags.items()}
    weighted = Node(Op.BAG, (t, ids, Node(Op.CAST, (ids,), dtype="float32")), mode="sum")
    return {
        "lookup": lookup(t, ids),
        "lookup of int8 rows": lookup(int8, ids),
        "lookup of int4 rows": lookup(int4, ids),
        "lookup of bfloat16 rows": lookup(bfloat16, ids),
        "lookup of float16 rows": lookup(float16, ids),
        "dequantize": Node(
            Op.MATMUL, (Node(Op.CAST, (reshape(ids, 1, 4),), dtype="float32"), Node(Op.SLICE, (int8,), axis=0, start=0, stop=4))
        ),
        "bag": Node(Op.BAG, (t, reshape(ids, 2, 2)), mode="sum"),
        "bag of int8 rows": Node(Op.BAG, (int8, ids), mode="mean", ignore=0),
        "bag with weights": weighted,
        "bag with weights ignoring id 0": weighted.with_attrs(ignore=0),
        **bags,
        **ignoring,
    }


def _linears(r: Node, c: Node, x: Node, w: Weights) -> dict[str, Node]:
    def scale(n: int) -> Node:
        return weight("scale", w.random.uniform(0.001, 0.02, n).astype(np.float32))

    def int8(n: int, k: int) -> Node:
        return weight("q", w.random.integers(-127, 128, (n, k)).astype(np.int8))

    quantized = Node(Op.QUANTIZE, (c, scalar(40.0)), zero_point=128)
    by_column = Node(Op.QUANTIZE, (r, weight("m", w.random.uniform(10, 90, 7).astype(np.float32))), zero_point=117)
    once = Node(Op.QDOT, (by_column, int8(9, 7)), zero_point=117)
    qlinear = Node(Op.QLINEAR, (quantized, int8(9, 7), scale(9), w.normal(9)), zero_point=128)
    fields = Node(Op.QUANTIZE, (x, scalar(30.0)), zero_point=3)
    return {
        "linear": linear(c, 9, w),
        "linear of fields": linear(x, 5, w),
        "linear with init": linear(c, 9, w, init=linear(r, 9, w)),
        "linear of fields with one init": linear(x, 5, w, init=linear(reshape(r, 1, 7), 5, w)),
        "linear in bfloat16": linear(c, 9, w, compute="bfloat16"),
        "linear in float16": linear(c, 9, w, compute="float16"),
        "quantize": quantized,
        "quantize by column": concat([by_column, quantized]),
        "qlinear": qlinear,
        "qlinear with init": qlinear.with_inputs((*qlinear.inputs, once)),
        "qlinear of fields": Node(Op.QLINEAR, (fields, int8(4, 3), scale(4), w.normal(4)), zero_point=3),
        "qdot": Node(Op.QDOT, (quantized, int8(5, 7)), zero_point=128),
    }


def _gru(x: Node, c: Node, w: Weights) -> dict[str, Node]:
    shapes = ((12, 3), (12, 4), (12,), (12,))
    first, h0 = Node(Op.SLICE, (c,), axis=0, start=0, stop=4), weight("h0", np.zeros(4, np.float32))
    scores = Node(Op.SOFTMAX, (Node(Op.SLICE, (c,), axis=0, start=1, stop=6),), axis=0)
    r = input_node(SPECS[0])
    mine = Node(Op.TAKE, (reshape(r, 7, 1),), axis=0, indices=tuple(i % 7 for i in range(15)))
    mine = reshape(mine, 5, 3)
    return {
        "gru": Node(Op.GRU, (x, weight("h0", np.zeros(4, np.float32)), *(w.normal(*shape, scale=0.4) for shape in shapes))),
        "gru from a state": Node(Op.GRU, (x, first, *(w.normal(*shape, scale=0.4) for shape in shapes))),
        **{
            f"gru with scores that {how}": Node(Op.GRU, (x, first, *(w.normal(*shape, scale=0.4) for shape in shapes), scores), scores=how)
            for how in ("scale", "replace")
        },
        "gru of the request with scores of candidates": Node(
            Op.GRU, (mine, h0, *(w.normal(*s, scale=0.4) for s in shapes), scores), scores="scale"
        ),
    }


def _graph(value: Node | dict[str, Node]) -> Graph:
    outputs = value if isinstance(value, dict) else {"y": value}
    names = {node["half"].name for node in Graph((), outputs).order if node.op is Op.INPUT}
    kept = tuple(spec for spec in SPECS if spec.name in names)
    return Graph(kept, outputs)
