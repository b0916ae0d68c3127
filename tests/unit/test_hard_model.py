"""A layer with outlier channels a hundred times the rest: naive int8 fails the gate, and Int8 passes it without training or settings."""

from itertools import pairwise

import numpy as np

from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, weight
from burnish.graph.ops import Op
from burnish.inputs import Input
from burnish.measure.quality import compare, gate
from burnish.recipe import FactorRequest, apply, recipe

X = Input("x", "float32", (24,))
WIDTHS = (24, 96, 48, 1)


def mlp(outliers: int, times: float = 100.0) -> Graph:
    """A net of ReLUs that scores AUC 0.8 of its own labels; `outliers` neurons of its first layer are `times` as large, and what reads them
    is divided by as much."""
    random, x = np.random.default_rng(0), input_node(X)
    scale = np.ones(WIDTHS[1])
    scale[:outliers] = times
    for i, (k, n) in enumerate(pairwise(WIDTHS)):
        w, b = random.normal(0, (2 / k) ** 0.5, (n, k)), random.normal(0, 0.1, n)
        if i == 0:
            w, b = w * scale[:, None], b * scale
        if i == 1:
            w = w / scale
        x = Node(Op.LINEAR, (x, weight(f"w{i}", w.astype(np.float32)), weight(f"b{i}", b.astype(np.float32))))
        x = Node(Op.RELU, (x,)) if n > 1 else Node(Op.SIGMOID, (x,))
    return Graph([X], {"score": x})


def verdict(graph: Graph, name: str) -> str:
    random = np.random.default_rng(1)
    calibration, fresh = ({"x": random.normal(size=(n, 24)).astype(np.float32)} for n in (2000, 20_000))
    original = interpret(graph, fresh)["score"].ravel()
    labels = (random.random(len(original)) < original).astype(np.float32)
    changed = apply(graph, recipe(name).without(FactorRequest), calibration)
    return gate(compare(labels, original, interpret(changed, fresh)["score"].ravel()), max_drop=0.001).outcome


def test_naive_int8_fails_on_outlier_channels_and_ours_passes_without_training():
    hard = mlp(outliers=4)
    assert verdict(hard, "int8-naive") == "rejected"
    assert verdict(hard, "int8") == "accepted"


def test_what_is_hard_about_it_is_the_outliers():
    assert verdict(mlp(outliers=0), "int8-naive") == "accepted"
