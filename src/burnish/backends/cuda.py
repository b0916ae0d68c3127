"""One NVIDIA GPU: the graph's torch twin with all weights on the card, the request computed once, and CUDA graphs over size classes.

The artifact holds the graph itself (graph_file.py). `open` cuts it between request and candidate (passes/split.py): the request's part
runs on one row, and what it hands over is repeated beside the candidates as a view, which costs no memory. Calls are padded to the next
of SIZES, so that each size is captured once, when the artifact is opened, and a call is one replay: nothing is compiled and no kernel is
launched by Python. On tensors of the CPU the same code runs without the capture, which is how it is tested (docs/gpu.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from burnish.backends import graph_file
from burnish.backends.expand import Expand
from burnish.backends.table import Arrays, Program
from burnish.errors import ArtifactError, BuildError
from burnish.graph.interpret import constant
from burnish.graph.node import Graph, Node
from burnish.graph.ops import Op
from burnish.host import Host
from burnish.inputs import Half, Input
from burnish.passes.split import split

DIRECTORY = "program/cuda"
SIZES = (1, 16, 64, 128, 512, 2048, 4096)  # rows of a captured call; larger calls are made in parts of the last
LEAST_ROWS, MULTIPLE = 32, 8  # what cuBLAS's int8 product asks of its operands: more than 16 rows, other sizes in eights
MIDDLE = 128  # uint8 - 128 is int8

Place = tuple[str, str]


class Cuda:
    name = "cuda"

    def __init__(self, device: str = "cuda") -> None:
        """`device`: "cuda", the card that torch has chosen, or "cpu", for tests on machines without one."""
        self.device = device

    def missing(self) -> str | None:
        if find_spec("torch") is None:
            return "the backend cuda needs PyTorch. Install it: pip install torch"
        return _no_device(self.device)

    def build(self, graph: Graph, host: Host, out: Path, threads: int = 1) -> Program:
        folder = out / DIRECTORY
        folder.mkdir(parents=True)
        graph_file.write(graph, folder)
        return Program(
            backend=self.name,
            files=tuple(f"{DIRECTORY}/{file}" for file in graph_file.FILES),
            target="any",
            weight_bytes=sum(held.nbytes for held in graph.weights.values()),
            facts={"device": self.device},
        )

    def open(self, directory: Path, program: Program, inputs: tuple[Input, ...], threads: int) -> CudaEngine:
        absent = _no_device(program.facts["device"])
        if absent:
            raise ArtifactError(absent)
        return CudaEngine(graph_file.read(directory / DIRECTORY, inputs), program.facts["device"], threads)


def _no_device(device: str) -> str | None:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        return "the backend cuda needs an NVIDIA GPU that PyTorch can use, and there is none here. Use the backend native on this machine"
    return None


class CudaEngine:
    """Both parts of the graph on the device. An input lies at a place, (name, side); with nothing to cut all are the candidates'."""

    def __init__(self, graph: Graph, device: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)  # of the whole process: torch has no other
        self._torch = torch
        self._device = torch.device(device)
        self._expand = Expand(graph.inputs)
        try:
            cut = split(graph)
        except BuildError:  # no value of the request stands beside a candidate
            cut = None
        self._cut = cut is not None
        first: tuple[Input, ...] = ()
        self._sent: list[str] = []
        if cut is None:
            rest = graph
            self._halves = [Half(spec.name, "candidate", spec.dtype, spec.shape, None) for spec in graph.inputs]
        else:
            rest, first, self._sent = cut.device, cut.user.inputs, [spec.name for spec in cut.sent]
            self._halves = [half for spec in graph.inputs for half in spec.halves]
        second = rest.inputs[: len(rest.inputs) - len(self._sent)]
        self._places: list[tuple[Place, Input]] = [((spec.name, "request"), spec) for spec in first]
        self._places += [((spec.name, "candidate"), spec) for spec in second]
        self._outputs = [name for name, _ in graph.outputs]
        resident: dict[Node, Any] = {}
        self._user = self._module(cut.user, resident) if cut else None
        self._rest = self._module(rest, resident)
        self._pool: Any = None
        self._calls: dict[tuple[int, bool], _Call] = {}
        if self._device.type == "cuda":
            self._pool = torch.cuda.graph_pool_handle()  # calls take turns, so they share scratch memory
            for size in SIZES:
                self._call(size, self._cut)

    def rows(self, table: Arrays, n: int) -> dict[str, np.ndarray]:
        return self._run({(half.name, half.side): _columns(table[half.name], half) for half in self._halves}, n, once=False)

    def request(self, request: Arrays, candidates: Arrays, n: int) -> dict[str, np.ndarray]:
        if not self._cut:
            return self.rows(self._expand(request, candidates, n), n)
        given: dict[Place, np.ndarray] = {(name, "request"): array[None] for name, array in request.items()}
        return self._run(given | {(name, "candidate"): array for name, array in candidates.items()}, n, once=True)

    def close(self) -> None:
        self._calls.clear()
        self._user = self._rest = None

    def _run(self, given: Mapping[Place, np.ndarray], n: int, once: bool) -> dict[str, np.ndarray]:
        """Parts of at most SIZES[-1] rows; with `once` the request's arrays have one row, which goes with each part."""
        parts = []
        for at in range(0, n, SIZES[-1]):
            rows = min(n - at, SIZES[-1])
            taken = {place: a if once and place[1] == "request" else a[at : at + rows] for place, a in given.items()}
            call = self._call(next(size for size in SIZES if size >= rows), once)
            parts.append([np.array(tensor[:rows].cpu().numpy()) for tensor in call(taken)])  # copies: the next call writes there
        return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(self._outputs)}

    def _call(self, size: int, once: bool) -> _Call:
        if (size, once) not in self._calls:
            buffers = {}
            for place, spec in self._places:
                rows = 1 if once and place[1] == "request" else size
                buffers[place] = self._torch.zeros((rows, *spec.shape), dtype=getattr(self._torch, spec.dtype), device=self._device)
            with _without_tf32(self._torch):
                self._calls[size, once] = _Call(buffers, lambda *x: self._compute(size, x), self._pool)
        return self._calls[size, once]

    def _compute(self, size: int, x: tuple[Any, ...]) -> list[Any]:
        """Every output of `size` rows, from what lies at the places."""
        first, second = ([value for (place, _), value in zip(self._places, x) if place[1] == side] for side in ("request", "candidate"))
        sent: list[Any] = []
        with self._torch.no_grad():
            if self._user is not None:
                sent = [value.expand(size, *value.shape[1:]) for value in _listed(self._user(*first), self._sent)]
            return _listed(self._rest(*second, *sent), self._outputs)

    def _module(self, graph: Graph, resident: dict[Node, Any]) -> Any:
        """The twin on the device. A weight that both parts read lies there once."""
        from burnish.graph.to_torch import to_torch, weight_names

        chosen = {
            node: _int8_row if node.op in (Op.QLINEAR, Op.QDOT) else _half_row
            for node in graph.order
            if node.op in (Op.QLINEAR, Op.QDOT) or (node.op is Op.LINEAR and node["compute"] != "float32")
        }
        module = to_torch(graph, chosen)
        for node, name in weight_names(graph).items():
            if not hasattr(module, name):  # int8 linears keep it in another form
                continue
            held = resident.setdefault(node, getattr(module, name).detach().to(self._device))
            delattr(module, name)
            module.register_buffer(name, held)
        return module.to(self._device).eval()


