"""The model as it came: from a live module, a saved program, and a function in a file."""

from __future__ import annotations

import numpy as np
import pytest

import burnish
from burnish.backends.eager import Eager
from burnish.capture import load_model
from burnish.errors import BuildError
from burnish.graph.interpret import interpret
from burnish.recipe import Recipe
from burnish.testing import dcn_v2, rows
from burnish.testing.backend_cases import BackendCases

torch = pytest.importorskip("torch", reason="torch is not installed")

RANKER = '''
import torch


class Ranker(torch.nn.Module):
    """Arguments in another order than a table's, two outputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(50, 6)
        self.top = torch.nn.Linear(6 + 3, 2)

    def forward(self, item, dense):
        y = self.top(torch.cat([self.table(item), dense], 1))
        return {"click": torch.sigmoid(y[:, 0]), "buy": torch.sigmoid(y[:, 1])}


def load():
    return Ranker()
'''


def to_torch(graph):
    from burnish.graph.to_torch import to_torch as twin  # imports torch

    return twin(graph)


class Twin(Eager):
    """Eager on the torch twin of whatever graph is asked for."""

    def build(self, graph, host, out, threads=1):
        self.source = to_torch(graph)
        return super().build(graph, host, out, threads)


class TestEager(BackendCases):
    models = ("mmoe",)
    seeds = range(3)

    @pytest.fixture
    def backend(self):
        return Twin()

    test_each_op_agrees_with_the_interpreter = test_int8_models_agree_with_the_interpreter = None  # what runs is the twin: its own tests

    def compile(self, graph, backend):
        return burnish.compile(graph, Recipe(backend="eager"), source=to_torch(graph))


@pytest.fixture
def ranker(tmp_path):
    path = tmp_path / "ranker.py"
    path.write_text(RANKER)
    inputs = [burnish.Input("item", "int64", cardinality=50), burnish.Input("dense", "float32", (3,), "request")]
    return f"{path}:load", burnish.capture(f"{path}:load", inputs)


@pytest.mark.parametrize("how", ["file", "module", "program", "pt2"])
def test_the_model_is_scored_as_it_came(ranker, how, tmp_path):
    spec, graph = ranker
    source = spec
    if how != "file":
        source = load_model(spec).eval()
    if how in ("program", "pt2"):
        example = (torch.zeros(4, dtype=torch.int64), torch.zeros(4, 3))
        batch = torch.export.Dim("batch", min=1)
        source = torch.export.export(source, example, dynamic_shapes=({0: batch}, {0: batch}))
    if how == "pt2":
        torch.export.save(source, tmp_path / "ranker.pt2")
        source = tmp_path / "ranker.pt2"
    artifact = burnish.compile(graph, "original", backend="eager", source=source).save(tmp_path / "out")
    for n in (1, 2, 37):
        table = rows(graph, n, seed=n)
        with burnish.load(artifact.path) as scorer:
            scores = scorer.rows(table)
        for name, want in interpret(graph, table).items():
            np.testing.assert_allclose(scores[name], want.reshape(n), atol=1e-6)


SQUEEZES = """
import torch


class Squeezes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.top = torch.nn.Linear(3, 1)

    def forward(self, x):
        y = self.top(x).squeeze()
        return y{more}


def load():
    return Squeezes()
"""


@pytest.mark.parametrize("more", ["", " * torch.ones_like(y)[:len(y)]"])
def test_a_model_that_loses_a_batch_of_one_still_scores_it(more, tmp_path):
    """The first gives a score without rows, the second fails on it."""
    path = tmp_path / "squeezes.py"
    path.write_text(SQUEEZES.replace("{more}", more))
    graph = burnish.capture(f"{path}:load", [burnish.Input("x", "float32", (3,))])
    table = rows(graph, 1)
    with burnish.Scorer(burnish.compile(graph, "original", backend="eager", source=f"{path}:load")) as scorer:
        np.testing.assert_allclose(scorer.rows(table), interpret(graph, table)["score"].reshape(1), atol=1e-6)


def test_the_model_itself_must_be_given(ranker):
    with pytest.raises(
        BuildError, match=r"^the backend eager runs the model as it came, which it was not given\. Give compile the model: source="
    ):
        burnish.compile(ranker[1], "original", backend="eager")


def test_a_recipe_with_steps_is_not_the_model_as_it_came(ranker):
    with pytest.raises(BuildError, match=r"takes the recipe original; met Tidy > Embeddings"):
        burnish.compile(ranker[1], "fp32", backend="eager", source=ranker[0])


def test_another_model_than_the_graph_is_noticed(ranker):
    other = to_torch(dcn_v2(2, 2, 2, 1, (3,), seed=1))
    with pytest.raises(BuildError, match="eager does not compute what the graph says: output 'score'"):
        burnish.compile(dcn_v2(2, 2, 2, 1, (3,), seed=2), "original", backend="eager", source=other)


def test_an_onnx_file_is_sent_elsewhere(ranker):
    with pytest.raises(BuildError, match=r"runs PyTorch models, met 'm\.onnx'\. Run an \.onnx as it came with the backend onnxruntime"):
        burnish.compile(ranker[1], "original", backend="eager", source="m.onnx")


def test_a_program_with_a_largest_batch_scores_more_rows_in_parts(tmp_path):
    model = torch.nn.Linear(3, 1)
    most = torch.export.Dim("rows", max=150)
    program = torch.export.export(model, (torch.zeros(4, 3),), dynamic_shapes=({0: most},))
    torch.export.save(program, tmp_path / "ranker.pt2")
    graph = burnish.capture(program, [burnish.Input("input", shape=(3,))])
    artifact = burnish.compile(graph, Recipe(name="original"), backend="eager", source=tmp_path / "ranker.pt2")
    scorer = burnish.load(artifact.path)
    table = rows(graph, 400)
    with torch.no_grad():
        np.testing.assert_array_equal(scorer.rows(table), model(torch.from_numpy(table["input"])).numpy()[:, 0])
