"""Arrivals of a user's own stream: when requests came, and how many candidates each had.

A trace keeps its own clock: offered at more or less load than it has, a burst still lasts as long as it did. More load puts further
arrivals between those of the trace, as many as were there; less leaves some out at random, as a balancer does that spreads a stream over
replicas. So one trace gives the stream of a whole fleet, and of one replica of it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from burnish.errors import JobError, MeasureError

TIME = "timestamp"  # the column of a trace with the times
LEAST = 100  # requests, below which there is nothing to say of how they come
GAP = 30.0  # times the mean distance around it: of exponential distances one in e^30 is so long
AROUND = 50  # distances on each side that make the mean around a gap


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in the order they came."""

    times_us: np.ndarray  # (requests,) float64, ascending, from 0
    counts: np.ndarray | None = None  # (requests,) int64 candidates of each; None where the trace does not say

    def __post_init__(self) -> None:
        times = np.asarray(self.times_us, np.float64)
        back = np.flatnonzero(np.diff(times) < 0)
        if len(times) < 2 or back.size or not times[-1] > times[0]:
            where = f"goes back at entry {back[0] + 1}" if back.size else "has no two different times"
            raise MeasureError(f"the arrival trace {where}; give at least 2 times in ascending order")
        object.__setattr__(self, "times_us", times - times[0])

    def __len__(self) -> int:
        return len(self.times_us)

    @property
    def seconds(self) -> float:
        return float(self.times_us[-1]) / 1e6

    @property
    def qps(self) -> float:
        """Mean rate of the trace as it is."""
        return (len(self) - 1) / self.seconds

    @property
    def burst(self) -> float:
        """How much more came in the busiest tenth of the time than on average, in a hundred parts of equal length: 1 is a steady stream."""
        parts = np.bincount(np.minimum(99, (self.times_us / self.times_us[-1] * 100).astype(int)), minlength=100)
        return float(np.sort(parts)[-10:].mean() / parts.mean())

    def busiest(self, seconds: float) -> Trace:
        """The stretch of that length with most requests; the whole trace when it is no longer."""
        if seconds >= self.seconds:
            return self
        ends = np.searchsorted(self.times_us, self.times_us + seconds * 1e6)
        begin = int(np.argmax(ends - np.arange(len(self))))
        kept = slice(begin, max(int(ends[begin]), begin + 2))
        return Trace(self.times_us[kept], None if self.counts is None else self.counts[kept])

    def at(self, qps: float, seed: int = 0, seconds: float | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """The trace offered at a mean rate of `qps`, again and again until it has lasted `seconds` (once when None): times in us, and the
        candidates of each request. At its own rate it is replayed as it is."""
        times, counts, n = self.times_us, self.counts, len(self)
        share, whole = qps / self.qps, times[-1] + 1e6 / self.qps
        random = np.random.default_rng(seed)
        total = n * (max(1, round(seconds * 1e6 / whole)) if seconds else 1)
        if share == 1:
            which = np.arange(total)
        elif share < 1:  # each is kept with that chance: the distances of those kept are geometric
            which = np.cumsum(random.geometric(share, int(total * share + 6 * (total * share) ** 0.5 + 10))) - 1
            which = which[which < total]
        else:
            which = np.repeat(np.arange(total), int(share) + (random.random(total) < share - int(share)))
        when = times[which % n] + which // n * whole
        again = np.flatnonzero(np.diff(which, prepend=-1) == 0)  # a further copy: somewhere before the next of the trace
        when[again] += random.random(len(again)) * np.diff(times, append=whole)[which[again] % n]
        order = np.argsort(when, kind="stable")
        return when[order], None if counts is None else counts[which[order] % n]


def read(path: str | Path, candidates: str | None = None) -> Trace:
    """The trace in a file, read once; see `_read`."""
    path = Path(path)
    return _read(path, candidates, path.stat().st_mtime_ns if path.exists() else 0)


@functools.lru_cache(4)
def _read(path: Path, candidates: str | None, changed_ns: int) -> Trace:
    """The trace in a Parquet or CSV file: its column `timestamp` (dates with times, or seconds), and `candidates`, a column with the number
    of candidates of each request. JobError says what is wrong in which row, and what could be used instead."""
    import polars as pl

    if not path.exists():
        raise JobError(f"no trace {path}, which objective.trace names")
    try:
        frame = pl.read_csv(path, try_parse_dates=True) if path.suffix == ".csv" else pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise JobError(f"cannot read the trace {path}: {str(error).splitlines()[0]}") from None
    for name in (TIME, *([candidates] if candidates else [])):
        if name not in frame.columns:
            raise JobError(f"{path.name}: no column {name!r}. It has {', '.join(frame.columns)}")
        if missing := frame[name].null_count():
            raise JobError(f"{path.name}: column {name!r} has no value in {missing:,} of {len(frame):,} rows")
    if len(frame) < LEAST:
        raise JobError(f"{path.name}: {len(frame)} requests do not tell how they come. Give at least {LEAST}, or no trace")
    column = frame[TIME]
    if isinstance(column.dtype, pl.Datetime):
        times = column.dt.timestamp("us").to_numpy().astype(np.float64)
    elif column.dtype.is_numeric():
        times = column.to_numpy().astype(np.float64) * 1e6
    else:
        raise JobError(f"{path.name}: column {TIME!r} has {column.dtype} values. Give dates with times, or seconds")
    counts = None
    if candidates:
        if not frame[candidates].dtype.is_integer() or int(frame[candidates].min()) < 1:  # type: ignore[arg-type]
            raise JobError(f"{path.name}: column {candidates!r} has values that count no candidates. Give whole numbers from 1 on")
        counts = frame[candidates].to_numpy().astype(np.int64)
    _check(times, path.name)
    return Trace(times, counts)


def _check(times_us: np.ndarray, name: str) -> None:
    """Refuse times that go back, stand still, or stop for so long that records must be missing."""
    if not np.isfinite(times_us).all():
        raise JobError(f"{name}: row {int(np.argmin(np.isfinite(times_us)))} has a time that is no finite number")
    gaps = np.diff(times_us)
    if (back := np.flatnonzero(gaps < 0)).size:
        row = int(back[0]) + 1
        raise JobError(
            f"{name}: time goes back by {-gaps[row - 1] / 1e6:.3g} s at row {row:,}, and {back.size:,} times in all. Sort it by {TIME}"
        )
    if not gaps.any():
        raise JobError(f"{name}: all requests came at the same time. Give times as they were, finer than a second if many came in one")
    around = np.convolve(gaps, np.ones(2 * AROUND + 1), "same")
    weight = np.convolve(np.ones_like(gaps), np.ones(2 * AROUND + 1), "same")
    mean = (around - gaps) / np.maximum(1, weight - 1)  # of the others around it
    long = np.flatnonzero((gaps > GAP * mean) & (mean > 0))
    if long.size:
        ends = np.concatenate(([-1], long, [len(times_us) - 1]))
        best = int(np.argmax(np.diff(ends)))
        row = int(long[0])
        raise JobError(
            f"{name}: nothing came for {gaps[row] / 1e6:.3g} s after row {row:,}, {gaps[row] / mean[row]:,.0f} times the distance there, "
            f"so records are missing. The longest stretch without a gap is rows {ends[best] + 1:,} to {ends[best + 1]:,}: give that"
        )
