"""What a server did, counted by its workers and told in Prometheus' text format.

Each worker adds to a row of its own in one mapped file, so counting costs well under a microsecond and needs no lock; whoever is asked
sums the rows. A worker that dies gives its row to the one that replaces it, so that counters never fall.

Two versions may be served at a time, so a row has two arms: what each version did, by which `rollout` judges a new one.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, UnknownMetricFamily

from burnish.serve.rollout import BINS, Arm, drift

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GONE = 499  # as nginx says it: the client closed its connection before it had sent all
STATUSES = (200, 400, 401, 403, 404, 405, 408, 413, 415, GONE, 500, 503)
SECONDS = (*(round(step * 10.0**power, 9) for power in range(-5, 1) for step in (1, 1.5, 2, 3, 5, 7)), 10.0)
CANDIDATES = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384, 65536)
TOGETHER = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
HISTOGRAMS = {
    "burnish_request_seconds": ("Seconds from a request's arrival in its worker to its answer.", SECONDS),
    "burnish_queue_seconds": ("Seconds from a request's arrival in its worker to its turn.", SECONDS),
    "burnish_compute_seconds": ("Seconds of a request that were spent in the scorer.", SECONDS),
    "burnish_candidates": ("Candidates (rows) of a request.", CANDIDATES),
    "burnish_batch_size": ("Requests that came in one call and were scored in one turn.", TOGETHER),
}
# a row: a count for each status, answers that were late, requests that wait, input values that were looked at, those out of range,
# what shadow scoring compared, workers that came up; for each histogram its buckets (the last is +Inf) and the sum; two arms. Whole
# pages, so rows share no cache line
_LATE, _WAITING, _LOOKED, _OUTSIDE = range(len(STATUSES), len(STATUSES) + 4)
_SHADOWED, _SKIPPED, _APART, _STARTED = range(_OUTSIDE + 1, _OUTSIDE + 5)
_SLOTS = _STARTED + 1
_STARTS: dict[str, int] = {}
for _name, (_, _bounds) in HISTOGRAMS.items():
    _STARTS[_name] = _SLOTS
    _SLOTS += len(_bounds) + 2
_ARMS = _SLOTS  # each: requests, errors, buckets of compute seconds, bins of scores
_ARM_SLOTS = 2 + len(SECONDS) + 1 + BINS
_SLOTS += 2 * _ARM_SLOTS
_ROW_BYTES = -(-_SLOTS * 8 // mmap.PAGESIZE) * mmap.PAGESIZE


class Row:
    """The counters of this process. Only it writes them."""

    def __init__(self, cells: memoryview[float], index: int) -> None:
        self.index = index
        self._cells = cells
        self._status = {status: at for at, status in enumerate(STATUSES)}
        self._request, self._queue, self._compute, self._candidates, self._batch = _STARTS.values()
        self.waiting(0)  # of a worker that died none waits any more

    def answered(self, status: int) -> None:
        self._cells[self._status[status]] += 1.0

    def started(self) -> None:
        """This worker can answer now."""
        self._cells[_STARTED] += 1.0

    def waiting(self, requests: int) -> None:
        """So many requests wait for their turn now."""
        self._cells[_WAITING] = requests

    def scored(
        self,
        candidates: int,
        queue_seconds: float,
        compute_seconds: float,
        request_seconds: float,
        late: bool = False,
        arm: int = 0,
        requests: int = 1,
    ) -> None:
        """A call that was answered with scores; `late` when its time was over by then, `requests` that it carried."""
        cells = self._cells
        cells[0] += 1.0  # 200
        cells[_LATE] += late
        compute = bisect_left(SECONDS, compute_seconds)
        for start, at, value in (
            (self._request, bisect_left(SECONDS, request_seconds), request_seconds),
            (self._queue, bisect_left(SECONDS, queue_seconds), queue_seconds),
            (self._compute, compute, compute_seconds),
        ):
            cells[start + at] += 1.0
            cells[start + _SECONDS_SUM] += value
        cells[self._candidates + bisect_left(CANDIDATES, candidates)] += 1.0
        cells[self._candidates + _CANDIDATES_SUM] += candidates
        cells[self._batch + bisect_left(TOGETHER, requests)] += 1.0
        cells[self._batch + _TOGETHER_SUM] += requests
        start = _ARMS + arm * _ARM_SLOTS
        cells[start] += 1.0
        cells[start + 2 + compute] += 1.0

    def failed(self, arm: int) -> None:
        """A version raised on a request."""
        self._cells[_ARMS + arm * _ARM_SLOTS + 1] += 1.0

    def scores(self, arm: int, counts: Sequence[float]) -> None:
        """Scores of a version, counted in BINS bins."""
        start = _ARMS + arm * _ARM_SLOTS + 2 + len(SECONDS) + 1
        for i, count in enumerate(counts):
            self._cells[start + i] += count

    def ranges(self, looked: int, outside: int) -> None:
        """Of so many input values, so many lay outside the range of the golden rows."""
        self._cells[_LOOKED] += looked
        self._cells[_OUTSIDE] += outside

    def shadowed(self, arm: int, compute_seconds: float, scores: int, apart: float) -> None:
        """The candidate scored a request that the current version answered; the sum of |difference| over its scores."""
        self._cells[_SHADOWED] += scores
        self._cells[_APART] += apart
        start = _ARMS + arm * _ARM_SLOTS
        self._cells[start] += 1.0
        self._cells[start + 2 + bisect_left(SECONDS, compute_seconds)] += 1.0

    def skipped(self) -> None:
        """A request was not scored by the shadow, because others waited."""
        self._cells[_SKIPPED] += 1.0


_SECONDS_SUM, _CANDIDATES_SUM, _TOGETHER_SUM = len(SECONDS) + 1, len(CANDIDATES) + 1, len(TOGETHER) + 1


class Board:
    """The rows of all workers, in a file that each of them maps. `facts` are the labels of burnish_info; `arm` is that of the current
    version."""

    def __init__(self, path: Path, facts: dict[str, str]) -> None:
        self.path = path
        self.facts = facts
        self.arm = 0
        self._file = path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), 0)
        self.registry = CollectorRegistry()
        self.registry.register(self)

    @classmethod
    def create(cls, workers: int, facts: dict[str, str]) -> Board:
        """A board of zeros in a new temporary file."""
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

    def started(self) -> int:
        """How many workers have come up, those that replaced others included."""
        return int(self._total()[_STARTED])

    def arm_of(self, which: int) -> Arm:
        """What the versions that had an arm did until now, all workers together."""
        start = _ARMS + which * _ARM_SLOTS
        total = self._total()[start : start + _ARM_SLOTS]
        compute, scores = total[2 : 3 + len(SECONDS)], total[3 + len(SECONDS) :]
        return Arm(int(total[0]), int(total[1]), tuple(compute.tolist()), tuple(scores.tolist()))

    def statistics(self) -> dict[str, Any]:
        """What Triton's statistics tell of a model: requests, and nanoseconds in all, that succeeded, failed, waited and were scored."""
        total = self._total()

        def spent(name: str) -> dict[str, int]:
            end = _STARTS[name] + _SECONDS_SUM
            return {"count": int(total[_STARTS[name] : end].sum()), "ns": round(1e9 * total[end])}

        failed = int(total[: len(STATUSES)].sum() - total[0])
        success, infer = spent("burnish_request_seconds"), spent("burnish_compute_seconds")
        stats = {"success": success, "fail": {"count": failed, "ns": 0}, "queue": spent("burnish_queue_seconds"), "compute_infer": infer}
        return {"inference_count": success["count"], "execution_count": infer["count"], "inference_stats": stats}

    def text(self) -> bytes:
        """All counters in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Any]:
        """The sums over all workers, as Prometheus' client wants them."""
        total = self._total()
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
        yield CounterMetricFamily("burnish_worker_starts", "Workers that came up, replacements included.", value=total[_STARTED])
        yield GaugeMetricFamily("burnish_waiting", "Requests that wait for their turn.", value=total[_WAITING])
        for name, (about, bounds) in HISTOGRAMS.items():
            start = _STARTS[name]
            counts = np.cumsum(total[start : start + len(bounds) + 1])
            told = [(str(bound), count) for bound, count in zip((*map(float, bounds), "+Inf"), counts)]
            yield HistogramMetricFamily(name, about, buckets=told, sum_value=total[start + len(bounds) + 1])
        yield from self._watched(total)
        yield from self._as_triton(total)

    def _watched(self, total: np.ndarray) -> Iterator[Any]:
        """Drift, ranges, and what shadow scoring found."""
        looked = total[_LOOKED]
        yield GaugeMetricFamily(
            "burnish_range_overflow_ratio",
            "Share of the inputs' numbers, in a sample of requests, outside the range of the golden rows widened by its own width.",
            value=total[_OUTSIDE] / looked if looked else 0.0,
        )
        told = GaugeMetricFamily(
            "burnish_score_drift",
            "Population stability index of a sample of scores: since the start, against those of the golden rows.",
            labels=("of",),
        )
        for name, arm in (("current", self.arm), ("other", 1 - self.arm)):
            told.add_metric((name,), drift(self.arm_of(arm).scores))
        yield told
        yield CounterMetricFamily("burnish_shadow_scores", "Scores that the shadow was compared in.", value=total[_SHADOWED])
        yield CounterMetricFamily("burnish_shadow_skipped", "Requests that the shadow left out, as others waited.", value=total[_SKIPPED])
        yield CounterMetricFamily("burnish_shadow_difference", "Sum of |shadow's score - current score|.", value=total[_APART])

    def _as_triton(self, total: np.ndarray) -> Iterator[Any]:
        """The counters that dashboards made for Triton read; durations in microseconds."""
        labels = {"model": self.facts.get("model", ""), "version": self.facts.get("version", "")}
        candidates = total[_STARTS["burnish_candidates"] + _CANDIDATES_SUM]
        told = [
            ("nv_inference_request_success", "Requests that were answered with scores.", total[0]),
            ("nv_inference_request_failure", "Requests that were not.", total[1 : len(STATUSES)].sum()),
            ("nv_inference_count", "Rows that were scored.", candidates),
            ("nv_inference_exec_count", "Calls of the scorer.", total[0]),
        ]
        for name, of in (("request", "request"), ("queue", "queue"), ("compute_infer", "compute")):
            seconds = total[_STARTS[f"burnish_{of}_seconds"] + _SECONDS_SUM]
            told.append((f"nv_inference_{name}_duration_us", f"Microseconds in all: {of}.", seconds * 1e6))
        for name, about, value in told:
            # a counter would be told under a name with _total, which Triton's have not; Prometheus counts in untyped ones as well
            family = UnknownMetricFamily(name, about, labels=tuple(labels))
            family.add_metric(tuple(labels.values()), value)
            yield family

    def _total(self) -> np.ndarray:
        total: np.ndarray = np.frombuffer(self._map, np.float64).reshape(-1, _ROW_BYTES // 8).sum(axis=0)
        return total

    def remove(self) -> None:
        """Delete the file; processes that mapped it keep counting into nothing."""
        self.path.unlink(missing_ok=True)
