"""A sample of what is served, held against the golden rows: do inputs leave their range, do scores move?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from burnish.serve.protocol import Call
from burnish.serve.rollout import QUANTILES, binned


class Sampler:
    """Says which requests are looked at, and counts what it finds in them. `inner` are the bounds of the bins of scores: one for all
    versions that a server has in its life, so that they compare."""

    SELDOM = 16  # one request of so many, while nothing is on trial

    def __init__(self, inner: Sequence[float] = (0.0,) * (QUANTILES - 1)) -> None:
        self.every = self.SELDOM
        self.due = False
        self._count = 0
        self._inner = np.array(inner, np.float64)
        self._ranges: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def know(self, table: Mapping[str, np.ndarray]) -> None:
        """Golden rows (N, *shape)."""
        ranges = {}
        for name, array in table.items():
            if array.dtype.kind == "f":
                low, high = np.nanmin(array, axis=0), np.nanmax(array, axis=0)
                ranges[name] = low - (high - low), high + (high - low)
        self._ranges = ranges

    def wants(self) -> bool:
        """Whether this request is one of the sample; it is then `due`."""
        self._count += 1
        if self._count >= self.every:
            self._count = 0
            self.due = True
        return self.due

    def bins(self, scores: np.ndarray) -> list[float]:
        return binned(scores, self._inner)

    def outside(self, call: Call) -> tuple[int, int]:
        """How many numbers of the float inputs there are, and how many lie outside the range of the golden rows, widened by its own width
        on both sides. An input with columns on both sides is left out."""
        looked = outside = 0
        for arrays in (call.table or {}, call.request, call.candidates):
            for name, array in arrays.items():
                limits = self._ranges.get(name)
                if limits is not None and array.shape[array.ndim - limits[0].ndim :] == limits[0].shape:
                    looked += array.size
                    outside += int(((array < limits[0]) | (array > limits[1])).sum())
        return looked, outside
