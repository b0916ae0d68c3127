"""ONNX Runtime on the CPU: our ONNX, its int8 kernels, its best settings."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from burnish.backends import refuse
from burnish.backends.expand import Expand
from burnish.backends.table import Arrays, Program
from burnish.graph.node import Graph
from burnish.host import Host
from burnish.inputs import Input

DIRECTORY = "program/onnxruntime"
# it joins MatMul and Add to a Gemm before the int8 fusions look, and they know MatMul only; our float linears are Gemm already
DISABLED = ["MatMulAddFusion"]


class OnnxRuntime:
    name = "onnxruntime"
    rows_only = True

    def missing(self) -> str | None:
        for package in ("onnx", "onnxruntime"):
            if find_spec(package) is None:
                return f"the backend onnxruntime needs the package {package}. Install it: pip install {package}"
        return None

    def build(self, graph: Graph, host: Host, out: Path, threads: int = 1) -> Program:
        from burnish.backends.to_onnx import to_onnx

        refuse.half_linears(graph, self.name)
        (out / DIRECTORY).mkdir(parents=True)
        files = to_onnx(graph, out / DIRECTORY / "model.onnx")
        return Program(
            backend=self.name,
            files=tuple(str(file.relative_to(out)) for file in files),
            target="any",
            weight_bytes=sum(held.nbytes for held in graph.weights.values()),
            facts={"outputs": [name for name, _ in graph.outputs]},
        )

    def open(self, directory: Path, program: Program, inputs: tuple[Input, ...], threads: int) -> OnnxRuntimeEngine:
        return OnnxRuntimeEngine(directory / DIRECTORY / "model.onnx", program.facts["outputs"], inputs, threads)


class OnnxRuntimeEngine:
    def __init__(self, model: Path, outputs: list[str], inputs: tuple[Input, ...], threads: int) -> None:
        import onnxruntime as ort

        # with one thread there is no pool, and the caller computes; with more, its threads spin between calls, which is fastest (the
        # default). Plain run() was as fast as an IO binding that is bound anew for each call's arrays, and simpler.
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3  # warnings about folding are not the user's
        self._session: Any = ort.InferenceSession(
            str(model),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=DISABLED,
        )
        self._outputs = outputs
        self._wanted = [f"output:{name}" for name in outputs]
        self._expand = Expand(inputs)

    def rows(self, table: Arrays, n: int) -> dict[str, np.ndarray]:
        return dict(zip(self._outputs, self._session.run(self._wanted, table)))

    def request(self, request: Arrays, candidates: Arrays, n: int) -> dict[str, np.ndarray]:
        return self.rows(self._expand(request, candidates, n), n)

    def close(self) -> None:
        self._session = None
