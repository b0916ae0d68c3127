"""What calibration rows show of the values that linears read: extremes of each channel over all rows, and a sample of the rows.

A value is (rows, ..., K): all axes but the last are vectors of K channels. Memory is bounded whatever the number of rows: two numbers a
channel, and a sample of at most SAMPLE_BYTES. So is time: reading stops when twice the rows no longer widen the ranges.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from burnish.errors import CalibrationWarning, InputError, RecipeError
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node
from burnish.inputs import rows_of

BATCH = 1024  # rows interpreted at a time
SAMPLE = 4096  # vectors kept of each value
SAMPLE_BYTES = 16 << 20
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: multiples of it spread evenly, out of step with any order of the rows
LEAST_ROWS = 16  # fewer say nothing of a range; a few thousand are good
FIRST = 4096  # rows after which it is first asked whether the ranges have settled
SETTLED = 0.05  # of a range, what twice the rows may widen it by on average: a Gaussian's does so by less from some 3,000 rows on


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


@dataclass(frozen=True)
class Seen:
    """An Observer of each value; how many rows were read, and by what part the last doubling of them widened the ranges of the value that
    settled least (infinite where there were too few rows to tell)."""

    observers: dict[Node, Observer]
    rows: int
    growth: float

    @property
    def settled(self) -> bool:
        return self.growth <= SETTLED

    def __getitem__(self, node: Node) -> Observer:
        return self.observers[node]


def observe(graph: Graph, values: Sequence[Node], rows: Mapping[str, np.ndarray]) -> Seen:
    """An Observer of each of the float values (..., K) over as many of the rows (input name -> (rows, *shape)) as their ranges need.

    Rows are read in strides over all of them, so an order they stand in does not matter; after FIRST rows, and whenever there are
    twice as many, it ends if no value's ranges grew by more than SETTLED on average over its channels.
    CalibrationWarning when the rows end before that. RecipeError when there are fewer than LEAST_ROWS rows; InputError when the rows do not
    fit the inputs, or when a value is not finite, naming the input that brought it in.
    """
    count = rows_of(graph.inputs, rows)
    if count < LEAST_ROWS:
        raise RecipeError(
            f"{count} calibration rows are too few to know the range of a value; {LEAST_ROWS} are the least. Give a few thousand rows "
            "of the training data"
        )
    seen = {node: Observer(node.shape[-1]) for node in values}
    taps = Graph(graph.inputs, {str(i): node for i, node in enumerate(seen)})
    read, check, widths, growth = 0, FIRST // 2, [np.empty(0)] * len(seen), np.inf
    strides = -(-count // BATCH)
    for start in range(strides):
        batch = {name: array[start::strides] for name, array in rows.items()}
        for (node, observer), value in zip(seen.items(), interpret(taps, batch).values()):
            if not np.isfinite(value).all():
                raise InputError(_not_finite(node, value, rows, start, strides))
            observer.see(value)
        read += len(range(start, count, strides))
        if read >= check:
            before, widths = widths, [observer.high.astype(np.float64) - observer.low for observer in seen.values()]
            if read >= FIRST:
                growth = max((_growth(a, b) for a, b in zip(before, widths)), default=0.0)
            if growth <= SETTLED:
                break
            check *= 2
    if seen and growth > SETTLED:
        warnings.warn(_unsettled(read, growth), CalibrationWarning, stacklevel=2)
    return Seen(seen, read, growth)


def _unsettled(rows: int, growth: float) -> str:
    if np.isinf(growth):
        return f"{rows:,} calibration rows are too few to tell whether the ranges of activations have settled. Give at least {FIRST:,}"
    return (
        f"the ranges of activations have not settled: twice as many rows, up to {rows:,}, still widened them by {growth:.0%} on average, "
        f"and {SETTLED:.0%} is the most for settled ones. Give more calibration rows"
    )


def _growth(before: np.ndarray, now: np.ndarray) -> float:
    """By what part the widths (K,) of the channels grew, on average; one that had none counts as doubled."""
    grew = now > before
    part = np.where(grew, 1.0, 0.0)
    known = grew & (before > 0)
    part[known] = np.minimum(now[known] / before[known] - 1, 1.0)
    return float(part.mean())


def _not_finite(node: Node, value: np.ndarray, rows: Mapping[str, np.ndarray], start: int, stride: int) -> str:
    bad = start + stride * int(np.argmin(np.isfinite(value.reshape(len(value), -1)).all(axis=1)))
    for name, array in rows.items():
        row = array[bad]
        if row.dtype.kind == "f" and not np.isfinite(row).all():
            return f"calibration row {bad} of input {name!r} holds NaN or an infinity. Remove such rows, or fill them as the model expects"
    return f"calibration row {bad} makes {node!r} NaN or infinite, though its inputs are finite. Check the model on that row"
