"""Which backends there are, what a backend is, and what it leaves behind. The row is the whole registration.

A backend turns a Graph into files (`build`) and, on another day and machine, those files into an engine (`open`). Between the two stands
only the `Program`, kept in the artifact's manifest. A module is imported on first use of its row.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from burnish.errors import BuildError
from burnish.host import Host
from burnish.inputs import Input

if TYPE_CHECKING:
    from burnish.graph.node import Graph

BACKENDS: dict[str, str] = {
    "native": "burnish.backends.native:Native",
    "onnxruntime": "burnish.backends.onnxruntime:OnnxRuntime",
    "openvino": "burnish.backends.openvino:OpenVino",
    "inductor": "burnish.backends.inductor:Inductor",
    "executorch": "burnish.backends.executorch:ExecuTorch",
    "cuda": "burnish.backends.cuda:Cuda",
    "eager": "burnish.backends.eager:Eager",
}

Arrays = Mapping[str, np.ndarray]


class Program(msgspec.Struct, frozen=True):
    """What `build` left in a directory, and what a machine must have to open it. `files` are relative to the directory."""

    backend: str
    files: tuple[str, ...]
    target: str  # an instruction set of host.ISAS, or "any" where the engine finds out by itself
    cpu_flags: tuple[str, ...] = ()  # /proc/cpuinfo flags without which it would not run
    weight_bytes: int = 0  # constants as they lie in memory
    arena_bytes: int = 0  # scratch memory of one thread; 0 where the engine does not say
    facts: dict[str, Any] = {}  # whatever else `open` needs; JSON types only
    arch: str = ""  # of the machine it was compiled for (host.Host.arch); "" where any will do

    def unfit(self, host: Host) -> str:
        """Why a machine cannot run it, as half a sentence; "" when it can."""
        if self.arch not in ("", host.arch):
            return f"this machine is {host.arch}, not {self.arch}"
        lacks = host.lacks(self.cpu_flags)
        return f"this machine lacks {', '.join(lacks)}" if lacks else ""


class Engine(Protocol):
    """An open program. The arrays it gets are C-contiguous and were checked against the inputs (names, dtypes, shapes, rows).

    Three class attributes say what it does beyond that, each False where it is not given:
    `checks_ids`: it checks ids against the cardinalities itself (InputError), so the scorer does not;
    `concurrent`: it may be called from several threads at once, so the scorer takes no lock;
    `exact`: a row's outputs are the same bits in any company, at any thread count, on any machine of its target.
    One that checks ids may also have `bind(request, candidates, n)`: a call without arguments that scores what is in these arrays then,
    and the outputs that it fills and returns. It saves a server what handing over arrays costs.
    """

    def rows(self, table: Arrays, n: int) -> dict[str, np.ndarray]:
        """A plain table, every input (n, *shape), n >= 1 -> every output (n, *shape)."""
        ...

    def request(self, request: Arrays, candidates: Arrays, n: int) -> dict[str, np.ndarray]:
        """One request: its halves without rows (*half shape), and n candidates (n, *half shape) -> every output (n, *shape)."""
        ...

    def close(self) -> None: ...


class Backend(Protocol):
    """One way to compute a Graph.

    A class attribute `rows_only = True` says that its engines repeat the request's values beside every candidate, so that request
    factoring gains nothing: compile then leaves that step out, which changes no bit of an int8 linear.
    """

    name: str

    def missing(self) -> str | None:
        """None, or the sentence that says what is not installed and how to get it."""
        ...

    def build(self, graph: Graph, host: Host, out: Path, threads: int = 1) -> Program:
        """Write program/<name>/... (and weights.bin) under `out`. BuildError names what it cannot express."""
        ...

    def open(self, directory: Path, program: Program, inputs: tuple[Input, ...], threads: int) -> Engine: ...


def backend(name: str) -> Backend:
    """The backend of that name; BuildError for a name without a row."""
    if name not in BACKENDS:
        raise BuildError(f"no backend {name!r}. Use one of {', '.join(BACKENDS)}")
    module, _, cls = BACKENDS[name].partition(":")
    return getattr(importlib.import_module(module), cls)()
