"""ExecuTorch: the graph as a .pte whose float32 parts are delegated to XNNPACK, run by its Python runtime as apps on phones run it.

A program has memory planned for at most MOST_ROWS rows, so larger calls are made in parts. Its own int8 quantizes activations anew in every
call and is not the graph's arithmetic, so integer graphs are refused (docs/edge.md).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from burnish.backends import refuse
from burnish.backends.expand import Expand
from burnish.backends.table import Arrays, Program
from burnish.errors import BuildError
from burnish.graph.node import Graph
from burnish.graph.ops import Op
from burnish.host import Host
from burnish.inputs import Input

FILE = "program/executorch/model.pte"
MOST_ROWS = 512


class ExecuTorch:
    name = "executorch"
    rows_only = True

    def missing(self) -> str | None:
        if find_spec("torch") is None or find_spec("executorch") is None:
            return "the backend executorch needs PyTorch and ExecuTorch. Install them: pip install torch executorch"
        return None

    def build(self, graph: Graph, host: Host, out: Path, threads: int = 1) -> Program:
        import torch

        from burnish.graph.to_torch import to_torch

        refuse.half_linears(graph, self.name)
        refuse.half_casts(graph, self.name)
        for node in graph.order:
            if node.op in (Op.QUANTIZE, Op.QLINEAR, Op.QDOT):
                raise BuildError(f"executorch has no {node.op.name} of static int8 with float32 sums: {node!r}. Use the recipe fp32")
        rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
        example = tuple(torch.zeros((8, *spec.shape), dtype=getattr(torch, spec.dtype)) for spec in graph.inputs)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
                warnings.simplefilter("ignore")
                from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
                from executorch.exir import to_edge_transform_and_lower

                program = torch.export.export(to_torch(graph).eval(), example, dynamic_shapes=[{0: rows}] * len(example), strict=False)
                content = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
        except Exception as error:  # its passes raise many types
            told = (str(error).strip().splitlines() or ["no message"])[0]
            raise BuildError(f"executorch cannot lower the graph: {type(error).__name__}: {told}") from error
        (out / FILE).parent.mkdir(parents=True)
        (out / FILE).write_bytes(content)
        return Program(
            backend=self.name,
            files=(FILE,),
            target="any",
            weight_bytes=sum(held.nbytes for held in graph.weights.values()),
            facts={"outputs": [name for name, _ in graph.outputs]},
        )

    def open(self, directory: Path, program: Program, inputs: tuple[Input, ...], threads: int) -> ExecuTorchEngine:
        return ExecuTorchEngine(directory / FILE, inputs, program.facts["outputs"], threads)


class ExecuTorchEngine:
    def __init__(self, file: Path, inputs: tuple[Input, ...], outputs: list[str], threads: int) -> None:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime

        portable_lib._unsafe_reset_threadpool(threads)  # of the whole process: it has no other
        self._torch = torch
        self._program = Runtime.get().load_program(file)
        self._method: Any = self._program.load_method("forward")
        self._inputs = [spec.name for spec in inputs]
        self._outputs = outputs
        self._expand = Expand(inputs)

    def rows(self, table: Arrays, n: int) -> dict[str, np.ndarray]:
        parts = [self._part({name: array[at : at + MOST_ROWS] for name, array in table.items()}) for at in range(0, n, MOST_ROWS)]
        return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(self._outputs)}

    def request(self, request: Arrays, candidates: Arrays, n: int) -> dict[str, np.ndarray]:
        return self.rows(self._expand(request, candidates, n), n)

    def close(self) -> None:
        self._method = self._program = None

    def _part(self, table: Arrays) -> list[np.ndarray]:
        found = self._method.execute([self._torch.from_numpy(table[name]) for name in self._inputs])
        return [tensor.numpy().copy() for tensor in found]  # it computes into the same memory in the next call
