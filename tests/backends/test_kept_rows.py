"""A table whose rows are kept once is read through a clamp or a map of its ids, on every backend alike."""

import numpy as np
import pytest

import burnish
from burnish.backends.table import backend as of
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, weight
from burnish.graph.ops import Op
from burnish.inputs import Input
from burnish.passes.embedding import embedding
from burnish.recipe import Recipe

ROWS = 3000


@pytest.mark.parametrize("backend", ["native", "onnxruntime", "openvino"])
@pytest.mark.parametrize("same", ["at the end", "scattered"])
def test_every_id_finds_its_row(backend, same):
    if of(backend).missing():
        pytest.skip(of(backend).missing())
    random = np.random.default_rng(0)
    array = random.normal(size=(ROWS, 16)).astype(np.float32)
    array[np.arange(1000, ROWS) if same == "at the end" else random.permutation(ROWS)[:2000]] = 0
    spec = Input("ids", "int64", (4,), cardinality=ROWS)
    graph = Graph([spec], {"y": Node(Op.LOOKUP, (weight("t", array), input_node(spec)))})
    ids = random.integers(0, ROWS, (64, 4))
    smaller = embedding(graph)
    assert sum(held.nbytes for held in smaller.weights.values()) < 0.42 * array.nbytes
    with burnish.Scorer(burnish.compile(smaller, Recipe(backend=backend), {"ids": ids})) as scorer:
        np.testing.assert_array_equal(scorer.rows({"ids": ids}), interpret(graph, {"ids": ids})["y"])
