"""Native programs compiled to WebAssembly and run by wasmtime, as a backend: what a browser computes, for the suite of every backend."""

from __future__ import annotations

import ctypes
import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.backends.native import Native
from burnish.backends.table import Program
from burnish.errors import InputError
from burnish.host import Host
from burnish.inputs import Input

if TYPE_CHECKING:
    from burnish.graph.node import Graph


class Wasm(Native):
    """Graph -> ranker.wasm and weights.bin; and back to an engine inside wasmtime."""

    name = "wasm"

    def missing(self) -> str | None:
        """None, or the sentence that says what is not installed."""
        if importlib.util.find_spec("wasmtime") is None:
            return "WebAssembly programs are run by wasmtime: pip install wasmtime"
        return super().missing()

    def build(self, graph: Graph, host: Host, out: Path, threads: int = 1) -> Program:
        """As the native backend, for WebAssembly whatever the host."""
        return super().build(graph, Host.target("wasm"), out, threads)

    def open(self, directory: Path, program: Program, inputs: tuple[Input, ...], threads: int) -> WasmEngine:  # type: ignore[override]
        return WasmEngine((directory / program.files[0]).read_bytes(), (directory / "weights.bin").read_bytes(), inputs, program.facts)


class WasmEngine:
    """One instance of a module. Arrays are copied into its memory for each call, and outputs out of it."""

    checks_ids = True

    def __init__(self, code: bytes, weights: bytes, inputs: Sequence[Input], facts: Mapping[str, Any]) -> None:
        import wasmtime

        engine = wasmtime.Engine()
        self.store = wasmtime.Store(engine)
        instance = wasmtime.Instance(self.store, wasmtime.Module(engine, code), [])  # no imports: nothing of a system is asked for
        self._exports: Any = instance.exports(self.store)
        self.memory: Any = self._exports["memory"]
        self.call("_initialize")
        self.inputs = tuple(inputs)
        self.outputs = [(o["name"], np.dtype(o["dtype"]), tuple(o["shape"])) for o in facts["outputs"]]
        error = self.hold(bytes(4))
        self.weights = self.hold(weights)
        self.handle = self.call("ranker_open_memory", self.weights, len(weights), error)
        self.error = int.from_bytes(self.read(error, 4), "little")

    def call(self, name: str, *arguments: int) -> int:
        """What an exported function returns."""
        return int(self._exports[name](self.store, *arguments) or 0)

    def hold(self, content: bytes) -> int:
        """The address, a multiple of 64, of a copy in the module's memory; it stays until the engine goes."""
        at = (self.call("malloc", len(content) + 64) + 63) // 64 * 64
        self.write(at, content)
        return at

    def write(self, at: int, content: bytes) -> None:
        ctypes.memmove(ctypes.addressof(self.memory.data_ptr(self.store).contents) + at, content, len(content))

    def read(self, at: int, n: int) -> bytes:
        return ctypes.string_at(ctypes.addressof(self.memory.data_ptr(self.store).contents) + at, n)

    def text(self, at: int) -> str:
        """The C string at an address."""
        return ctypes.string_at(ctypes.addressof(self.memory.data_ptr(self.store).contents) + at).decode()

    def rows(self, table: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
        """A plain table of n rows -> outputs (n, *shape)."""
        return self._score("ranker_rows", [table[spec.name] for spec in self.inputs], n, (n,))

    def request(self, request: Mapping[str, np.ndarray], candidates: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
        """One request's halves without rows and n candidates -> outputs (n, *shape)."""
        halves = [half for spec in self.inputs for half in spec.halves]
        arrays = [(request if half.side == "request" else candidates)[half.name] for half in halves]
        return self._score("ranker_requests", arrays, n, (1, np.array([0, n], np.int64)))

    def close(self) -> None:
        self.call("ranker_close", self.handle)

    def _score(self, name: str, arrays: Sequence[np.ndarray], n: int, sizes: Sequence[Any]) -> dict[str, np.ndarray]:
        held: list[int] = []

        def put(content: bytes) -> int:
            at = self.call("malloc", len(content) + 8)
            held.append(at)
            self.write(at, content)
            return at

        given = put(b"".join(put(array.tobytes()).to_bytes(4, "little") for array in arrays))
        room = [n * dtype.itemsize * math.prod(shape) for _, dtype, shape in self.outputs]
        places = [put(bytes(size)) for size in room]
        taken = put(b"".join(at.to_bytes(4, "little") for at in places))
        counts = [put(size.tobytes()) if isinstance(size, np.ndarray) else size for size in sizes]
        code = self.call(name, self.handle, *counts, given, taken)
        found = {
            output: np.frombuffer(self.read(at, size), dtype).reshape(n, *shape).copy()
            for (output, dtype, shape), at, size in zip(self.outputs, places, room)
        }
        for at in held:
            self.call("free", at)
        if code:
            raise InputError(f"a row has an id outside its table: error {code} of {name}")
        return found
