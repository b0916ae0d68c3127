"""OpenVINO on the CPU: the same ONNX, its int8 and bfloat16 kernels, one stream tuned for latency."""

from __future__ import annotations

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

DIRECTORY = "program/openvino"
KEPT = 32  # different numbers of rows whose input tensors are kept
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class OpenVino:
    name = "openvino"
    rows_only = True

    def missing(self) -> str | None:
        for package in ("onnx", "openvino"):
            if find_spec(package) is None:
                return f"the backend openvino needs the package {package}. Install it: pip install {package}"
        return None

    def build(self, graph: Graph, host: Host, out: Path, threads: int = 1) -> Program:
        from burnish.backends.to_onnx import to_onnx

        computed = {node["compute"] for node in graph.order if node.op is Op.LINEAR} - {"float32"}
        if len(computed) > 1:
            raise BuildError(
                f"openvino has one float precision for a whole model; the graph has linears in {' and '.join(sorted(computed))}"
            )
        refuse.half_casts(graph, self.name)
        (out / DIRECTORY).mkdir(parents=True)
        files = to_onnx(graph, out / DIRECTORY / "model.onnx")
        return Program(
            backend=self.name,
            files=tuple(str(file.relative_to(out)) for file in files),
            target="any",
            weight_bytes=sum(held.nbytes for held in graph.weights.values()),
            facts={"outputs": [name for name, _ in graph.outputs], "precision": PRECISIONS[computed.pop() if computed else "float32"]},
        )

    def open(self, directory: Path, program: Program, inputs: tuple[Input, ...], threads: int) -> OpenVinoEngine:
        return OpenVinoEngine(directory / DIRECTORY / "model.onnx", program.facts, inputs, threads)


class OpenVinoEngine:
    def __init__(self, model: Path, facts: dict[str, Any], inputs: tuple[Input, ...], threads: int) -> None:
        import openvino as ov

        core = ov.Core()
        compiled = core.compile_model(
            str(model),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": "1",
                "INFERENCE_NUM_THREADS": str(threads),
                "ENABLE_CPU_PINNING": "NO",  # the process is pinned by whoever runs it; two pinnings fight
                # without it OpenVINO computes float32 models in bfloat16 wherever the CPU has it
                "INFERENCE_PRECISION_HINT": facts["precision"],
            },
        )
        self.compiled = compiled
        self._call = compiled.create_infer_request()
        self._outputs = facts["outputs"]
        self._expand = Expand(inputs)
        self._new = lambda n: {spec.name: ov.Tensor(ov.Type(np.dtype(spec.dtype)), [n, *spec.shape]) for spec in inputs}
        self._tensors: dict[int, dict[str, Any]] = {}  # by rows; binding a tensor costs more than copying some kilobytes into it
        self._views: dict[str, np.ndarray] = {}
        self._bound = 0

    def rows(self, table: Arrays, n: int) -> dict[str, np.ndarray]:
        for name, view in self._bind(n).items():
            view[...] = table[name]
        return self._run()

    def request(self, request: Arrays, candidates: Arrays, n: int) -> dict[str, np.ndarray]:
        self._expand.into(self._bind(n), request, candidates)
        return self._run()

    def close(self) -> None:
        self._call = self.compiled = None

    def _bind(self, n: int) -> dict[str, np.ndarray]:
        """The input tensors for n rows, as arrays to write to."""
        if n != self._bound:
            if n not in self._tensors:
                if len(self._tensors) == KEPT:
                    del self._tensors[next(iter(self._tensors))]
                self._tensors[n] = self._new(n)
            for name, tensor in self._tensors[n].items():
                self._call.set_tensor(name, tensor)
            self._views = {name: tensor.data for name, tensor in self._tensors[n].items()}
            self._bound = n
        return self._views

    def _run(self) -> dict[str, np.ndarray]:
        self._call.infer()
        return {name: self._call.get_tensor(f"output:{name}").data.copy() for name in self._outputs}
