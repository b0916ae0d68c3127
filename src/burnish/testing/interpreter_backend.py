"""The interpreter as a backend: the smallest there can be, for tests and as the example in docs/adding_a_backend.md."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from burnish.backends.table import Arrays, Program
from burnish.graph.interpret import interpret, interpret_request
from burnish.graph.node import Graph
from burnish.host import Host
from burnish.inputs import Input

FILE = "program/interpreter/graph.pickle"


class Interpreter:
    name = "interpreter"

    def missing(self) -> str | None:
        return None  # numpy is always there

    def build(self, graph: Graph, host: Host, out: Path, threads: int = 1) -> Program:
        (out / FILE).parent.mkdir(parents=True)
        (out / FILE).write_bytes(pickle.dumps(graph))
        return Program(backend=self.name, files=(FILE,), target="any", weight_bytes=sum(weight.nbytes for weight in graph.weights.values()))

    def open(self, directory: Path, program: Program, inputs: tuple[Input, ...], threads: int) -> InterpreterEngine:
        return InterpreterEngine(pickle.loads((directory / FILE).read_bytes()))


class InterpreterEngine:
    concurrent = True  # numpy reads the graph and writes nothing to it

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def rows(self, table: Arrays, n: int) -> dict[str, np.ndarray]:
        return interpret(self.graph, table)

    def request(self, request: Arrays, candidates: Arrays, n: int) -> dict[str, np.ndarray]:
        return interpret_request(self.graph, request, candidates)

    def close(self) -> None:
        pass
