"""The native backend: C++ generated for one graph and one machine. Building needs a compiler; opening needs numpy and the library alone."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from burnish.errors import ArtifactError, InputError
from burnish.host import ISAS, Host
from burnish.inputs import Half, Input, check_array

if TYPE_CHECKING:
    from burnish.backends.table import Program
    from burnish.graph.node import Graph

ABI = 1
SOURCE = "program/native/ranker.cpp"  # in an artifact; the same text for every instruction set


def library_name(stem: str, isa: str) -> str:
    """The file of a program compiled for an instruction set: a shared library, or a WebAssembly module."""
    return f"{stem}.wasm" if ISAS[isa][0] == "wasm32" else f"{stem}.so"


class Native:
    """Graph -> program/native/ranker.so and weights.bin; and back to an Engine."""

    name = "native"

    def __init__(self, compiler: str | None = None, isa: str | None = None) -> None:
        self.compiler, self.isa = compiler, isa

    def missing(self) -> str | None:
        """None, or the sentence that says which compiler is not installed."""
        from burnish.native import toolchain

        return toolchain.missing(self.compiler or toolchain.compiler_name())

    def build(self, graph: Graph, host: Host, out: Path, threads: int = 1) -> Program:
        """Write out/program/native/{ranker.cpp,ranker.so} and out/weights.bin; BuildError names an op that has no kernel."""
        from burnish.backends.table import Program
        from burnish.native import emit, pack, plan, toolchain

        planned = plan.make(graph, host, self.isa)
        source = emit.emit(planned)
        toolchain.show(3, source.model)
        library = toolchain.build(source.text, planned.isa, self.compiler)
        folder = out / "program" / "native"
        folder.mkdir(parents=True, exist_ok=True)
        name = library_name("ranker", planned.isa)
        shutil.copyfile(library, folder / f"{name}.new")
        os.replace(folder / f"{name}.new", folder / name)  # who has the old one open keeps it
        (folder / "ranker.cpp").write_text(source.text)
        weight_bytes = pack.write(source.entries, out / "weights.bin")
        held = {str(i): entry.nodes[0]["weight"] for i, entry in enumerate(source.entries) if is_named_table(entry)}
        tables = {i: weight.name for i, weight in held.items()}
        table_rows = {i: [weight.dtype, weight.shape[-1]] for i, weight in held.items()}
        return Program(
            backend=self.name,
            files=(f"program/native/{name}", SOURCE, "weights.bin"),
            target=planned.isa,
            arch=ISAS[planned.isa][0] or host.arch,
            cpu_flags=planned.flags,
            weight_bytes=weight_bytes,
            arena_bytes=source.arena_bytes,
            facts={"tables": tables, "table_rows": table_rows, "block_rows": planned.rows, "outputs": outputs_of(graph)},
        )

    def again(self, directory: Path, program: Program, isa: str) -> Program:
        """A built program compiled for another instruction set too, from the same text and beside it; both read the same weights."""
        from burnish.native import toolchain

        library = toolchain.build((directory / SOURCE).read_text(), isa, self.compiler)
        name = f"program/native/{library_name(isa, isa)}"
        shutil.copyfile(library, directory / name)
        arch, flags = ISAS[isa]
        changed = {"target": isa, "arch": arch or program.arch, "cpu_flags": tuple(sorted(flags))}
        return msgspec.structs.replace(program, files=(name, *program.files[1:]), **changed)

    def open(self, directory: Path, program: Program, inputs: tuple[Input, ...], threads: int) -> NativeEngine:
        """The engine of a built program; ArtifactError when this machine is another, or lacks an instruction it needs."""
        sentence = program.unfit(Host.here())
        if sentence:
            raise ArtifactError(
                f"{directory} was compiled for {program.target}, and {sentence}. "
                f"Compile it for this machine, or with --target {Host.here().isa}"
            )
        return NativeEngine(Path(directory), program, inputs, threads)


def is_named_table(entry: Any) -> bool:
    return entry.layout == "table" and any(name == "weight" for name, _ in entry.nodes[0].attrs)


def outputs_of(graph: Graph) -> list[dict[str, Any]]:
    """Name, numpy dtype and shape of each output, for the engine's arrays."""
    widened = {"bfloat16": "float32", "float16": "float32"}
    return [{"name": name, "dtype": widened.get(node.dtype, node.dtype), "shape": list(node.shape)} for name, node in graph.outputs]


class _Fault(ctypes.Structure):
    _fields_ = [("what", ctypes.c_int32), ("where", ctypes.c_int32), ("row", ctypes.c_int64), ("id", ctypes.c_int64)]


