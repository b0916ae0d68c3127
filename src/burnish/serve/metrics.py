"""What a server did, counted by its workers and told in Prometheus' text format.

Each worker adds to a row of its own in one mapped file, so counting costs well under a microsecond and needs no lock; whoever is asked
sums the rows. A worker that dies gives its row to the one that replaces it, so that counters never fall.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GONE = 499  # as nginx says it: the client closed its connection before it had sent all
STATUSES = (200, 400, 403, 404, 405, 408, 413, 415, GONE, 500, 503)
SECONDS = (*(round(step * 10.0**power, 9) for power in range(-5, 1) for step in (1, 1.5, 2, 3, 5, 7)), 10.0)
CANDIDATES = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384, 65536)
HISTOGRAMS = {
    "burnish_request_seconds": ("Seconds from a request's arrival in its worker to its answer.", SECONDS),
    "burnish_queue_seconds": ("Seconds from a request's arrival in its worker to its turn.", SECONDS),
    "burnish_compute_seconds": ("Seconds of a request that were spent in the scorer.", SECONDS),
    "burnish_candidates": ("Candidates (rows) of a request.", CANDIDATES),
}
# a row: a count for each status, answers that were late, requests that wait, for each histogram its buckets (the last is +Inf) and the sum;
# whole pages, so rows share no cache line
_STARTS: dict[str, int] = {}
_LATE, _WAITING = len(STATUSES), len(STATUSES) + 1
_SLOTS = len(STATUSES) + 2
for _name, (_, _bounds) in HISTOGRAMS.items():
    _STARTS[_name] = _SLOTS
    _SLOTS += len(_bounds) + 2
_ROW_BYTES = -(-_SLOTS * 8 // mmap.PAGESIZE) * mmap.PAGESIZE


class Row:
    """The counters of this process. Only it writes them."""

    def __init__(self, cells: memoryview[float], index: int) -> None:
        self.index = index
        self._cells = cells
        self._status = {status: at for at, status in enumerate(STATUSES)}
        self._request, self._queue, self._compute, self._candidates = _STARTS.values()
        self.waiting(0)  # of a worker that died none waits any more

    def answered(self, status: int) -> None:
        self._cells[self._status[status]] += 1.0

    def waiting(self, requests: int) -> None:
        """So many requests wait for their turn now."""
        self._cells[_WAITING] = requests

    def scored(self, candidates: int, queue_seconds: float, compute_seconds: float, request_seconds: float, late: bool = False) -> None:
        """One request that was answered with scores; `late` when its time was over by then."""
        self._cells[self._status[200]] += 1.0
        self._cells[_LATE] += late
        self._observe(self._request, SECONDS, request_seconds)
        self._observe(self._queue, SECONDS, queue_seconds)
        self._observe(self._compute, SECONDS, compute_seconds)
        self._observe(self._candidates, CANDIDATES, candidates)

    def _observe(self, start: int, bounds: tuple[float, ...], value: float) -> None:
        self._cells[start + bisect_left(bounds, value)] += 1.0
        self._cells[start + len(bounds) + 1] += value


class Board:
    """The rows of all workers, in a file that each of them maps."""

    def __init__(self, path: Path, facts: dict[str, str]) -> None:
        self.path = path
        self.facts = facts
        self._file = path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), 0)
        self.registry = CollectorRegistry()
        self.registry.register(self)

    @classmethod
    def create(cls, workers: int, facts: dict[str, str]) -> Board:
        """A board of zeros in a new temporary file. `facts` are the labels of burnish_info."""
        handle, name = tempfile.mkstemp(prefix="burnish-metrics-")
        os.ftruncate(handle, workers * _ROW_BYTES)
        os.close(handle)
        return cls(Path(name), facts)

    def claim(self) -> Row:
        """The first row that no living process has. It is this process's until it ends."""
        for index in range(len(self._map) // _ROW_BYTES):
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, index * _ROW_BYTES)
            except OSError:
                continue
            start = index * _ROW_BYTES
            return Row(memoryview(self._map)[start : start + _SLOTS * 8].cast("d"), index)
        raise RuntimeError("there are more workers than rows on the metrics board")

    def statistics(self) -> dict[str, Any]:
        """What Triton's statistics tell of a model: requests, and nanoseconds in all, that succeeded, failed, waited and were scored."""
        total = np.frombuffer(self._map, np.float64).reshape(-1, _ROW_BYTES // 8).sum(axis=0)

        def spent(name: str) -> dict[str, int]:
            end = _STARTS[name] + len(SECONDS) + 1
            return {"count": int(total[_STARTS[name] : end].sum()), "ns": round(1e9 * total[end])}

        failed = int(total[: len(STATUSES)].sum() - total[STATUSES.index(200)])
        success, infer = spent("burnish_request_seconds"), spent("burnish_compute_seconds")
        stats = {"success": success, "fail": {"count": failed, "ns": 0}, "queue": spent("burnish_queue_seconds"), "compute_infer": infer}
        return {"inference_count": success["count"], "execution_count": infer["count"], "inference_stats": stats}

    def text(self) -> bytes:
        """All counters in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Any]:
        """The sums over all workers, as Prometheus' client wants them."""
        rows = np.frombuffer(self._map, np.float64).reshape(-1, _ROW_BYTES // 8)
        total = rows.sum(axis=0)
        info = GaugeMetricFamily("burnish_info", "What is served.", labels=tuple(self.facts))
        info.add_metric(tuple(self.facts.values()), 1)
        yield info
        answers = CounterMetricFamily(
            "burnish_requests", "Inference requests, and other requests that were refused, by HTTP status.", labels=("status",)
        )
        for at, status in enumerate(STATUSES):
            answers.add_metric((str(status),), total[at])
        yield answers
        yield CounterMetricFamily("burnish_late", "Requests that were scored, and answered after their time was over.", value=total[_LATE])
        yield GaugeMetricFamily("burnish_waiting", "Requests that wait for their turn.", value=total[_WAITING])
        for name, (about, bounds) in HISTOGRAMS.items():
            start = _STARTS[name]
            counts = np.cumsum(total[start : start + len(bounds) + 1])
            told = [(str(bound), count) for bound, count in zip((*map(float, bounds), "+Inf"), counts)]
            yield HistogramMetricFamily(name, about, buckets=told, sum_value=total[start + len(bounds) + 1])

    def remove(self) -> None:
        """Delete the file; processes that mapped it keep counting into nothing."""
        self.path.unlink(missing_ok=True)
