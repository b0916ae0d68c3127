"""What calibration rows show of the values that linears read: extremes of each channel over all rows, and a sample of the rows.

A value is (rows, ..., K): all axes but the last are vectors of K channels. Memory is bounded whatever the number of rows: two numbers a
channel, and a sample of at most SAMPLE_BYTES.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from burnish.errors import InputError, RecipeError
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node
from burnish.inputs import rows_of

BATCH = 1024  # rows interpreted at a time
SAMPLE = 4096  # vectors kept of each value
SAMPLE_BYTES = 16 << 20
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: multiples of it spread evenly, out of step with any order of the rows
LEAST_ROWS = 16  # fewer say nothing of a range; a few thousand are good


class Observer:
    """Extremes of each channel (K,), and `sample`: evenly spread vectors (at most SAMPLE, K) of those seen."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.low = np.full(channels, np.inf, np.float32)
        self.high = np.full(channels, -np.inf, np.float32)
        self._keep = max(64, min(SAMPLE, SAMPLE_BYTES // (4 * channels)))
        self._keys = np.empty(0, np.uint64)  # of the vectors in the sample, all below the limit, which halves when the sample is full
        self._limit = np.uint64(2**64 - 1)
        self.sample = np.empty((0, channels), np.float32)

    @property
    def largest(self) -> np.ndarray:
        """(K,) the largest magnitude of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def see(self, value: np.ndarray) -> None:
        """Take in (..., K) finite float32 values."""
        vectors = value.reshape(-1, value.shape[-1])
        np.minimum(self.low, vectors.min(axis=0), out=self.low)
        np.maximum(self.high, vectors.max(axis=0), out=self.high)
        keys = np.arange(self.count, self.count + len(vectors), dtype=np.uint64) * GOLDEN
        self.count += len(vectors)
        self.sample = np.concatenate([self.sample, vectors[keys <= self._limit]])
        self._keys = np.concatenate([self._keys, keys[keys <= self._limit]])
        while len(self.sample) > self._keep:
            self._limit //= np.uint64(2)
            self.sample, self._keys = self.sample[self._keys <= self._limit], self._keys[self._keys <= self._limit]


def observe(graph: Graph, values: Sequence[Node], rows: Mapping[str, np.ndarray]) -> dict[Node, Observer]:
    """An Observer of each of the float values (..., K) over the rows (input name -> (rows, *shape)).

    RecipeError when there are fewer than LEAST_ROWS rows; InputError when the rows do not fit the inputs, or when a value is not finite,
    naming the input that brought it in.
    """
    count = rows_of(graph.inputs, rows)
    if count < LEAST_ROWS:
        raise RecipeError(
            f"{count} calibration rows are too few to know the range of a value; {LEAST_ROWS} are the least. Give a few thousand rows "
            "of the training data"
        )
    seen = {node: Observer(node.shape[-1]) for node in values}
    taps = Graph(graph.inputs, {str(i): node for i, node in enumerate(seen)})
    for start in range(0, count, BATCH):
        batch = {name: array[start : start + BATCH] for name, array in rows.items()}
        for (node, observer), value in zip(seen.items(), interpret(taps, batch).values()):
            if not np.isfinite(value).all():
                raise InputError(_not_finite(node, value, rows, start))
            observer.see(value)
    return seen


def _not_finite(node: Node, value: np.ndarray, rows: Mapping[str, np.ndarray], start: int) -> str:
    bad = start + int(np.argmin(np.isfinite(value.reshape(len(value), -1)).all(axis=1)))
    for name, array in rows.items():
        row = array[bad]
        if row.dtype.kind == "f" and not np.isfinite(row).all():
            return f"calibration row {bad} of input {name!r} holds NaN or an infinity. Remove such rows, or fill them as the model expects"
    return f"calibration row {bad} makes {node!r} NaN or infinite, though its inputs are finite. Check the model on that row"
