"""The plain table of a request: engines that know rows only get each request value repeated beside every candidate."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from burnish.inputs import Half, Input


class Expand:
    """One buffer an input, grown when a request has more candidates than any before, so that most calls allocate nothing.

    Not for several threads at once: the buffers are written anew in each call.
    """

    def __init__(self, inputs: tuple[Input, ...]) -> None:
        self._inputs = [(spec.name, spec.halves) for spec in inputs]
        self._specs = inputs
        self._buffers: dict[str, np.ndarray] = {}
        self._room = 0

    def __call__(self, request: Mapping[str, np.ndarray], candidates: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
        """request: half name -> (*half shape), candidates: half name -> (n, *half shape); input name -> (n, *shape), C-contiguous.

        The arrays are valid until the next call.
        """
        if n > self._room:
            self._grow(n)
        table = {}
        for name, halves in self._inputs:
            if len(halves) == 1 and halves[0].side == "candidate":
                table[name] = candidates[name]
                continue
            whole = self._buffers[name][:n]
            for half in halves:
                _put(whole, half, request[name] if half.side == "request" else candidates[name])
            table[name] = whole
        return table

    def _grow(self, n: int) -> None:
        self._room = max(n, 2 * self._room)
        self._buffers = {spec.name: np.empty((self._room, *spec.shape), spec.dtype) for spec in self._specs}


def _put(whole: np.ndarray, half: Half, values: np.ndarray) -> None:
    if half.columns is None:
        whole[...] = values
    elif half.columns[-1] - half.columns[0] == len(half.columns) - 1:  # neighbours: a slice is many times faster than an index
        whole[:, half.columns[0] : half.columns[-1] + 1] = values
    else:
        whole[:, half.columns] = values
