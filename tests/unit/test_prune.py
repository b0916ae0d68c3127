"""Pruning: neurons that others stand in for go, exactly where they truly do; what is lost is what was allowed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish import testing
from burnish.errors import RecipeError
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, scalar, weight
from burnish.graph.ops import Op
from burnish.graph.verify import verify
from burnish.inputs import Input
from burnish.passes.evidence import Judge, macs, moments
from burnish.passes.factor import factor_request
from burnish.passes.lowrank import factored, factors, low_rank
from burnish.passes.prune import Layer, layers, prune, pruned, removal
from burnish.passes.refit import refitted
from burnish.passes.tidy import tidy
from burnish.quantize.ptq import int8
from burnish.recipe import Prune

SMALL = {"dcn_v2": {"ids": 10, "deep": (128, 64)}, "dlrm": {"ids": 8, "bottom": (128, 64), "top": (128, 64)}}


def linear(x: Node, w: np.ndarray, b: np.ndarray | None = None, name: str = "w") -> Node:
    b = np.zeros(len(w)) if b is None else b
    return Node(Op.LINEAR, (x, weight(name, w.astype(np.float32)), weight(f"{name}.b", b.astype(np.float32))))


def relu(x: Node) -> Node:
    return Node(Op.RELU, (x,))


def two_layers(w: np.ndarray, b: np.ndarray, v: np.ndarray) -> Graph:
    x = Input("x", "float32", (w.shape[1],))
    return Graph([x], {"y": linear(relu(linear(input_node(x), w, b, "w")), v, name="v")})


def shapes(graph: Graph) -> list[tuple[int, ...]]:
    return [node.inputs[1].shape for node in graph.order if node.op is Op.LINEAR]


def rows_of_x(n: int, k: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x": rng.normal(size=(n, k)).astype(np.float32)}


def seen_by(graph: Graph, rows: dict[str, np.ndarray], found: list[Layer]) -> dict:
    return moments(graph, [reader.node.inputs[0] for layer in found for reader in layer.readers], rows)


def test_duplicate_dead_and_constant_neurons_are_removed_exactly():
    rng = np.random.default_rng(0)
    w, b, v = rng.normal(size=(96, 20)), rng.normal(size=96), rng.normal(size=(7, 96))
    source = rng.permutation(96)
    w[source[32:64]], b[source[32:64]] = w[source[:32]] * 3, b[source[:32]] * 3  # three times a neuron that stays
    b[source[64:80]] = -1000  # never on
    w[source[80:90]], b[source[80:90]] = 0, 2  # always 2
    v[:, source[90:]] = 0  # unheard
    graph = two_layers(w, b, v)
    found = verify(prune(graph, rows_of_x(2000, 20, rng), loss=0))
    assert shapes(found) == [(32, 20), (7, 32)]
    new = rows_of_x(300, 20, rng)
    np.testing.assert_allclose(interpret(found, new)["y"], interpret(graph, new)["y"], rtol=1e-3, atol=2e-3)


def test_with_no_budget_neurons_that_matter_all_stay():
    rng = np.random.default_rng(1)
    graph = two_layers(rng.normal(size=(64, 20)), rng.normal(size=64), rng.normal(size=(70, 64)))
    assert prune(graph, rows_of_x(2000, 20, rng), loss=0).outputs == graph.outputs
    assert prune(graph, rows_of_x(2000, 20, rng), keep=1.0).outputs == graph.outputs


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(2, 40), st.integers(1, 9), st.integers(0, 99), st.floats(0, 3))
def test_a_refit_is_never_worse_than_leaving_columns_out(k, n, seed, correlation):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(200, k)) + correlation * rng.normal(size=(200, 1)) + rng.normal(size=k)).astype(np.float32)
    spec = Input("x", "float32", (k,))
    node = input_node(spec)
    of = moments(Graph([spec], {"y": node}), [node], {"x": x})[node]
    w, b, stay = rng.normal(size=(n, k)).astype(np.float32), rng.normal(size=n).astype(np.float32), rng.random(k) < 0.5
    stay[0] = True
    exact = x @ w.T + b
    narrow, bias = refitted(w, b, w[:, stay], of, np.arange(k), np.flatnonzero(stay))
    after = x[:, stay] @ narrow.T + bias - exact
    dropped = x[:, stay] @ w[:, stay].T + b - exact
    assert (after**2).mean() <= (dropped**2).mean() * 1.0001 + 1e-9
    centred = dropped - dropped.mean(axis=0)
    assert (after**2).mean() <= (centred**2).mean() * 1.0001 + 1e-9


def test_a_refit_of_many_rows_is_least_squares():
    rng = np.random.default_rng(7)
    x = (rng.normal(size=(5000, 12)) @ rng.normal(size=(12, 12)) + 3).astype(np.float32)
    spec = Input("x", "float32", (12,))
    node = input_node(spec)
    of = moments(Graph([spec], {"y": node}), [node], {"x": x})[node]
    w, b = rng.normal(size=(4, 12)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    narrow, bias = refitted(w, b, w[:, :8], of, np.arange(12), np.arange(8))
    best, *_ = np.linalg.lstsq(np.column_stack([x[:, :8], np.ones(5000)]), x @ w.T + b, rcond=None)
    np.testing.assert_allclose(np.column_stack([narrow, bias]), best.T, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("step", ["prune", "low rank"])
def test_what_lies_behind_makes_up_for_what_is_lost_before(step):
    graph = tidy(testing.dcn_v2(ids=10, width=8, deep=(128, 64), parallel=True, seed=4))
    rows, new = testing.rows(graph, 4000, seed=1), testing.rows(graph, 2000, seed=2)
    if step == "prune":
        found = layers(graph)
        seen = seen_by(graph, rows, found)
        kept = {layer: np.sort(removal(layer, seen)[-layer.width // 4 :]) for layer in found}
        plain, refit = (pruned(graph, kept, seen, given) for given in (None, rows))
    else:
        plain, refit = (factored(graph, dict.fromkeys(factors(graph, rows), 16), given) for given in (None, rows))
    verify(refit)
    judge = Judge(graph, new)
    assert macs(refit) == macs(plain)
    assert judge.loss(refit) < 0.95 * judge.loss(plain)


@pytest.mark.parametrize("width", [40, 600])
def test_the_order_of_removal_loses_less_than_the_order_of_sizes(width):
    """By deviation times outgoing norm a neuron counts that others could replace."""
    rng = np.random.default_rng(2)
    w = np.repeat(rng.normal(size=(width // 4, 30)), 4, axis=0) + 0.3 * rng.normal(size=(width, 30))
    graph = two_layers(w * rng.uniform(0.2, 2, (width, 1)), rng.normal(size=width), rng.normal(size=(9, width)))
    x = rows_of_x(3000, 30, rng)
    (layer,) = found = layers(graph)
    seen = seen_by(graph, x, found)
    (of,) = seen.values()
    order = removal(layer, seen)
    assert sorted(order) == list(range(width))
    by_size = np.argsort(np.sqrt(np.diag(of.covariance)) * np.linalg.norm(graph.outputs[0][1].inputs[1]["weight"].array, axis=0))
    exact = interpret(graph, x)["y"]

    def error(order: np.ndarray) -> float:
        after = pruned(graph, {layer: np.sort(order[width // 2 :])}, seen)
        return float(((interpret(after, x)["y"] - exact) ** 2).mean())

    assert error(order) < 0.9 * error(by_size)


def test_a_layer_reaches_its_readers_through_what_treats_neurons_alone():
    """Batch norm, swish, a pool over a sequence, a concatenation, two readers of unlike values: all follow."""
    rng = np.random.default_rng(3)
    x = Input("x", "float32", (5, 12))
    first = linear(input_node(x), rng.normal(size=(48, 12)), name="w")
    scaled = Node(Op.MUL, (first, weight("s", rng.uniform(0.5, 2, 48).astype(np.float32))))
    swish = Node(Op.MUL, (scaled, Node(Op.SIGMOID, (Node(Op.MUL, (scaled, scalar(1.5))),))))
    pooled = Node(Op.MEAN, (swish,), axes=(0,))
    beside = Node(Op.MAX, (input_node(x),), axes=(0,))
    y = linear(testing.concat([beside, pooled]), rng.normal(size=(3, 60)), name="v")
    z = linear(swish, rng.normal(size=(2, 48)), name="u")
    graph = Graph([x], {"y": y, "z": z})
    (layer,) = layers(graph)
    assert {(reader.node.shape, reader.start) for reader in layer.readers} == {((5, 2), 0), ((3,), 12)}
    rows = {"x": rng.normal(size=(500, 5, 12)).astype(np.float32)}
    found = verify(prune(graph, rows, keep=0.5))
    assert sorted(shapes(found)) == [(2, 32), (3, 44), (32, 12)]
    for name, value in interpret(graph, rows).items():
        assert np.mean((interpret(found, rows)[name] - value) ** 2) < 0.5 * value.var()


@pytest.mark.parametrize(
    "meets",
    [
        lambda h, x: h,  # an output
        lambda h, x: Node(Op.SOFTMAX, (h,), axis=0),
        lambda h, x: Node(Op.ADD, (h, x)),
        lambda h, x: Node(Op.SUM, (h,), axes=(0,)),
        lambda h, x: Node(Op.SLICE, (h,), axis=0, start=0, stop=9),
        lambda h, x: Node(Op.LAYERNORM, (h, weight("g", np.ones(40, np.float32)), weight("z", np.zeros(40, np.float32))), eps=1e-5),
    ],
    ids=["output", "softmax", "add", "sum", "slice", "layernorm"],
)
def test_neurons_that_meet_anything_else_are_left(meets):
    rng = np.random.default_rng(4)
    x = Input("x", "float32", (40,))
    hidden = linear(input_node(x), rng.normal(size=(40, 40)))
    met = meets(hidden, input_node(x))
    top = linear(met, rng.normal(size=(3, met.shape[0])), name="v") if met.shape else met
    graph = Graph([x], {"y": top} if met is not hidden else {"y": top, "h": hidden})
    assert layers(graph) == []
    assert prune(graph, rows_of_x(100, 40, rng), keep=0.5) is graph


def test_neurons_of_several_linears_that_meet_are_pruned_together():
    """Experts under a gate, a product of two linears, a layer that is skipped, both signs of one value side by side."""
    rng = np.random.default_rng(8)
    x = Input("x", "float32", (20,))
    value = input_node(x)

    def made(v: Node, n: int, name: str) -> Node:
        return linear(v, rng.normal(size=(n, v.shape[-1])) / v.shape[-1] ** 0.5, rng.normal(size=n) / 9, name)

    experts = testing.concat([testing.reshape(relu(made(value, 48, f"expert{i}")), 1, 48) for i in range(3)])
    gate = testing.reshape(Node(Op.SOFTMAX, (made(value, 3, "gate"),), axis=0), 3, 1)
    mixed = Node(Op.SUM, (Node(Op.MUL, (experts, gate)),), axes=(0,))
    product = Node(Op.MUL, (made(mixed, 40, "a"), Node(Op.SIGMOID, (made(value, 40, "b"),))))
    first = relu(made(product, 64, "first"))
    skipped = Node(Op.ADD, (first, made(relu(made(first, 32, "inner")), 64, "second")))
    both = testing.concat([relu(skipped), relu(Node(Op.NEG, (skipped,)))])
    graph = Graph([x], {"y": made(both, 1, "top")})
    assert sorted(sorted(node.inputs[1]["weight"].name for node in layer.linears) for layer in layers(graph)) == [
        ["a", "b"], ["expert0", "expert1", "expert2"], ["first", "second"], ["inner"]
    ]  # fmt: skip
    rows = rows_of_x(2000, 20, rng)
    found = verify(prune(graph, rows, keep=0.7))
    assert sorted(shapes(found)) == sorted([*[(48, 20)] * 3, (3, 20), (32, 48), (32, 20), (48, 32), (32, 48), (48, 32), (1, 96)])
    (want,), (got,) = (list(interpret(each, rows).values()) for each in (graph, found))
    assert np.mean((got - want) ** 2) < 0.2 * want.var()


def test_layers_behind_one_another_shrink_on_both_sides():
    rng = np.random.default_rng(5)
    x = Input("x", "float32", (20,))
    h = relu(linear(input_node(x), rng.normal(size=(64, 20)) / 4, name="a"))
    h = relu(linear(h, rng.normal(size=(48, 64)) / 8, name="b"))
    graph = Graph([x], {"y": linear(h, rng.normal(size=(1, 48)) / 7, name="c")})
    found = verify(prune(graph, rows_of_x(900, 20, rng), keep=0.5))
    assert shapes(found) == [(32, 20), (32, 32), (1, 32)]


@pytest.mark.parametrize("name", testing.MODELS)
def test_every_ranker_shrinks_within_the_budget_and_goes_on(name):
    graph = tidy(testing.MODELS[name](**SMALL.get(name, {})))
    rows = testing.rows(graph, 600, seed=1)
    found = verify(prune(graph, rows, loss=0.01))
    assert found.inputs == graph.inputs
    assert macs(found) <= macs(graph)
    assert Judge(graph, {k: v[3::4] for k, v in rows.items()}).loss(found) <= 0.01 + 1e-6
    half = verify(prune(graph, rows, keep=0.5))
    assert macs(half) < 0.9 * macs(graph)
    factored = verify(factor_request(int8(low_rank(half, rows, rank=16), rows)))
    assert macs(factored) < macs(half)
    table = testing.rows(graph, 5, seed=3)
    assert [y.shape for y in interpret(factored, table).values()] == [y.shape for y in interpret(graph, table).values()]


@settings(derandomize=True, deadline=None, max_examples=20)
@given(testing.graphs(), st.sampled_from([0.0, 0.02, None]))
def test_random_graphs_stay_valid_and_within_the_budget(graph, budget):
    graph = tidy(graph)
    rows = testing.rows(graph, 80)
    found = verify(prune(graph, rows, keep=0.5, narrowest=17) if budget is None else prune(graph, rows, budget, narrowest=2))
    if budget is not None:
        assert Judge(graph, {k: v[3::4] for k, v in rows.items()}).loss(found) <= budget + 1e-6


def test_what_cannot_be_meant_is_refused():
    rng = np.random.default_rng(6)
    graph = two_layers(rng.normal(size=(64, 20)), rng.normal(size=64), rng.normal(size=(7, 64)))
    with pytest.raises(RecipeError, match=r'^step Prune has keep 0\.0\. Use "auto" or a part of each layer above 0 and at most 1$'):
        Prune(keep=0.0)
    with pytest.raises(RecipeError, match=r"^10 calibration rows are too few to prune by; 64 are the least"):
        prune(graph, rows_of_x(10, 20, rng))
