"""tidy: each rewrite on the smallest graph that shows it, and the same scores on random graphs."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from burnish.graph.node import Graph, Node, input_node, scalar, weight
from burnish.graph.ops import Op
from burnish.graph.weights import to_bfloat16
from burnish.inputs import Input
from burnish.passes.tidy import tidy
from burnish.testing import Weights, assert_same_function, concat, graphs, linear, lookup, model_cases, op_cases, reshape, table

X, Y = Input("x", shape=(6,)), Input("y", shape=(3,))
M = Input("m", shape=(4,), side=["candidate", "request", "request", "candidate"])
x, y, m = (input_node(spec) for spec in (X, Y, M))
one, zero = scalar(1.0), scalar(0.0)
CASES = op_cases() | model_cases()


def tidied(node):
    return tidy(Graph([X, Y, M], {"out": node})).outputs[0][1]


def part(v, start, stop, axis=0):
    return Node(Op.SLICE, (v,), axis=axis, start=start, stop=stop)


def take(v, *indices, axis=0):
    return Node(Op.TAKE, (v,), axis=axis, indices=indices)


def add(a, b):
    return Node(Op.ADD, (a, b))


FOUR = reshape(x, 2, 3)
TO = {
    "a reshape to the same shape": (reshape(x, 6), x),
    "reshapes in a row": (reshape(reshape(x, 2, 3), 3, 2), reshape(x, 3, 2)),
    "a transpose and back": (Node(Op.TRANSPOSE, (Node(Op.TRANSPOSE, (FOUR,), perm=(1, 0)),), perm=(1, 0)), FOUR),
    "a transpose of an axis of one": (Node(Op.TRANSPOSE, (reshape(x, 1, 6),), perm=(1, 0)), reshape(x, 6, 1)),
    "a slice of all": (part(x, 0, 6), x),
    "a slice of a slice": (part(part(x, 1, 5), 1, 3), part(x, 2, 4)),
    "a slice of a take": (part(take(x, 5, 0, 3, 1), 1, 3), take(x, 0, 3)),
    "a take of neighbours": (take(x, 2, 3, 4), part(x, 2, 5)),
    "a take of all in order": (take(x, 0, 1, 2, 3, 4, 5), x),
    "a take of a take": (take(take(x, 5, 3, 0), 2, 0), take(x, 0, 5)),
    "an expand to the same shape": (Node(Op.EXPAND, (x,), shape=(6,)), x),
    "an expand that broadcasting does anyway": (Node(Op.MUL, (Node(Op.EXPAND, (reshape(y, 3, 1),), shape=(3, 2)), reshape(x, 3, 2))),
                                                Node(Op.MUL, (reshape(y, 3, 1), reshape(x, 3, 2)))),
    "a concat of one": (concat([x]), x),
    "a concat of a concat": (concat([x, concat([y, x])]), concat([x, y, x])),
    "a concat of adjacent slices": (concat([part(x, 0, 2), part(x, 2, 5), y]), concat([part(x, 0, 5), y])),
    "a concat of takes": (concat([take(x, 3, 1), take(x, 5, 0)]), take(x, 3, 1, 5, 0)),
    "a slice of a concat": (part(concat([x, y, y]), 4, 8), concat([part(x, 4, 6), part(y, 0, 2)])),
    "a slice that is a part of a concat": (part(concat([x, y]), 6, 9), y),
    "a take of a concat": (take(concat([x, y]), 7, 8, 0), concat([part(y, 1, 3), part(x, 0, 1)])),
    "a take with repeats of one part": (take(concat([x, y]), 8, 6, 8), take(y, 2, 0, 2)),
    "a flattened concat": (reshape(concat([reshape(x, 2, 3), reshape(y, 1, 3)]), 9), concat([x, y])),
    "a reduction over an axis of one": (Node(Op.SUM, (reshape(x, 6, 1),), axes=(1,)), x),
    "a mean over no axes": (Node(Op.MEAN, (x,), axes=()), x),
    "times one": (Node(Op.MUL, (one, x)), x),
    "divided by one": (Node(Op.DIV, (x, one)), x),
    "plus zeros": (add(x, weight("z", np.zeros(6, np.float32))), x),
    "minus zero": (Node(Op.SUB, (x, zero)), x),
    "to the power of one": (Node(Op.POW, (x, one)), x),
    "squared": (Node(Op.POW, (x, scalar(2.0))), Node(Op.MUL, (x, x))),
    "negated twice": (Node(Op.NEG, (Node(Op.NEG, (x,)),)), x),
    "relu of relu": (Node(Op.RELU, (Node(Op.RELU, (x,)),)), Node(Op.RELU, (x,))),
    "a cast to its own dtype": (Node(Op.CAST, (x,), dtype="float32"), x),
    "a cast there and back": (Node(Op.CAST, (Node(Op.CAST, (x,), dtype="float64"),), dtype="float32"), x),
    "a choice that is always made": (Node(Op.WHERE, (weight("t", np.ones(6, bool)), x, zero)), x),
}  # fmt: skip


@pytest.mark.parametrize("what", TO)
def test_tidy_simplifies(what):
    before, after = TO[what]
    assert tidied(before) is after


LEFT = {
    "times zero, which is NaN for an infinite value": Node(Op.MUL, (x, zero)),
    "a cast through a narrower dtype": Node(Op.CAST, (Node(Op.CAST, (x,), dtype="bfloat16"),), dtype="float32"),
    "a cast through integers": Node(Op.CAST, (Node(Op.CAST, (x,), dtype="int64"),), dtype="float32"),
    "plus zero that broadcasts": add(x, weight("z", np.zeros((2, 1), np.float32))),
    "slices that are not adjacent": concat([part(x, 0, 2), part(x, 3, 5)]),
    "a take with repeats over several parts": take(concat([x, y]), 0, 8, 0),
    "a reshape across the parts of a concat": reshape(concat([reshape(y, 3, 1), reshape(part(x, 0, 3), 3, 1)], axis=1), 6),
}


@pytest.mark.parametrize("what", LEFT)
def test_tidy_leaves_alone(what):
    assert tidied(LEFT[what]) is LEFT[what]


def test_a_column_of_the_request_ends_on_the_requests_side_whatever_was_done_to_the_whole():
    assert m.side == "candidate"
    for whole in (m, Node(Op.RELU, (m,)), add(m, weight("o", np.arange(4, dtype=np.float32))), Node(Op.CAST, (m,), dtype="int64")):
        assert tidied(part(whole, 1, 2)).side == tidied(part(whole, 1, 3)).side == tidied(take(whole, 2, 1)).side == "request"
        assert tidied(part(whole, 0, 1)).side == "candidate"
    half = Node(Op.INPUT, half=M.halves[0])
    assert tidied(part(m, 2, 3)) is part(half, 1, 2)
    assert tidied(part(Node(Op.RELU, (m,)), 1, 3)) is Node(Op.RELU, (half,))


W = weight("w", np.arange(24, dtype=np.float32).reshape(4, 6) / 10)


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        (Node(Op.MATMUL, (reshape(x, 1, 1, 6), weight("w", W["weight"].array.T[None]))), (4,)),
        (Node(Op.MATMUL, (weight("w", W["weight"].array[None]), reshape(x, 6, 1))), (4,)),
        (Node(Op.MATMUL, (reshape(concat([x, x]), 2, 6), weight("w", W["weight"].array.T[None, None]))), (2, 4)),
        (Node(Op.MATMUL, (W, reshape(concat([x, x]), 2, 6, 1))), (2, 4)),
    ],
    ids=["rows by a matrix", "a matrix by a column", "several rows", "several columns"],
)
def test_a_product_with_a_constant_matrix_is_a_linear_whatever_axes_of_one_it_has(product, expected):
    before = Graph([X], {"out": product})
    after = tidy(before)
    assert Op.MATMUL not in {node.op for node in after.order}
    assert [node.shape for node in after.order if node.op is Op.LINEAR] == [expected]
    assert_same_function(before, after)


def test_products_with_several_matrices_or_of_several_columns_stay():
    for product in (
        Node(Op.MATMUL, (reshape(x, 1, 1, 6), weight("w", np.ones((3, 6, 4), np.float32)))),
        Node(Op.MATMUL, (weight("w", np.ones((4, 2), np.float32)), reshape(x, 2, 3))),
    ):
        assert Op.MATMUL in {node.op for node in tidy(Graph([X], {"out": product})).order}


def test_constants_are_folded():
    a, b = (weight(n, np.full(6, v, np.float32)) for n, v in (("a", 2), ("b", 3)))
    (node,) = (v for v in tidied(Node(Op.MUL, (x, Node(Op.EXP, (add(a, b),))))).inputs if v.op is Op.WEIGHT)
    assert np.array_equal(node["weight"].array, np.exp(np.full(6, 5, np.float32)))


def test_what_is_narrow_on_purpose_stays_narrow_and_what_would_grow_stays_unfolded():
    ids = Input("id", "int64", (), cardinality=5)
    narrow = (
        Node(Op.CAST, (weight("t", to_bfloat16(np.ones((5, 2))), "bfloat16"),), dtype="float32"),
        Node(Op.DEQUANTIZE, (weight("q", np.ones((5, 2), np.int8)), weight("s", np.ones((5, 1), np.float32)))),
    )
    for t in narrow:
        graph = Graph([ids], {"out": lookup(t, input_node(ids))})
        assert tidy(graph).outputs == graph.outputs
    square = Node(Op.MATMUL, (weight("c", np.ones((2000, 1), np.float32)), weight("r", np.ones((1, 2000), np.float32))))
    assert any(node.op is Op.MATMUL for node in tidy(Graph([Y], {"out": Node(Op.SUM, (add(square, part(y, 0, 1)),), axes=(0, 1))})).order)


def test_a_mapped_table_is_not_read(tmp_path):
    ids = Input("id", "int64", (), cardinality=100)
    mapped = np.memmap(tmp_path / "t", np.float32, "w+", shape=(300_000, 16))
    padded = concat([weight("none", np.zeros((1, 16), np.float32)), weight("t", mapped)])
    graph = Graph([ids], {"out": lookup(padded, input_node(ids))})
    assert tidy(graph).outputs == graph.outputs


def one_linear(node):
    """The only LINEAR there is, and nothing pointwise beside it."""
    graph = tidy(Graph([X, Y, M], {"out": node}))
    assert_same_function(Graph([X, Y, M], {"out": node}), graph)
    assert [v.op for v in graph.order if v.op not in (Op.INPUT, Op.WEIGHT, Op.CONCAT)] == [Op.LINEAR]
    return next(v for v in graph.order if v.op is Op.LINEAR)


def batchnorm(v, w):
    n = v.shape[-1]
    v = Node(Op.DIV, (Node(Op.SUB, (v, w.normal(n))), weight("d", w.random.uniform(0.5, 2, n).astype(np.float32))))
    return add(Node(Op.MUL, (v, w.normal(n))), w.normal(n))


def test_batchnorm_goes_into_the_linear_before_it():
    assert one_linear(batchnorm(linear(x, 5, 1), Weights(2))).inputs[0] is x


def test_batchnorm_goes_into_the_linear_after_it():
    hidden = Node(Op.RELU, (x,))
    graph = tidy(Graph([X], {"out": linear(batchnorm(hidden, Weights(2)), 5, 1)}))
    assert_same_function(Graph([X], {"out": linear(batchnorm(hidden, Weights(2)), 5, 1)}), graph)
    assert graph.outputs[0][1].op is Op.LINEAR and graph.outputs[0][1].inputs[0] is hidden


def test_raw_features_stay_standardised_in_front_of_their_linear():
    for raw in (x, part(x, 1, 4), Node(Op.CAST, (Node(Op.CAST, (x,), dtype="int64"),), dtype="float32")):
        scaled = Node(Op.MUL, (raw, weight("s", np.full(raw.shape, 0.25, np.float32))))
        assert tidied(linear(scaled, 5, 1)) is linear(scaled, 5, 1)


def test_a_constant_minus_a_linear_is_a_linear():
    one_linear(Node(Op.SUB, (scalar(1.0), linear(x, 5, 1))))


def test_an_addend_goes_into_the_bias_beside_an_init_but_a_factor_does_not():
    started = linear(x, 5, 1, init=linear(y, 5, 2))
    assert sum(v.op is Op.ADD for v in tidy(Graph([X, Y], {"out": add(started, scalar(2.0))})).order) == 0
    assert tidied(Node(Op.MUL, (started, scalar(2.0)))).op is Op.MUL


def test_a_shift_that_would_cancel_digits_stays_in_front_of_its_linear():
    hidden = Node(Op.RELU, (x,))
    far = linear(add(hidden, scalar(-1e6)), 5, 1)
    assert tidied(far) is far
    near = linear(Node(Op.MUL, (add(hidden, scalar(-1e6)), scalar(1e-6))), 5, 1)
    assert tidied(near).inputs[0] is hidden


def test_a_scale_over_another_axis_than_the_columns_stays():
    fields = reshape(x, 3, 2)
    scaled = Node(Op.MUL, (linear(fields, 3, 1), weight("s", np.arange(1, 4, dtype=np.float32)[:, None])))
    assert tidied(scaled).op is Op.MUL
    assert_same_function(Graph([X], {"out": scaled}), tidy(Graph([X], {"out": scaled})))


def test_a_linear_over_a_part_twice_reads_it_once():
    node = one_linear(linear(concat([x, y, x]), 4, 1))
    assert node.inputs[0] is concat([x, y]) and node.inputs[1].shape == (4, 9)


def test_constant_columns_go_into_the_bias():
    node = one_linear(linear(concat([x, weight("c", np.arange(3, dtype=np.float32))]), 4, 1))
    assert node.inputs[0] is x


@pytest.mark.parametrize("op", [Op.SUB, Op.ADD])
def test_the_difference_of_two_parts_is_taken_into_their_columns(op):
    z = part(x, 0, 3)
    before = Graph([X, Y], {"out": linear(concat([y, z, Node(op, (z, y))]), 4, 1)})
    after = tidy(before)
    assert_same_function(before, after)
    assert not any(v.op is op for v in after.order)
    assert next(v for v in after.order if v.op is Op.LINEAR).inputs[1].shape == (4, 6)


def test_a_difference_of_something_else_stays_a_part():
    kept = linear(concat([y, part(x, 0, 3), Node(Op.SUB, (part(x, 3, 6), y))]), 4, 1)
    assert tidied(kept) is kept


def test_a_product_with_a_constant_matrix_is_a_linear():
    node = tidied(Node(Op.MATMUL, (reshape(x, 2, 3), weight("w", np.arange(12, dtype=np.float32).reshape(3, 4)))))
    assert node.op is Op.LINEAR and node.inputs[1]["weight"].array.shape == (4, 3)


def test_a_reshape_of_a_lookup_keeps_rows_whole():
    ids = Input("ids", "int64", (4,), cardinality=5)
    t = table(5, 3, 1)
    graph = Graph([ids], {"out": reshape(lookup(t, reshape(input_node(ids), 4, 1)), 2, 2, 3)})
    assert tidy(graph).outputs == (("out", lookup(t, reshape(input_node(ids), 2, 2))),)


@pytest.mark.parametrize("name", CASES)
def test_tidy_keeps_what_is_computed(name):
    graph = CASES[name]
    after = tidy(graph)
    assert_same_function(graph, after)
    assert tidy(after).outputs == after.outputs


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_tidy_keeps_what_random_graphs_compute_and_finds_nothing_the_second_time(graph):
    after = tidy(graph)
    assert_same_function(graph, after, n=3, atol=1e-4)
    assert tidy(after).outputs == after.outputs


def test_a_linear_that_gelu_reads_twice_stays_one_linear():
    y = linear(x, 5, 1)
    half, inner = Node(Op.MUL, (y, scalar(0.5))), Node(Op.ERF, (Node(Op.MUL, (y, scalar(0.5**0.5))),))
    graph = Graph([X], {"out": Node(Op.MUL, (half, add(inner, one)))})
    assert sum(v.op is Op.LINEAR for v in tidy(graph).order) == 1


def test_a_linear_that_is_an_output_too_stays_one_linear():
    y = linear(x, 5, 1)
    graph = tidy(Graph([X], {"logits": y, "scaled": Node(Op.MUL, (y, scalar(0.5)))}))
    assert sum(v.op is Op.LINEAR for v in graph.order) == 1


def test_a_lookup_read_in_two_shapes_is_read_once():
    ids = Input("ids", "int64", (4,), cardinality=5)
    rows_of_table = lookup(table(5, 3, 1), input_node(ids))
    both = {"fields": rows_of_table, "rows": reshape(rows_of_table, 2, 2, 3)}
    assert tidy(Graph([ids], both)).outputs == tuple(both.items())


def test_pointwise_ops_on_slices_side_by_side_are_one():
    parts = [Node(Op.RELU, (part(x, a, b),)) for a, b in ((0, 2), (2, 3), (3, 6))]
    assert tidied(concat(parts)) is Node(Op.RELU, (x,))
    halves = [Node(Op.MUL, (part(x, a, a + 3), scalar(0.5))) for a in (0, 3)]
    assert tidied(concat(halves)) is Node(Op.MUL, (x, scalar(0.5)))
    assert tidied(concat([parts[0], parts[2]])) is concat([parts[0], parts[2]])


@pytest.mark.parametrize("name", model_cases())
def test_tidy_never_adds_products(name):
    def products(graph):
        return sum(np.prod(v.shape) * v.inputs[0].shape[-1] for v in graph.order if v.op in (Op.LINEAR, Op.MATMUL))

    graph = model_cases()[name]
    assert products(tidy(graph)) <= products(graph)