class NativeEngine:
    """Calls a program through ctypes; the GIL is released meanwhile.

    A call takes a handle that no other call has, so as many are opened as calls ever ran at once. With `threads` more than 1 a large call
    is shared out in parts; a row's bits do not depend on that.
    """

    checks_ids = True
    concurrent = True
    exact = True

    def __init__(self, directory: Path, program: Program, inputs: tuple[Input, ...], threads: int = 1) -> None:
        facts = program.facts
        self.inputs = inputs
        self.weights = str(directory / "weights.bin")
        self.tables = facts["tables"]
        self.block = int(facts["block_rows"])
        self.outputs = [(o["name"], np.dtype(o["dtype"]), tuple(o["shape"])) for o in facts["outputs"]]
        self.halves = [half for spec in inputs for half in spec.halves]
        self.library = _library(directory / program.files[0])
        self._score_rows, self._score_requests = self.library.ranker_rows, self.library.ranker_requests
        # bytes from row to row, 0 where one row stands for all
        self._rows_in = [(spec.name, row_bytes(spec.dtype, spec.shape)) for spec in inputs]
        self._halves_in = [(h.side == "request", h.name, row_bytes(h.dtype, h.shape) if h.side == "candidate" else 0) for h in self.halves]
        self._rows_out = [(name, row_bytes(dtype, shape)) for name, dtype, shape in self.outputs]
        self._free: list[_Call] = [self._open()]  # opened here, so that a damaged artifact is refused now and not at the first call
        self._crew = ThreadPoolExecutor(threads - 1, "burnish") if threads > 1 else None
        self.threads = threads

    def rows(self, table: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
        """A plain table of n rows -> outputs (n, *shape)."""
        out = {name: np.empty((n, *shape), dtype) for name, dtype, shape in self.outputs}
        self._share(functools.partial(self._rows_part, table, out), n)
        return out

    def request(self, request: Mapping[str, np.ndarray], candidates: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
        """One request's halves without rows and n candidates -> outputs (n, *shape)."""
        out = {name: np.empty((n, *shape), dtype) for name, dtype, shape in self.outputs}
        self._share(functools.partial(self._request_part, request, candidates, out), n)
        return out

    def bind(
        self, request: Mapping[str, np.ndarray], candidates: Mapping[str, np.ndarray], n: int
    ) -> tuple[Callable[[], dict[str, np.ndarray]], dict[str, np.ndarray]]:
        """A call that scores what is in these arrays then, and the outputs (n, *shape) that it fills and returns."""
        out = {name: np.empty((n, *shape), dtype) for name, dtype, shape in self.outputs}
        if self._crew is not None and n >= 2 * self.block:

            def shared() -> dict[str, np.ndarray]:
                self._share(functools.partial(self._request_part, request, candidates, out), n)
                return out

            return shared, out
        bound = _Call(0, len(self.halves), len(self.outputs))  # its pointers stay, while a call takes any handle that is free
        for i, (of_request, name, _) in enumerate(self._halves_in):
            bound.inputs[i] = address((request if of_request else candidates)[name])
        for i, (name, _) in enumerate(self._rows_out):
            bound.outputs[i] = address(out[name])
        bound.offsets[1] = n

        def call() -> dict[str, np.ndarray]:
            free = self._take()
            try:
                if self._score_requests(free.handle, 1, bound.offsets_at, bound.inputs_at, bound.outputs_at):
                    given = [request[h.name][None] if h.side == "request" else candidates[h.name] for h in self.halves]
                    self._refuse(free.handle, given, self.halves, 0)
            finally:
                self._free.append(free)
            return out

        return call, out

    def close(self) -> None:
        """Close every handle; no call may be under way."""
        if self._crew is not None:
            self._crew.shutdown()
        while self._free:
            self.library.ranker_close(self._free.pop().handle)

    def _share(self, part: Callable[[int, int], None], n: int) -> None:
        """Call `part(first row, rows)` for all n rows: in one piece, or in one a thread, whole blocks each."""
        if self._crew is None or n < 2 * self.block:
            part(0, n)
            return
        each = -(-n // (self.threads * self.block)) * self.block
        others = [self._crew.submit(part, first, min(each, n - first)) for first in range(each, n, each)]
        part(0, each)
        for other in others:
            other.result()

    def _rows_part(self, table: Mapping[str, np.ndarray], out: dict[str, np.ndarray], first: int, n: int) -> None:
        call = self._take()
        try:
            for i, (name, step) in enumerate(self._rows_in):
                call.inputs[i] = address(table[name]) + first * step
            for i, (name, step) in enumerate(self._rows_out):
                call.outputs[i] = address(out[name]) + first * step
            if self._score_rows(call.handle, n, call.inputs_at, call.outputs_at):
                whole = [Half(spec.name, "candidate", spec.dtype, spec.shape, None) for spec in self.inputs]
                self._refuse(call.handle, [table[half.name] for half in whole], whole, first)
        finally:
            self._free.append(call)

    def _request_part(
        self, request: Mapping[str, np.ndarray], candidates: Mapping[str, np.ndarray], out: dict[str, np.ndarray], first: int, n: int
    ) -> None:
        call = self._take()
        try:
            for i, (of_request, name, step) in enumerate(self._halves_in):
                call.inputs[i] = address((request if of_request else candidates)[name]) + first * step
            for i, (name, step) in enumerate(self._rows_out):
                call.outputs[i] = address(out[name]) + first * step
            call.offsets[1] = n
            if self._score_requests(call.handle, 1, call.offsets_at, call.inputs_at, call.outputs_at):
                given = [request[h.name][None] if h.side == "request" else candidates[h.name] for h in self.halves]
                self._refuse(call.handle, given, self.halves, first)
        finally:
            self._free.append(call)

    def _take(self) -> _Call:
        try:
            return self._free.pop()  # a list's pop and append are atomic
        except IndexError:
            return self._open()

    def _open(self) -> _Call:
        error = ctypes.c_int()
        handle = self.library.ranker_open(self.weights.encode(), ctypes.byref(error))
        if not handle:
            sentence = {
                6: f"the program beside {self.weights} needs instructions that this machine lacks. Compile it for this machine",
                3: f"{self.weights} cannot be opened. Is the artifact whole?",
                4: f"{self.weights} was not packed for the program beside it, or is cut short. Compile the artifact again",
            }.get(error.value, f"no memory for the arena of {self.weights}")
            raise ArtifactError(sentence)
        return _Call(handle, len(self.halves), len(self.outputs))

    def _refuse(self, handle: int, arrays: Sequence[np.ndarray], halves: Sequence[Half], first: int) -> None:
        """Raise what was wrong with the ids; the sentence of inputs.check_array when the input itself is out of its bounds."""
        by_name = {spec.name: spec for spec in self.inputs}
        for half, array in zip(halves, arrays):
            check_array(by_name[half.name], half, array)
        fault = self.library.ranker_fault(handle).contents
        table = self.tables.get(str(fault.where))
        of = f"table {table!r}" if table else "a table or axis"
        raise InputError(f"row {first + fault.row} asks for entry {fault.id} of {of}, which has no such entry. Check the ids of that row")


def row_bytes(dtype: Any, shape: tuple[int, ...]) -> int:
    return np.dtype(dtype).itemsize * math.prod(shape)


class _Call:
    """A handle and the arrays of pointers that its calls fill, with their addresses: a call then converts integers only."""

    def __init__(self, handle: int, inputs: int, outputs: int) -> None:
        self.handle = handle
        self.inputs = (ctypes.c_void_p * max(1, inputs))()
        self.outputs = (ctypes.c_void_p * max(1, outputs))()
        self.offsets = (ctypes.c_int64 * 2)()
        self.inputs_at = ctypes.addressof(self.inputs)
        self.outputs_at = ctypes.addressof(self.outputs)
        self.offsets_at = ctypes.addressof(self.offsets)


# Where an array's data begins. The documented ways build an object and take microseconds; numpy's C interface fixes that `data` is the
# first member behind the object's head (PyArrayObject_fields), and reading it there takes a tenth. Where it is not so, the slow way serves.
_HEAD = object.__basicsize__
_pointer_at = ctypes.c_size_t.from_address
_probe = np.empty(3)


def _address_by_layout(array: np.ndarray) -> int:
    return _pointer_at(id(array) + _HEAD).value


def _address_by_interface(array: np.ndarray) -> int:
    return int(array.ctypes.data)


address = _address_by_layout if _address_by_layout(_probe) == _probe.ctypes.data else _address_by_interface


def _library(path: Path) -> ctypes.CDLL:
    try:
        with tempfile.TemporaryDirectory(prefix="burnish-") as own:
            # a name of its own: the loader knows libraries by name, and would give the one of an artifact that stood here before
            name = Path(own, path.name)
            name.symlink_to(path.resolve())
            library = ctypes.CDLL(str(name))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be loaded: {error}. Was it compiled for another system?") from None
    if library.ranker_abi() != ABI:
        raise ArtifactError(f"{path} speaks version {library.ranker_abi()} of ranker.h, expected {ABI}. Compile the artifact again")
    pointer = ctypes.c_void_p
    library.ranker_open.argtypes, library.ranker_open.restype = [ctypes.c_char_p, pointer], pointer
    library.ranker_close.argtypes, library.ranker_close.restype = [pointer], None
    library.ranker_rows.argtypes = [pointer, ctypes.c_int64, pointer, pointer]
    library.ranker_requests.argtypes = [pointer, ctypes.c_int64, pointer, pointer, pointer]
    library.ranker_fault.argtypes, library.ranker_fault.restype = [pointer], ctypes.POINTER(_Fault)
    library.ranker_describe.restype = ctypes.c_char_p
    return library
