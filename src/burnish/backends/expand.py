"""The plain table of a request: engines that know rows only get each request value repeated beside every candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from burnish.inputs import Half, Input


class Expand:
    """Writes request values and candidates into one array an input. Its own buffers are reused: not for two threads at once."""

    def __init__(self, inputs: tuple[Input, ...]) -> None:
        self._specs = inputs
        self._parts = {spec.name: [(half.side, _place(half)) for half in spec.halves] for spec in inputs}
        self._buffers: dict[str, np.ndarray] = {}
        self._room = 0

    def __call__(self, request: Mapping[str, np.ndarray], candidates: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
        """request: half name -> (*half shape), candidates: half name -> (n, *half shape); input name -> (n, *shape), C-contiguous.

        An array that needs no writing is passed on; the others are valid until the next call.
        """
        if n > self._room:
            self._room = max(n, 2 * self._room)
            self._buffers = {spec.name: np.empty((self._room, *spec.shape), spec.dtype) for spec in self._specs}
        table = {}
        for name, parts in self._parts.items():
            if len(parts) == 1 and parts[0][0] == "candidate":
                table[name] = candidates[name]
            else:
                table[name] = self._buffers[name][:n]
                for side, place in parts:
                    table[name][place] = request[name] if side == "request" else candidates[name]
        return table

    def into(self, table: Mapping[str, np.ndarray], request: Mapping[str, np.ndarray], candidates: Mapping[str, np.ndarray]) -> None:
        """The same, written into the caller's arrays (n, *shape)."""
        for name, parts in self._parts.items():
            for side, place in parts:
                table[name][place] = request[name] if side == "request" else candidates[name]


def _place(half: Half) -> Any:
    """Where a half's columns lie in (n, *shape), as an index: even steps as a slice, which is several times faster than an array."""
    columns = half.columns
    if columns is None:
        return Ellipsis
    step = columns[1] - columns[0] if len(columns) > 1 else 1
    even = range(columns[0], columns[-1] + 1, step)
    return (slice(None), slice(even.start, even.stop, step) if columns == tuple(even) else np.array(columns, np.intp))
