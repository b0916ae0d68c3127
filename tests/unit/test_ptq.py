"""Int8 of linears: close to float within what its scales allow, exact where it must be, and right on layers made hard on purpose."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish import testing
from burnish.errors import RecipeError
from burnish.graph.interpret import interpret, interpret_request
from burnish.graph.node import Graph, Node, input_node, weight
from burnish.graph.ops import Op
from burnish.graph.verify import verify
from burnish.inputs import Input
from burnish.passes.factor import factor_request
from burnish.passes.tidy import tidy
from burnish.quantize import affine, ptq
from burnish.quantize.observe import observe
from burnish.quantize.sensitivity import frontier, layers, sensitivity
from burnish.recipe import apply, recipe

CHOICE = {"ranges": "min-max", "migration": 0.0, "rounding": "nearest", "bias_correction": False}
NAIVE = {**CHOICE, "loss": 1.0}
SMALL = {"dcn_v2": {"ids": 8, "deep": (96, 48)}, "dlrm": {"ids": 8, "bottom": (64, 32), "top": (64, 32)}}


def linear(x: Node, outputs: int, rng: np.random.Generator, name: str = "w") -> Node:
    w = rng.normal(0, x.shape[-1] ** -0.5, (outputs, x.shape[-1])).astype(np.float32)
    return Node(Op.LINEAR, (x, weight(name, w), weight(f"{name}.b", rng.normal(0, 0.1, outputs).astype(np.float32))))


def one_linear(k: int = 24, outputs: int = 16, seed: int = 0) -> Graph:
    x = Input("x", "float32", (k,))
    return Graph([x], {"y": linear(input_node(x), outputs, np.random.default_rng(seed))})


def decibels(exact: np.ndarray, changed: np.ndarray) -> float:
    return float(10 * np.log10(np.var(exact) / np.mean((changed - exact) ** 2)))


def mlp(widths: list[int], rng: np.random.Generator) -> Graph:
    x = Input("x", "float32", (widths[0],))
    value = input_node(x)
    for i, width in enumerate(widths[1:]):
        value = Node(Op.RELU, (linear(value, width, rng, f"w{i}"),))
    return Graph([x], {"y": value})


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=5),
    st.integers(16, 60),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.floats(0.01, 100),
    st.integers(0, 999),
)
def test_a_quantized_network_is_as_close_to_the_float_one_as_its_scales_allow(widths, rows, migration, spread, seed):
    """On the calibration rows nothing is clipped by more than a step: each linear adds at most one step a weight, half a step an input."""
    rng = np.random.default_rng(seed)
    graph = mlp(widths, rng)
    x = (rng.normal(0, spread, (rows, widths[0])) * rng.uniform(0.01, 1, widths[0])).astype(np.float32)
    int8 = verify(ptq.int8(graph, {"x": x}, **{**NAIVE, "migration": migration}, narrowest=1))
    bound = np.zeros((rows, widths[0]))
    value = x
    for float_node, node in zip((n for n in graph.order if n.op is Op.LINEAR), (n for n in int8.order if n.op is Op.QLINEAR)):
        w = float_node.inputs[1]["weight"].array.astype(np.float64)
        b = float_node.inputs[2]["weight"].array
        multiplier = node.inputs[0].inputs[1]["weight"].array.astype(np.float64)
        scale = node.inputs[2]["weight"].array.astype(np.float64)
        steps = (np.abs(value) + bound) * multiplier + 1  # bounds |q - zero_point|
        bound = bound @ np.abs(w).T + np.abs(w / multiplier).sum(axis=1) + steps.sum(axis=1, keepdims=True) * scale / 2
        value = value.astype(np.float64) @ w.T + b
        bound += 1e-5 * (np.abs(value) + bound + steps @ np.abs(w / multiplier).T)
        value = np.maximum(value, 0)
    assert (np.abs(interpret(int8, {"x": x})["y"] - value) <= bound).all()


@settings(derandomize=True, deadline=None, max_examples=40)
@given(testing.graphs(), st.sampled_from([0.0, 0.5, 1.0]))
def test_each_linear_of_a_random_graph_is_as_close_as_its_scales_allow(graph, migration):
    table = testing.rows(graph, 40)
    for choice in ptq.choose(graph, table, **{**CHOICE, "migration": migration}, narrowest=1):
        int8 = verify(ptq.quantized(graph, [choice]))
        (node,) = (node for node in int8.order if node.op is Op.QLINEAR)
        multiplier = choice.scheme.multiplier.astype(np.float64)
        w, scale = choice.linear.weight.astype(np.float64), node.inputs[2]["weight"].array.astype(np.float64)
        x = interpret(Graph(graph.inputs, {"x": choice.linear.value}), table)["x"]
        exact = interpret(Graph(graph.inputs, {"y": choice.linear.node}), table)["y"]
        steps = np.abs(x) * np.abs(multiplier) + 1
        bound = np.abs(w / multiplier).sum(axis=1) + steps.sum(axis=-1, keepdims=True) * scale / 2
        got = interpret(Graph(graph.inputs, {"y": node}), table)["y"]
        assert (np.abs(got - exact) <= bound + 1e-5 * (np.abs(exact) + steps @ np.abs(w / multiplier).T)).all()


@pytest.mark.parametrize("model", testing.MODELS)
@pytest.mark.parametrize("name", ["int8-tables", "bf16-tables"])
def test_the_rankers_everyone_knows_stay_themselves(model, name):
    """Random weights; noise of the scores against those of the graph as captured, and one request beside its candidates has the same."""
    graph = testing.MODELS[model](**SMALL.get(model, {}))
    changed = apply(graph, recipe(name), testing.rows(graph, 256))
    table = testing.one_request(graph, testing.rows(graph, 64, seed=1))
    exact, got = interpret(graph, table), interpret(changed, table)
    beside = interpret_request(changed, *testing.as_request(graph, table))
    for output, y in exact.items():
        assert decibels(y, got[output]) > 25
        assert np.allclose(beside[output], got[output], rtol=1e-3, atol=1e-4)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(8, 20), st.integers(1, 9), st.integers(8, 12), st.integers(1, 20), st.integers(0, 99))
def test_factoring_after_quantization_changes_no_bit(request, candidate, outputs, n, seed):
    rng = np.random.default_rng(seed)
    r, c = Input("r", "float32", (request,), side="request"), Input("c", "float32", (candidate,))
    x = Node(Op.CONCAT, (input_node(r), input_node(c)), axis=0)
    graph = Graph([r, c], {"y": linear(Node(Op.RELU, (linear(x, outputs, rng, "a"),)), 3, rng, "b"), "z": linear(x, 8, rng, "c")})
    rows = {"r": rng.normal(0, 5, (64, request)).astype(np.float32), "c": rng.normal(0, 0.1, (64, candidate)).astype(np.float32)}
    int8 = tidy(ptq.int8(graph, rows, narrowest=1))
    factored = verify(factor_request(int8))
    assert any(node.op is Op.QDOT and node.side == "request" for node in factored.order)
    one, many = {"r": rows["r"][0]}, {"c": rows["c"][:n]}
    plain = interpret(int8, {"r": np.repeat(rows["r"][:1], n, axis=0), "c": rows["c"][:n]})
    for name, scores in interpret_request(factored, one, many).items():
        assert scores.tobytes() == plain[name].tobytes()


def test_outlier_channels_break_naive_int8_and_not_ours():
    """A linear whose input has a few channels 100 times the rest, and whose output depends on all of them."""
    rng = np.random.default_rng(0)
    k, wide = 128, [3, 50, 77]
    graph = one_linear(k, 64)
    node = graph.outputs[0][1]
    w = node.inputs[1]["weight"].array.copy()
    w[:, wide] /= 100
    x = rng.normal(0, 1, (4000, k)).astype(np.float32)
    x[:, wide] *= 100
    graph = Graph(graph.inputs, {"y": Node(Op.LINEAR, (node.inputs[0], weight("w", w), node.inputs[2]))})
    exact = interpret(graph, {"x": x[2000:]})["y"]
    naive = interpret(ptq.int8(graph, {"x": x[:2000]}, **NAIVE), {"x": x[2000:]})["y"]
    ours = interpret(ptq.int8(graph, {"x": x[:2000]}), {"x": x[2000:]})["y"]
    assert decibels(exact, naive) < 6  # half of the output is noise
    assert decibels(exact, ours) > 35


def test_an_activation_with_a_long_tail_gets_a_narrower_range():
    graph, rng = one_linear(64, 64), np.random.default_rng(0)
    x = np.abs(rng.standard_t(3, (4000, 64))).astype(np.float32)
    for kind, most in (("percentile", 0.8), ("mse", 0.8)):
        (choice,) = ptq.choose(graph, {"x": x}, ranges=kind, migration=0.0)
        assert 255 / choice.scheme.multiplier < most * x.max()
        assert choice.scheme.zero_point == 0
    (best,) = ptq.choose(graph, {"x": x})
    assert all(best.error <= ptq.choose(graph, {"x": x}, ranges=kind)[0].error for kind in ptq.RANGES)


def test_after_relu_the_zero_point_is_zero_and_all_of_the_range_is_used():
    x = Input("x", "float32", (8,))
    graph = Graph([x], {"y": linear(Node(Op.RELU, (input_node(x),)), 8, np.random.default_rng(0))})
    rows = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    (choice,) = ptq.choose(graph, {"x": rows}, **CHOICE)
    assert choice.scheme.zero_point == 0
    assert affine.quantize(np.maximum(rows, 0), choice.scheme.multiplier, 0).max() == 255


def test_linears_that_read_the_same_value_share_its_quantization_unless_that_harms():
    rng = np.random.default_rng(0)
    x = Input("x", "float32", (32,))
    value = input_node(x)
    rows = (rng.normal(size=(500, 32)) * np.logspace(-1, 1, 32)).astype(np.float32)

    def quantizations(second: Node) -> int:
        int8 = ptq.int8(Graph([x], {"a": linear(value, 16, np.random.default_rng(1), "a"), "b": second}), {"x": rows})
        return sum(node.op is Op.QUANTIZE for node in int8.order)

    assert quantizations(linear(value, 24, rng, "b")) == 1
    small_only = np.where(np.arange(32) < 4, 1.0, 0.0) * rng.normal(size=(16, 32))  # hears the small channels alone: wants another range
    assert quantizations(Node(Op.LINEAR, (value, weight("b", small_only.astype(np.float32)), weight("z", np.zeros(16, np.float32))))) == 2


def test_bias_correction_takes_out_the_mean_error():
    graph, rng = one_linear(64, 32), np.random.default_rng(0)
    x = rng.exponential(1, (3000, 64)).astype(np.float32)  # clipped tails shift every output
    shifts = {}
    for corrected in (False, True):
        int8 = ptq.int8(graph, {"x": x}, ranges="percentile", migration=0.0, bias_correction=corrected)
        shifts[corrected] = np.abs((interpret(int8, {"x": x})["y"] - interpret(graph, {"x": x})["y"]).mean(axis=0)).mean()
    assert shifts[True] < shifts[False] / 3


def test_narrow_linears_and_skipped_ones_stay_float():
    graph = mlp([8, 16, 16, 1], np.random.default_rng(0))
    x = {"x": np.random.default_rng(1).normal(size=(32, 8)).astype(np.float32)}
    left = [node.inputs[1]["weight"].name for node in ptq.int8(graph, x, skip=("w1",), loss=1.0).order if node.op is Op.LINEAR]
    assert left == ["w1", "w2"]
    with pytest.raises(RecipeError, match=r"Int8 is to skip 'w9', and no linear has a weight of that name; there are w0, w1, w2"):
        ptq.int8(graph, x, skip=("w9",))


def test_a_float_init_becomes_an_addition():
    rng = np.random.default_rng(0)
    r, c = Input("r", "float32", (8,), side="request"), Input("c", "float32", (8,))
    node = linear(input_node(c), 16, rng)
    graph = Graph([r, c], {"y": node.with_inputs((*node.inputs, linear(input_node(r), 16, rng, "r")))})
    rows = {name: rng.normal(size=(64, 8)).astype(np.float32) for name in "rc"}
    int8 = verify(ptq.int8(graph, rows))
    assert sum(node.op is Op.QLINEAR for node in int8.order) == 2
    assert decibels(interpret(graph, rows)["y"], interpret(int8, rows)["y"]) > 30


def test_one_row_a_time_and_deeper_values_quantize_alike():
    rng = np.random.default_rng(0)
    x = Input("x", "float32", (3, 8))
    graph = Graph([x], {"y": linear(input_node(x), 16, rng)})
    rows = rng.normal(size=(40, 3, 8)).astype(np.float32)
    int8 = ptq.int8(graph, {"x": rows})
    whole = interpret(int8, {"x": rows})["y"]
    assert whole.shape == (40, 3, 16)
    assert all((interpret(int8, {"x": rows[i : i + 1]})["y"] == whole[i]).all() for i in range(40))
    assert decibels(interpret(graph, {"x": rows})["y"], whole) > 30


def test_channels_that_never_move_are_harmless():
    graph = one_linear(8, 8)
    x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    x[:, :7] = 0
    for rows in (x, np.zeros_like(x)):
        for migration in ("auto", 0.5, 1.0):
            y = interpret(ptq.int8(graph, {"x": rows}, migration=migration), {"x": rows})["y"]
            assert np.allclose(y, interpret(graph, {"x": rows})["y"], atol=0.05)


def test_a_sum_that_may_leave_32_bits_is_refused():
    k = 70_000
    w = weight("w", np.ones((8, k), np.float32))
    x = Input("x", "float32", (k,))
    graph = Graph([x], {"y": Node(Op.LINEAR, (input_node(x), w, weight("b", np.zeros(8, np.float32))))})
    with pytest.raises(RecipeError, match=r"linear 'w' sums 70,000 products, which may leave 32 bits in int8\. Give Int8 skip=\('w',\)"):
        ptq.int8(graph, {"x": np.ones((16, k), np.float32)}, **NAIVE)


def scored(widths: list[int], rng: np.random.Generator) -> Graph:
    """An mlp whose last linear has one output."""
    graph = mlp(widths, rng)
    return Graph(graph.inputs, {"y": linear(graph.outputs[0][1], 1, rng, "head")})


def test_the_guilty_layer_is_named_first():
    """Of three linears the first reads channels of very different width; quantized naively it must lead the list, by far."""
    rng = np.random.default_rng(0)
    graph = scored([32, 32, 32, 8], rng)
    x = {"x": (rng.normal(size=(1000, 32)) * np.where(np.arange(32) < 2, 50, 1)).astype(np.float32)}
    naive = sensitivity(graph, x, **CHOICE)
    assert naive[0].name == "w0" and naive[0].loss > 3 * naive[1].loss and naive[0].macs == 1024
    ours = {layer.name: layer for layer in sensitivity(graph, x)}
    assert ours["w0"].loss < naive[0].loss / 3 and not any(layer.kept for layer in ours.values())


def test_what_int8_did_is_told_of_each_linear_of_those_it_left_too():
    rng = np.random.default_rng(0)
    graph = scored([32, 32, 32, 8], rng)
    x = {"x": (rng.normal(size=(1000, 32)) * np.where(np.arange(32) < 2, 50, 1)).astype(np.float32)}
    told = {layer.name: layer for layer in layers(graph, ptq.int8(graph, x, skip=("w1",)), x)}
    assert {name for name, layer in told.items() if layer.kept} == {"w1"}
    for layer in sensitivity(graph, x):
        assert told[layer.name].loss == pytest.approx(layer.loss, rel=0.2) and told[layer.name].macs == layer.macs


def test_the_frontier_goes_from_all_int8_to_all_float():
    rng = np.random.default_rng(0)
    graph = scored([32, 32, 32, 8], rng)
    x = {"x": (rng.normal(size=(1000, 32)) * np.where(np.arange(32) < 2, 50, 1)).astype(np.float32)}
    points = frontier(graph, x, **CHOICE)
    assert [len(point.kept) for point in points] == [0, 1, 2, 3] and points[1].kept == ("w0",)
    assert points[0].time == 0.25 and points[-1].time == 1 and points[-1].loss == 0
    assert points[1].loss < points[0].loss / 3
    cheapest = next(point for point in points if point.loss <= points[0].loss / 2)
    left = {node.inputs[1]["weight"].name for node in ptq.int8(graph, x, loss=points[0].loss / 2, **CHOICE).order if node.op is Op.LINEAR}
    assert left == {"head", *cheapest.kept}


def test_settled_ranges_end_the_reading_and_the_order_of_the_rows_does_not_matter(monkeypatch):
    graph = one_linear()
    x = np.random.default_rng(0).normal(size=(40_000, 24)).astype(np.float32)
    seen = observe(graph, [ptq.linears(graph)[0].value], {"x": x})
    assert seen.settled and 4096 <= seen.rows < 20_000
    by_size = x[np.argsort(np.abs(x).sum(axis=1))]
    again = observe(graph, [ptq.linears(graph)[0].value], {"x": by_size})
    assert again.settled and again.rows < 20_000
    assert again[ptq.linears(graph)[0].value].largest.mean() > 0.9 * np.abs(x).max(axis=0).mean()
    tail = np.random.default_rng(0).standard_cauchy((40_000, 24)).astype(np.float32)
    wild = observe(graph, [ptq.linears(graph)[0].value], {"x": tail})
    assert not wild.settled and wild.rows == 40_000
    few = observe(graph, [ptq.linears(graph)[0].value], {"x": x[:3000]})
    assert not few.settled and few.rows == 3000


@pytest.mark.parametrize("ranges", ["min-max", "percentile", "mse", "entropy"])
@pytest.mark.parametrize("migration", [0.0, 1.0])
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_calibrator_works_per_tensor_and_per_channel_symmetric_or_not(ranges, migration, symmetric):
    graph, rng = one_linear(24, 16), np.random.default_rng(3)
    x = {"x": np.maximum(rng.normal(size=(3000, 24)), -0.5).astype(np.float32)}
    (choice,) = ptq.choose(graph, x, ranges=ranges, migration=migration, symmetric=symmetric)
    assert choice.scheme.multiplier.shape == ((24,) if migration else ())
    assert (choice.scheme.zero_point == 128) == symmetric
    exact, got = (interpret(g, x)["y"] for g in (graph, ptq.quantized(graph, [choice])))
    assert decibels(exact, got) > 25


def test_entropy_gives_up_a_long_tail_for_its_levels():
    graph, rng = one_linear(24, 16), np.random.default_rng(3)
    x = {"x": np.concatenate([rng.normal(size=(3000, 24)), rng.normal(size=(3, 24)) * 10]).astype(np.float32)}
    one, widest = (ptq.choose(graph, x, ranges=kind, migration=0.0)[0].scheme.multiplier for kind in ("entropy", "min-max"))
    assert one > 1.5 * widest


def test_a_linear_that_would_spoil_the_scores_stays_float():
    """Every row's output hangs on one small channel beside a huge one, and migration is forbidden."""
    rng = np.random.default_rng(0)
    graph = mlp([16, 16, 8], rng)
    first = next(node for node in graph.order if node.op is Op.LINEAR)
    w = first.inputs[1]["weight"].array.copy()
    w[:, 0] = 0
    spoiled = graph.map(lambda node, operands: weight("w0", w) if node is first.inputs[1] else node.with_inputs(operands))
    x = rng.normal(size=(500, 16)).astype(np.float32)
    x[:, 0] *= 500
    kept = ptq.int8(spoiled, {"x": x}, loss=0.01, **CHOICE)
    assert [node.inputs[1]["weight"].name for node in kept.order if node.op is Op.LINEAR] == ["w0"]
    assert all(node.op is not Op.LINEAR for node in ptq.int8(spoiled, {"x": x}, **NAIVE).order)
    assert all(node.op is not Op.LINEAR for node in ptq.int8(spoiled, {"x": x}, loss=0.01).order)  # what migration is for


