"""torch.compile ahead of time: the graph's torch twin through Inductor's C++ into one package, for any number of rows.

Freezing is on (constants are folded and packed). max_autotune is not: on CPUs it chose the same library products and took minutes.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from burnish.backends import refuse
from burnish.backends.expand import Expand
from burnish.backends.table import Arrays, Program
from burnish.errors import BuildError
from burnish.graph.node import Graph
from burnish.host import Host
from burnish.inputs import Input

DIRECTORY = "program/inductor"


class Inductor:
    name = "inductor"
    rows_only = True

    def missing(self) -> str | None:
        if find_spec("torch") is None:
            return "the backend inductor needs PyTorch. Install it: pip install torch"
        compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
        if not any(shutil.which(compiler) for compiler in compilers):
            return (
                f"the backend inductor needs a C++ compiler, and there is no {' or '.join(compilers)} here. Install one, or name it in CXX"
            )
        return None

    def build(self, graph: Graph, host: Host, out: Path, threads: int = 1) -> Program:
        import torch

        from burnish.graph.to_torch import to_torch

        refuse.half_linears(graph, self.name)
        refuse.half_casts(graph, self.name)
        rows = torch.export.Dim("rows", min=1, max=1 << 24)
        example = tuple(torch.zeros((64, *spec.shape), dtype=getattr(torch, spec.dtype)) for spec in graph.inputs)
        (out / DIRECTORY).mkdir(parents=True)
        package = out / DIRECTORY / "model.pt2"
        before = torch.get_num_threads()
        torch.set_num_threads(threads)  # Inductor writes the number of threads into the code
        try:
            with torch.no_grad():
                program = torch.export.export(to_torch(graph).eval(), example, dynamic_shapes=[{0: rows}] * len(example), strict=False)
                torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs={"freezing": True})
        except Exception as error:  # Inductor and the compiler below it raise many types
            told = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BuildError(f"inductor cannot compile the graph: {type(error).__name__}: {told}") from error
        finally:
            torch.set_num_threads(before)
        return Program(
            backend=self.name,
            files=(str(package.relative_to(out)),),
            target=host.isa,
            weight_bytes=sum(held.nbytes for held in graph.weights.values()),
            facts={"outputs": [name for name, _ in graph.outputs]},
        )

    def open(self, directory: Path, program: Program, inputs: tuple[Input, ...], threads: int) -> InductorEngine:
        return InductorEngine(directory / DIRECTORY / "model.pt2", inputs, program.facts["outputs"], threads)


class InductorEngine:
    def __init__(self, package: Path, inputs: tuple[Input, ...], outputs: list[str], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)  # of the whole process: torch has no other
        self._torch = torch
        # the loader's own run takes and gives flat lists, without the Python that packs and unpacks keyword arguments
        self._run: Any = torch._inductor.aoti_load_package(str(package)).loader.run
        self._inputs = [spec.name for spec in inputs]
        self._outputs = outputs
        self._expand = Expand(inputs)

    def rows(self, table: Arrays, n: int) -> dict[str, np.ndarray]:
        from_numpy = self._torch.from_numpy
        with self._torch.inference_mode():
            found = self._run([from_numpy(table[name]) for name in self._inputs])
        return {name: tensor.numpy() for name, tensor in zip(self._outputs, found)}

    def request(self, request: Arrays, candidates: Arrays, n: int) -> dict[str, np.ndarray]:
        return self.rows(self._expand(request, candidates, n), n)

    def close(self) -> None:
        self._run = None