class _Call:
    """One size of call: inputs at fixed places, and on a card (`pool`) the kernels captured as one CUDA graph, fed from pinned memory.

    Rows behind those given keep what an earlier call left there, or zeros: rows that were valid, of which nothing is read.
    """

    def __init__(self, buffers: dict[Place, Any], compute: Callable[..., list[Any]], pool: Any) -> None:
        import torch

        self._buffers, self._compute = buffers, compute
        self._graph: Any = None
        self._staged = buffers
        if pool is not None:
            self._staged = {place: torch.zeros_like(buffer, device="cpu").pin_memory() for place, buffer in buffers.items()}
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):  # libraries choose and allocate in their first calls, which cannot be captured
                for _ in range(2):
                    compute(*buffers.values())
            torch.cuda.current_stream().wait_stream(beside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=pool):
                self._found = compute(*buffers.values())
        self._arrays = {place: staged.numpy() for place, staged in self._staged.items()}

    def __call__(self, given: Mapping[Place, np.ndarray]) -> list[Any]:
        for place, array in given.items():
            self._arrays[place][: len(array)] = array
        if self._graph is None:
            return self._compute(*self._buffers.values())
        for place, staged in self._staged.items():
            self._buffers[place].copy_(staged, non_blocking=True)
        self._graph.replay()
        return self._found


