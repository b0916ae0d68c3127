"""The suite that every backend must pass: subclass it, name the backend in one fixture, say what it refuses.

    class TestOnnxRuntime(BackendCases):
        refused = {"linear in bfloat16": "no bfloat16 linear"}

        @pytest.fixture
        def backend(self):
            return OnnxRuntime()

The reference is graph/interpret.py. Needs pytest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import burnish
from burnish.backends.table import Backend, Engine
from burnish.errors import BuildError
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph
from burnish.host import Host
from burnish.recipe import FactorRequest, Int8, Recipe, apply, recipe
from burnish.runtime.artifact import Artifact, difference
from burnish.testing.builders import as_request, one_request, rows
from burnish.testing.cases import model_cases, op_cases
from burnish.testing.random_graphs import random_graph

BATCHES = (1, 2, 37, 128)
MODELS = model_cases()
HALF = ("linear in bfloat16", "linear in float16")


class BackendCases:
    refused: ClassVar[Mapping[str, str]] = {}  # op cases that BuildError refuses -> what it says, as a regular expression
    alone: ClassVar[tuple[str, ...]] = ()  # op cases that spoil others in the same graph, by a fault of the engine
    models: ClassVar[tuple[str, ...]] = tuple(MODELS)
    seeds: ClassVar[range] = range(8)  # of random graphs
    # the largest and the mean difference, relative to the larger of 1 and the largest value: another order of sums; and where such a
    # difference moves a value across a rounding tie of a QUANTIZE, the step that follows from it
    float_bound: ClassVar[tuple[float, float]] = (1e-5, 1e-6)
    int8_bound: ClassVar[tuple[float, float]] = (1e-2, 1e-4)
    half_bound: ClassVar[tuple[float, float]] = (2e-2, 5e-3)  # some keep more of a model in half precision than its linears

    @pytest.fixture
    def backend(self) -> Backend:
        raise NotImplementedError("a subclass of BackendCases has a fixture `backend`")

    @pytest.fixture(autouse=True)
    def installed(self, backend: Backend) -> None:
        absent = backend.missing()
        if absent:
            pytest.skip(absent)

    def test_each_op_agrees_with_the_interpreter(self, backend: Backend, tmp_path: Path) -> None:
        """One graph of all cases, each an output; the message names those that differ."""
        cases = {name: graph for name, graph in op_cases().items() if name not in (*self.refused, *self.alone, *HALF)}
        outputs = {f"{name}: {key}": node for name, graph in cases.items() for key, node in graph.outputs}
        inputs = {spec.name: spec for graph in cases.values() for spec in graph.inputs}
        whole = Graph(inputs.values(), outputs)
        with opened(backend, whole, tmp_path) as engine:
            for n in BATCHES[:3]:
                table = rows(whole, n, seed=n)
                got, want = engine.rows(table, n), interpret(whole, table)
                wrong = {name: difference(got[name], want[name]) for name in want}
                wrong = {name: found for name, found in wrong.items() if not found[0] <= self.float_bound[0]}
                assert not wrong, f"batch {n}: {wrong}"
                assert [got[name].shape for name in want] == [value.shape for value in want.values()]

    def test_ops_that_need_a_graph_of_their_own_agree_with_the_interpreter(self, backend: Backend, tmp_path: Path) -> None:
        for name in (*HALF, *self.alone):
            if name not in self.refused:
                graph, bound = op_cases()[name], self.half_bound if name in HALF else self.float_bound
                with opened(backend, graph, tmp_path / name) as engine:
                    self.agree(engine.rows(table := rows(graph, 37), 37), interpret(graph, table), name, bound)

    def test_what_it_cannot_express_is_refused_by_name(self, backend: Backend, tmp_path: Path) -> None:
        for i, (name, sentence) in enumerate(self.refused.items()):
            with pytest.raises(BuildError, match=sentence):
                backend.build(op_cases()[name], Host.here(), tmp_path / str(i))

    def test_models_agree_with_the_interpreter_at_every_batch_as_rows_and_as_a_request(self, backend: Backend, tmp_path: Path) -> None:
        for name in self.models:
            graph = MODELS[name]
            with opened(backend, graph, tmp_path / name) as engine:
                for n in (37, 1, 128, 2):
                    table = rows(graph, n, seed=n)
                    self.agree(engine.rows(table, n), interpret(graph, table), f"{name}, {n} rows")
                    table = one_request(graph, table)
                    request, candidates = (contiguous(part) for part in as_request(graph, table))
                    self.agree(engine.request(request, candidates, n), interpret(graph, table), f"{name}, {n} candidates")

    def test_random_graphs_agree_with_the_interpreter(self, backend: Backend, tmp_path: Path) -> None:
        for seed in self.seeds:
            graph = random_graph(seed)
            with opened(backend, graph, tmp_path / str(seed)) as engine:
                for n in BATCHES[:3]:
                    table = rows(graph, n, seed=n)
                    self.agree(engine.rows(table, n), interpret(graph, table), f"seed {seed}, {n} rows")

    def test_int8_models_agree_with_the_interpreter(self, backend: Backend, tmp_path: Path) -> None:
        for name in self.models:
            graph = MODELS[name]
            small = Recipe((Int8(ranges="min-max", migration=0.5, narrowest=4),))
            for how, chosen in (("int8", small), ("factored int8", recipe("int8"))):
                if how == "factored int8":
                    chosen = Recipe((*small.steps, FactorRequest()))
                changed = apply(graph, chosen, rows(graph, 200, seed=3))
                with opened(backend, changed, tmp_path / how / name) as engine:
                    table = one_request(graph, rows(graph, 37, seed=4))
                    want = interpret(changed, table)
                    request, candidates = (contiguous(part) for part in as_request(graph, table))
                    self.agree(engine.rows(table, 37), want, f"{how} {name}", self.int8_bound)
                    self.agree(engine.request(request, candidates, 37), want, f"{how} {name}, a request", self.int8_bound)

    def test_an_artifact_scores_the_same_after_it_was_saved_and_loaded(self, backend: Backend, tmp_path: Path) -> None:
        graph = MODELS["dcn_v2"]
        artifact = self.compile(graph, backend).save(tmp_path / "ranker")
        artifact.verify()
        with burnish.load(tmp_path / "ranker", verify=True) as scorer:
            for n in BATCHES:
                table = one_request(graph, rows(graph, n, seed=n))
                scores, want = np.asarray(scorer.rows(table)), interpret(graph, table)
                self.agree({"score": scores}, want, f"the loaded artifact, {n} rows")
                self.agree({"score": np.asarray(scorer(*as_request(graph, table)))}, want, f"the loaded artifact, {n} candidates")
                np.testing.assert_array_equal(scorer.rows(table), scores)

    def compile(self, graph: Graph, backend: Backend) -> Artifact:
        """By the backend's name, as a user would."""
        return burnish.compile(graph, Recipe(backend=backend.name))

    def agree(
        self, got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], where: str, bound: tuple[float, float] | None = None
    ) -> None:
        """Every output within the bound, of the right shape and dtype."""
        bound = bound or self.float_bound
        assert set(got) == set(want), where
        for name, value in want.items():
            assert got[name].shape == value.shape and got[name].dtype == value.dtype, f"{where}, {name}"
            worst, mean = difference(got[name], value)
            assert worst <= bound[0] and mean <= bound[1], f"{where}, {name}: {worst:.2g} at most, {mean:.2g} on average; allowed {bound}"


@contextmanager
def opened(backend: Backend, graph: Graph, out: Path) -> Iterator[Engine]:
    """The engine of a graph built under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    program = backend.build(graph, Host.here(), out)
    assert all((out / name).is_file() for name in program.files)
    engine = backend.open(out, program, graph.inputs, 1)
    try:
        yield engine
    finally:
        engine.close()


def contiguous(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What a scorer passes on: arrays, C-contiguous, scalars as arrays of shape ()."""
    return {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
