"""Tables in fewer bits: each row within its own step, the same table once, memory bounded, and what must be left alone left alone."""

import tracemalloc
from functools import partial

import numpy as np
import pytest

from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, weight
from burnish.graph.ops import Op
from burnish.graph.verify import verify
from burnish.inputs import Input
from burnish.quantize import affine, tables
from burnish.quantize.half import half
from burnish.quantize.tables import half_tables, int4_tables, int8_tables, mixed_tables

rng = np.random.default_rng(0)
IDS = Input("ids", "int64", (6,), cardinality=100)


def rows(width: int) -> np.ndarray:
    """(100, width), of very different scales, one row of zeros."""
    array = (rng.normal(size=(100, width)) * np.logspace(-4, 2, 100)[:, None]).astype(np.float32)
    array[40] = 0
    return array


def looked_up(table: np.ndarray, op: Op = Op.LOOKUP) -> Graph:
    attrs = {"mode": "sum"} if op is Op.BAG else {}
    return Graph([IDS], {"y": Node(op, (weight("t", table), input_node(IDS)), **attrs)})


def every_row(graph: Graph) -> np.ndarray:
    ids = np.arange(102).reshape(17, 6) % 100
    return interpret(graph, {"ids": ids})["y"].reshape(102, -1)[:100]


@pytest.mark.parametrize(
    ("change", "step"),
    [(int8_tables, 1 / 254), (int4_tables, 1 / 14 * 2), (half_tables, 1 / 256), (partial(half_tables, dtype="float16"), 1 / 2048)],
)
def test_each_value_comes_back_within_its_rows_step(change, step):
    table = rows(16)
    got = every_row(verify(change(looked_up(table))))
    assert (np.abs(got - table) <= np.abs(table).max(axis=1, keepdims=True) * step * 1.0001).all()
    assert (got[40] == 0).all()


@pytest.mark.parametrize(
    ("change", "width"), [(int8_tables, 20), (int4_tables, 12), (half_tables, 32), (partial(half_tables, dtype="float16"), 32)]
)
def test_a_narrow_table_takes_a_quarter_an_eighth_half_the_bytes_and_a_scale_a_row(change, width):
    assert sum(held.nbytes for held in change(looked_up(rows(16))).weights.values()) == 100 * width


def test_searching_a_rows_range_lessens_the_squared_error_of_int4():
    table = rng.standard_t(4, (100, 32)).astype(np.float32)
    q, scale = affine.quantize_rows(table, 7)
    plain = ((q * scale[:, None] - table) ** 2).sum(axis=1)
    found = ((every_row(int4_tables(looked_up(table))) - table) ** 2).sum(axis=1)
    assert (found <= plain * 1.0001).all() and found.sum() < 0.85 * plain.sum()


def test_a_lopsided_row_uses_all_sixteen_levels_whichever_its_longer_side():
    ramp = np.linspace(-7, 8, 16, dtype=np.float32)
    for row in (ramp, -ramp):
        q, scale = tables.int4_rows(row[None])
        assert sorted(q[0]) == list(range(-8, 8)) and abs(scale[0]) == 1
        assert (q[0] * scale[0] == row).all()


def test_bags_read_narrow_tables_too():
    table = rows(16)
    int8 = verify(int8_tables(looked_up(table, Op.BAG)))
    ids = rng.integers(0, 100, (9, 6))
    widened = every_row(int8_tables(looked_up(table)))
    assert np.allclose(interpret(int8, {"ids": ids})["y"], widened[ids].sum(axis=1), rtol=1e-6, atol=1e-5)


def test_a_table_read_twice_becomes_one_narrow_table():
    table = weight("t", rows(16))
    ids = input_node(IDS)
    graph = Graph([IDS], {"a": Node(Op.LOOKUP, (table, ids)), "b": Node(Op.BAG, (table, ids), mode="mean")})
    assert sum(node.op is Op.DEQUANTIZE for node in int8_tables(graph).order) == 1


def test_what_is_read_otherwise_than_by_row_stays_float():
    table = weight("t", rows(16))
    by_row = Node(Op.LOOKUP, (table, input_node(IDS)))
    scores = Node(Op.LINEAR, (by_row, table, weight("b", np.zeros(100, np.float32))))  # tied input and output embedding
    graph = Graph([IDS], {"y": scores})
    assert int8_tables(graph).outputs == graph.outputs


def test_tables_one_wide_or_of_odd_width_are_left_where_their_bits_would_not_fit():
    for change, width in ((int8_tables, 1), (int4_tables, 1), (int4_tables, 7)):
        graph = looked_up(rows(width))
        assert change(graph).outputs == graph.outputs
    assert int8_tables(looked_up(rows(7))).outputs != looked_up(rows(7)).outputs