def int8_weight(weight: np.ndarray, zero_point: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight (N, K) int8 as int8_dot reads it: with zeros up to eights on both axes, and the offsets (N,) int32 of its outputs.

    sum (q - z) w  =  sum (q - 128) w + (128 - z) sum w, whose first operand is int8.
    """
    padded = np.pad(weight, [(0, -size % MULTIPLE) for size in weight.shape])
    return padded, (MIDDLE - zero_point) * weight.sum(1, dtype=np.int32)


def int8_dot(q: Any, weight: Any, offsets: Any) -> Any:
    """affine.dot on tensors, the same bits, by the int8 units: q (..., K) uint8 and what int8_weight made -> (..., N) int32."""
    import torch
    from torch.nn.functional import pad

    flat = (q ^ MIDDLE).view(torch.int8).reshape(-1, q.shape[-1])
    rows = flat.shape[0]
    deep, tall = weight.shape[1] - q.shape[-1], max(0, LEAST_ROWS - rows)
    acc = torch._int_mm(pad(flat, (0, deep, 0, tall)) if deep or tall else flat, weight.T)
    return (acc[:rows, : offsets.shape[0]] + offsets).reshape(*q.shape[:-1], offsets.shape[0])


def half_product(x: Any, weight: Any, dtype: str) -> Any:
    """x (..., K) times weight (N, K), both rounded to `dtype`, with float32 sums and a float32 result: on a card by its half units."""
    import torch

    x, weight = x.to(getattr(torch, dtype)), weight.to(getattr(torch, dtype))
    if not x.is_cuda:
        return x.float() @ weight.float().T
    found = torch.mm(x.reshape(-1, x.shape[-1]), weight.T, out_dtype=torch.float32)
    return found.reshape(*x.shape[:-1], weight.shape[0])


def _int8_row(twin: Any, node: Node, x: tuple[Any, ...]) -> Any:
    import torch

    from burnish.graph.to_torch import deeper

    made = (twin.constant(torch.from_numpy(array)) for array in int8_weight(constant(node.inputs[1]), node["zero_point"]))
    acc = twin.tracer.create_proxy("call_function", int8_dot, (x[0], *made), {})
    init = 4 if node.op is Op.QLINEAR else 2
    if len(x) > init:
        acc = acc + deeper(x[init], node.inputs[init], len(node.shape))
    return acc.float() * x[2] + x[3] if node.op is Op.QLINEAR else acc


def _half_row(twin: Any, node: Node, x: tuple[Any, ...]) -> Any:
    from burnish.graph.to_torch import deeper

    a, w, b, *init = x
    if node.inputs[1].op is Op.WEIGHT and node.inputs[1].dtype == node["compute"]:
        w = twin.held(node.inputs[1])  # as it is kept, not widened
    y = twin.tracer.create_proxy("call_function", half_product, (a, w, node["compute"]), {})
    return (y + deeper(init[0], node.inputs[3], len(node.shape)) if init else y) + b


@contextmanager
def _without_tf32(torch: Any) -> Iterator[None]:
    """float32 products in float32: the card's TF32 keeps 10 bits of a fraction. What is captured so stays so."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _listed(found: Any, names: list[str]) -> list[Any]:
    return [found[name] for name in names] if len(names) > 1 else [found]


def _columns(whole: np.ndarray, half: Half) -> np.ndarray:
    return whole if half.columns is None else whole[:, list(half.columns)]