def test_rare_values_are_not_clipped_for_a_little_less_error():
    """One row in 400 is 30 times the rest: clipping it would look good on few rows, and ruin that row."""
    graph, rng = one_linear(64, 64), np.random.default_rng(0)
    x = rng.normal(size=(8000, 64)).astype(np.float32)
    x[::400] *= 30
    (choice,) = ptq.choose(graph, {"x": x})
    assert choice.scheme.ranges == "min-max"
    exact, got = (interpret(g, {"x": x[::400]})["y"] for g in (graph, ptq.quantized(graph, [choice])))
    assert decibels(exact, got) > 30


def test_int4_weights_are_minus_7_to_7_and_searching_their_range_pays():
    graph, x = one_linear(64, 32), np.random.default_rng(1).normal(size=(500, 64)).astype(np.float32)
    (choice,) = ptq.choose(graph, {"x": x}, weight_bits=4, rounding="nearest")
    assert (choice.q.min(), choice.q.max()) == (-7, 7)
    w = (choice.linear.weight / choice.scheme.multiplier.astype(np.float64)).astype(np.float32)
    plain, scale = affine.quantize_rows(w, ptq.largest(4))
    lost = [float(np.mean((q * s[:, None] - w) ** 2)) for q, s in ((plain, scale), (choice.q, choice.scale))]
    assert lost[1] < 0.95 * lost[0]
    (better,) = ptq.choose(graph, {"x": x}, weight_bits=4)
    assert np.abs(better.q).max() <= 7 and better.error <= choice.error


def test_bias_correction_hears_a_rectified_neuron_only_where_it_is_on():
    """Rows of which most switch the neurons off, by a wide channel: the error they have there is large, and nobody reads it."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(4000, 16)).astype(np.float32)
    rows[:, 0] = np.where(random.random(4000) < 0.9, 8, 0)
    w = random.normal(0, 0.3, (32, 16)).astype(np.float32)
    w[:, 0] = -1 - random.random(32) * 0.2
    x = Input("x", "float32", (16,))
    hidden = Node(Op.LINEAR, (input_node(x), weight("w", w), weight("b", np.zeros(32, np.float32))))
    graph = Graph([x], {"y": Node(Op.RELU, (hidden,))})
    options = {**CHOICE, "weight_bits": 4}
    exact = interpret(graph, {"x": rows})["y"]

    def error(bias_correction: bool) -> float:
        choices = ptq.choose(graph, {"x": rows}, **options | {"bias_correction": bias_correction})
        assert choices[0].linear.rectified
        return float(np.mean((interpret(ptq.quantized(graph, choices), {"x": rows})["y"] - exact) ** 2))

    assert error(True) < error(False)