def test_a_mapped_table_is_narrowed_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "CHUNK_BYTES", 1 << 20)
    values = np.lib.format.open_memmap(tmp_path / "t.npy", "w+", np.float32, (400_000, 16))  # 25.6 MB
    values[:] = rng.normal(size=(1, 16))
    values[::1000] *= 3
    mapped = np.load(tmp_path / "t.npy", mmap_mode="r")
    tracemalloc.start()
    int8 = int8_tables(looked_up(mapped))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400_000 * 20 + (8 << 20)  # the result and a few pieces, never the widened whole
    (node,) = (node for node in int8.order if node.op is Op.DEQUANTIZE)
    whole, scale = affine.quantize_rows(np.asarray(mapped))
    assert (node.inputs[0]["weight"].array == whole).all() and (node.inputs[1]["weight"].array[:, 0] == scale).all()


@pytest.mark.parametrize(("dtype", "step"), [("bfloat16", 1 / 256), ("float16", 1 / 2048)])
def test_half_floats_round_wide_linears_and_leave_the_head(dtype, step):
    x = Input("x", "float32", (32,))
    w, head = rng.normal(size=(16, 32)).astype(np.float32), rng.normal(size=(1, 16)).astype(np.float32)
    hidden = Node(Op.LINEAR, (input_node(x), weight("w", w), weight("b", np.zeros(16, np.float32))))
    graph = Graph([x], {"y": Node(Op.LINEAR, (hidden, weight("head", head), weight("c", np.zeros(1, np.float32))))})
    narrow = verify(half(graph, dtype))
    assert [node["compute"] for node in narrow.order if node.op is Op.LINEAR] == [dtype, "float32"]
    table = {"x": rng.normal(size=(50, 32)).astype(np.float32)}
    bound = (np.abs(table["x"]) @ np.abs(w).T @ np.abs(head).T) * 2 * step * 1.01  # each operand moves by at most a step of itself
    assert (np.abs(interpret(narrow, table)["y"] - interpret(graph, table)["y"]) <= bound).all()


def test_what_float16_cannot_hold_stays_float32():
    """65,520 and more would become infinite; bfloat16 holds them."""
    table = rows(16)
    table[3, 2] = 7e4
    for dtype, stored in (("float16", "float32"), ("bfloat16", "bfloat16")):
        held = half_tables(looked_up(table), dtype).weights.values()
        assert [one.dtype for one in held] == [stored]
    x, w = Input("x", "float32", (16,)), np.full((8, 16), -7e4, np.float32)
    graph = Graph([x], {"y": Node(Op.LINEAR, (input_node(x), weight("w", w), weight("b", np.zeros(8, np.float32))))})
    for dtype, compute in (("float16", "float32"), ("bfloat16", "bfloat16")):
        assert [node["compute"] for node in half(graph, dtype).order if node.op is Op.LINEAR] == [compute]


def two_tables(heard: float) -> tuple[Graph, dict[str, np.ndarray]]:
    """A score that hangs on one table `heard` times as much as on the other, of the same size; a third is of odd width."""
    sizes = Input("ids", "int64", (3,), cardinality=400)
    random = np.random.default_rng(0)
    a, b = (random.normal(size=(400, 16)).astype(np.float32) for _ in range(2))
    odd = random.normal(size=(400, 3)).astype(np.float32)
    parts = []
    for i, (name, table, times) in enumerate((("loud", a, heard), ("quiet", b, 1.0), ("odd", odd, 0.1))):
        ids = Node(Op.RESHAPE, (Node(Op.SLICE, (input_node(sizes),), axis=0, start=i, stop=i + 1),), shape=())
        rows = Node(Op.LOOKUP, (weight(name, table), ids))
        parts.append(Node(Op.MUL, (Node(Op.SUM, (rows,), axes=(0,)), weight("times", np.float32(times)))))
    total = Node(Op.SIGMOID, (Node(Op.ADD, (Node(Op.ADD, (parts[0], parts[1])), parts[2])),))
    return Graph([sizes], {"y": total}), {"ids": random.integers(0, 400, (2000, 3))}


def chosen(graph: Graph, rows: dict[str, np.ndarray], loss: float) -> dict[str, str]:
    after = verify(mixed_tables(graph, rows, loss))
    return {held.name.split(".")[0]: held.dtype for held in after.weights.values() if held.dtype.startswith("int")}


def test_tables_that_matter_little_take_int4_and_the_others_int8():
    graph, rows = two_tables(heard=20)
    assert chosen(graph, rows, 2e-4) == {"loud": "int8", "quiet": "int4", "odd": "int8"}
    assert chosen(graph, rows, 1.0) == {"loud": "int4", "quiet": "int4", "odd": "int8"}
    assert chosen(graph, rows, 0.0) == {"loud": "int8", "quiet": "int8", "odd": "int8"}


def test_mixed_tables_leave_what_the_others_leave():
    graph = Graph([IDS], {"y": Node(Op.SUM, (looked_up(rows(1)).outputs[0][1],), axes=(0, 1))})
    ids = {"ids": np.random.default_rng(0).integers(0, 100, (200, 6))}
    assert mixed_tables(graph, ids).weights.keys() == graph.weights.keys()
