"""Low rank: what is of low rank on real rows is found, nothing else is touched, and what is lost is what was allowed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish import testing
from burnish.errors import InputError, RecipeError
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, weight
from burnish.graph.ops import Op
from burnish.graph.show import cost
from burnish.graph.verify import verify
from burnish.inputs import Input
from burnish.passes.evidence import Judge, expected_auc, macs, moments, score_loss
from burnish.passes.factor import factor_request
from burnish.passes.lowrank import factored, factors, low_rank
from burnish.passes.tidy import tidy
from burnish.recipe import LowRank

SMALL = {"dcn_v2": {"ids": 10, "deep": (128, 64)}, "dlrm": {"ids": 8, "bottom": (128, 64), "top": (128, 64)}}


def linear(x: Node, w: np.ndarray, b: np.ndarray | None = None, name: str = "w") -> Node:
    b = np.zeros(len(w)) if b is None else b
    return Node(Op.LINEAR, (x, weight(name, w.astype(np.float32)), weight(f"{name}.b", b.astype(np.float32))))


def one_linear(w: np.ndarray, b: np.ndarray | None = None, sides: object = "candidate") -> Graph:
    x = Input("x", "float32", (w.shape[1],), sides)
    return Graph([x], {"y": linear(input_node(x), w, b)})


def linears(graph: Graph) -> list[tuple[int, ...]]:
    return [node.inputs[1].shape for node in graph.order if node.op is Op.LINEAR]


@pytest.mark.parametrize("rank", [1, 7, 16])
def test_a_planted_low_rank_linear_is_found_and_factored_exactly(rank):
    rng = np.random.default_rng(rank)
    w, b = rng.normal(size=(96, rank)) @ rng.normal(size=(rank, 80)), rng.normal(size=96)
    graph, x = one_linear(w, b), {"x": rng.normal(2, 3, (400, 80)).astype(np.float32)}
    found = verify(low_rank(graph, x, loss=0))
    assert linears(found) == [(16, 80), (96, 16)]
    new = {"x": rng.normal(-1, 5, (50, 80)).astype(np.float32)}  # W itself is of low rank, so any row is exact
    np.testing.assert_allclose(interpret(found, new)["y"], interpret(graph, new)["y"], rtol=1e-4, atol=1e-3)


def test_a_linear_of_full_rank_on_inputs_of_low_rank_is_factored_too():
    """Plain SVD of W sees nothing to gain here."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(12, 80))
    x = {"x": (rng.normal(size=(400, 12)) @ basis + rng.normal(size=80)).astype(np.float32)}  # a mean outside the span
    graph = one_linear(rng.normal(size=(96, 80)), rng.normal(size=96))
    found = low_rank(graph, x, loss=0)
    assert linears(found) == [(16, 80), (96, 16)]
    np.testing.assert_allclose(interpret(found, x)["y"], interpret(graph, x)["y"], rtol=1e-4, atol=1e-3)


def test_with_no_budget_a_linear_of_full_rank_is_left():
    rng = np.random.default_rng(1)
    graph = one_linear(rng.normal(size=(96, 80)))
    assert low_rank(graph, {"x": rng.normal(size=(400, 80)).astype(np.float32)}, loss=0).outputs == graph.outputs


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(32, 60), st.integers(32, 60), st.integers(1, 15), st.integers(0, 99))
def test_no_factors_of_that_rank_are_nearer_on_the_rows_than_the_chosen(n, k, rank, seed):
    """Eckart-Young on W C^(1/2), and the bias takes the mean error away."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(300, k)) * rng.uniform(0.05, 3, k) + rng.normal(size=k)
    w = rng.normal(size=(n, k))
    graph, rows = one_linear(w), {"x": x.astype(np.float32)}
    (each,) = factors(graph, rows)
    error = interpret(factored(graph, {each: rank}), rows)["y"] - interpret(graph, rows)["y"]
    assert np.abs(error.mean(axis=0)).max() < 1e-4
    singular = np.linalg.svd((x - x.mean(axis=0)) @ w.T, compute_uv=False)
    np.testing.assert_allclose((error**2).sum(), (singular[rank:] ** 2).sum(), rtol=1e-3)
    u, s, v = np.linalg.svd(w)
    plain = x @ ((u[:, :rank] * s[:rank]) @ v[:rank]).T - x @ w.T
    assert (error**2).sum() <= ((plain - plain.mean(axis=0)) ** 2).sum() * 1.001
    assert each.error(rank) == pytest.approx((singular[rank:] ** 2).sum() / (singular**2).sum(), rel=1e-3, abs=1e-9)


def test_a_rank_or_an_error_may_be_given():
    rng = np.random.default_rng(3)
    x = {"x": (rng.normal(size=(400, 80)) * np.geomspace(1, 1e-3, 80)).astype(np.float32)}
    graph = one_linear(rng.normal(size=(96, 80)))
    assert linears(low_rank(graph, x, rank=8)) == [(8, 80), (96, 8)]
    assert linears(low_rank(graph, x, rank=60)) == [(96, 80)]  # no cheaper
    (each,) = factors(graph, x)
    (down, _), _ = linears(low_rank(graph, x, error=0.01)), 0
    assert each.error(down[0]) <= 0.01 < each.error(down[0] - 16) if down[0] > 16 else each.error(16) <= 0.01
    assert linears(low_rank(graph, x, error=0)) == [(96, 80)]


def test_a_linear_cheap_for_a_candidate_is_left_whole():
    """70 of 80 inputs are the request's: factoring pays them once, so 10 x 96 products a candidate are less than 16 x (10 + 96)."""
    rng = np.random.default_rng(4)
    basis = rng.normal(size=(12, 80))
    x = {"x": (rng.normal(size=(400, 12)) @ basis).astype(np.float32)}
    graph = tidy(one_linear(rng.normal(size=(96, 80)), sides=["request"] * 70 + ["candidate"] * 10))
    assert low_rank(graph, x).outputs == graph.outputs
    even = tidy(one_linear(rng.normal(size=(96, 80)), sides=["request"] * 40 + ["candidate"] * 40))
    assert macs(low_rank(even, x)) < macs(even)


def test_the_first_factor_still_splits_into_request_and_candidate():
    graph = tidy(testing.dcn_v2(ids=8, deep=(64,), seed=2))
    found = low_rank(graph, testing.rows(graph, 400), rank=16)
    split = factor_request(found)
    assert cost(split).candidate.macs < cost(found).candidate.macs < cost(graph).candidate.macs
    once = [node for node in split.order if node.op is Op.LINEAR and node.side == "request"]
    assert any(node.inputs[1]["weight"].name.endswith("down.request") for node in once)
    testing.assert_same_function(found, split)


@pytest.mark.parametrize("name", testing.MODELS)
def test_every_ranker_shrinks_within_the_budget(name):
    graph = tidy(testing.MODELS[name](**SMALL.get(name, {})))
    rows = testing.rows(graph, 600, seed=1)
    found = verify(low_rank(graph, rows, loss=0.01))
    assert found.inputs == graph.inputs
    assert macs(found) <= macs(graph)
    assert Judge(graph, {k: v[3::4] for k, v in rows.items()}).loss(found) <= 0.01 + 1e-6
    assert Judge(graph, testing.rows(graph, 600, seed=2)).loss(found) <= 0.03
    testing.assert_same_function(found, factor_request(found))


@settings(derandomize=True, deadline=None, max_examples=15)
@given(testing.graphs(), st.sampled_from([0.0, 0.01]))
def test_random_graphs_stay_valid_and_within_the_budget(graph, budget):
    graph = tidy(graph)
    rows = testing.rows(graph, 80)
    found = verify(low_rank(graph, rows, loss=budget, narrowest=2))
    assert Judge(graph, {k: v[3::4] for k, v in rows.items()}).loss(found) <= budget + 1e-6


def test_rows_that_cannot_serve_are_refused():
    rng = np.random.default_rng(5)
    graph = one_linear(rng.normal(size=(40, 40)))
    x = rng.normal(size=(80, 40)).astype(np.float32)
    with pytest.raises(RecipeError, match=r"^63 calibration rows are too few to prune by; 64 are the least\. Give ten thousand rows"):
        low_rank(graph, {"x": x[:63]})
    x[4, 1] = np.nan
    with pytest.raises(InputError, match=r"^calibration rows 0 to 59 make .* NaN or infinite\. Remove such rows"):
        low_rank(graph, {"x": x})


def test_a_step_that_cannot_be_meant_is_refused():
    with pytest.raises(RecipeError, match=r'^step LowRank has rank 0\. Use "auto" or a number of at least 1$'):
        LowRank(rank=0)
    with pytest.raises(RecipeError, match=r"^step LowRank has both rank and error\. Give one of them$"):
        LowRank(rank=8, error=0.1)


def test_moments_are_those_of_all_rows_whatever_the_batches():
    rng = np.random.default_rng(6)
    x = (rng.normal(size=(2500, 7)) @ rng.normal(size=(7, 7)) + 100).astype(np.float32)
    graph = one_linear(np.eye(7))
    node = graph.outputs[0][1].inputs[0]
    of = moments(graph, [node], {"x": x})[node]
    np.testing.assert_allclose(of.mean, x.mean(axis=0, dtype=np.float64))
    np.testing.assert_allclose(of.covariance, np.cov(x.T.astype(np.float64), bias=True), rtol=1e-9, atol=1e-9)


def test_the_expected_auc_is_the_mean_over_drawn_labels():
    rng = np.random.default_rng(7)
    p = rng.uniform(0.05, 0.6, 300)
    s = np.round(p + rng.normal(0, 0.1, 300), 1)  # with ties
    labels = rng.random((3000, 300)) < p
    drawn = [((s[y][:, None] > s[~y]) + 0.5 * (s[y][:, None] == s[~y])).mean() for y in labels]
    assert expected_auc(p, s) == pytest.approx(np.mean(drawn), abs=0.003)
    assert expected_auc(p, p) > expected_auc(p, s)


def test_a_score_that_keeps_its_order_but_not_its_values_has_lost_something():
    s = np.random.default_rng(8).uniform(0, 1, 100)
    assert score_loss(s, s) == 0
    assert score_loss(s, s**3) > 0.001
    assert score_loss(np.ones(9), np.ones(9)) == 0
    assert score_loss(np.ones(9), np.zeros(9)) == np.inf
    assert score_loss(s, np.where(s > 0.5, np.nan, s)) == np.inf
