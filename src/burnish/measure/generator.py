"""The load generator, a process of its own: `python -m burnish.measure.generator`.

It shares no Python lock with the servers, so neither waits for the other's bytecode. Queries leave through one pipe as (id, call) and the
ids of those answered come back through another; the kernel hands a query to whichever server thread reads first. Poisson arrivals are
drawn, timed and judged by MLCommons LoadGen; the arrivals of a trace are timed here, by the same rules.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import struct
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

QUERY = struct.Struct("=qq")  # id and number of the call; smaller than PIPE_BUF, so that it is written and read whole
AT_ONCE = select.PIPE_BUF // QUERY.size  # queries in one write, which nothing comes between
NO_ID = -1  # in the place of an id: no more queries
DONE_BYTES = 8
TRACE = "mlperf_log_trace.json"
ISSUED, REPLAYED = "issued.npy", "replayed.npy"  # nanoseconds of each query at our end; (3, queries) us of a replay
SWITCH_SECONDS = 1e-4  # between threads that want Python's lock: the default of 5 ms would be the p99 of a fast ranker
PR_SET_TIMERSLACK = 29  # linux/prctl.h


class Order(msgspec.Struct, frozen=True):
    """One run: LoadGen's settings, or the arrivals of a trace in the file `arrivals` ((2, queries): us, number of the call)."""

    logs: str
    calls: int  # how many there are to choose from
    settings: dict[str, bool | int | float] = {}
    find_peak: bool = False  # LoadGen's FindPeakPerformance in the place of one run
    arrivals: str = ""
    cores: tuple[int, ...] = ()


class _Pipes:
    """Both ends of a run as LoadGen sees a system under test."""

    def __init__(self, queries: int, done: int) -> None:
        self.queries, self.done = queries, done
        self.issued_ns: list[int] = []

    def issue(self, samples: list[Any]) -> None:
        now = time.perf_counter_ns()
        self.issued_ns += [now] * len(samples)
        packed = [QUERY.pack(sample.id, sample.index) for sample in samples]
        for begin in range(0, len(packed), AT_ONCE):
            os.write(self.queries, b"".join(packed[begin : begin + AT_ONCE]))

    def complete(self, loadgen: ModuleType) -> None:
        """Tell LoadGen of answers until the other side closes the pipe; many at once where many came."""
        answered, response = loadgen.QuerySamplesComplete, loadgen.QuerySampleResponse
        while ids := os.read(self.done, 1 << 16):
            answered([response(ident, 0, 0) for ident in memoryview(ids).cast("q")])


def replay(arrivals: np.ndarray, pipes: _Pipes) -> np.ndarray:
    """(3, queries): when each was meant to start, how much later it was sent, and its latency from the intended start, in us."""
    due_us, calls = arrivals[0], arrivals[1].astype(int).tolist()
    n, clock = len(calls), time.perf_counter_ns
    done_ns = np.zeros(n, np.int64)

    def complete() -> None:
        left = n
        while left and (ids := os.read(pipes.done, 1 << 16)):
            now = clock()
            for ident in memoryview(ids).cast("q"):
                done_ns[ident] = now
                left -= 1

    waiter = threading.Thread(target=complete, daemon=True)
    waiter.start()
    sent_ns = np.zeros(n, np.int64)
    start = clock() + 2_000_000
    for i, due in enumerate((start + (due_us - due_us[0]) * 1000).astype(np.int64).tolist()):
        while (now := clock()) < due:
            time.sleep((due - now) / 1e9)  # not a loop without sleep: that would keep Python's lock from the thread that takes the answers
        sent_ns[i] = now
        os.write(pipes.queries, QUERY.pack(i, calls[i]))
    waiter.join()
    meant = start + (due_us - due_us[0]) * 1000
    return np.stack([(meant - start) / 1000, (sent_ns - meant) / 1000, (done_ns - meant) / 1000])


def run(order: Order, pipes: _Pipes, loadgen: ModuleType) -> None:
    """One run by LoadGen; its logs and the times of our own end are files of `order.logs`."""
    settings, log = loadgen.TestSettings(), loadgen.LogSettings()
    settings.scenario = loadgen.TestScenario.Server
    settings.mode = loadgen.TestMode.FindPeakPerformance if order.find_peak else loadgen.TestMode.PerformanceOnly
    for name, value in order.settings.items():
        setattr(settings, name, value)
    log.enable_trace = not order.find_peak
    log.log_mode = (
        loadgen.LoggingMode.EndOfTestOnly
    )  # else a thread writes what was logged each second, on the core that keeps the schedule
    log.log_output = loadgen.LogOutputSettings()
    log.log_output.outdir = order.logs
    log.log_output.copy_summary_to_stdout = log.log_output.copy_detail_to_stdout = False
    sut = loadgen.ConstructSUT(pipes.issue, lambda: None)
    qsl = loadgen.ConstructQSL(order.calls, order.calls, lambda _: None, lambda _: None)
    pipes.issued_ns = []
    loadgen.StartTestWithLogSettings(sut, qsl, settings, log, "")
    loadgen.DestroyQSL(qsl)
    loadgen.DestroySUT(sut)
    np.save(Path(order.logs) / ISSUED, np.asarray(pipes.issued_ns, np.int64))


def main() -> None:
    """Orders as lines of JSON on standard input, until it ends; a byte through the pipe `report` after each."""
    queries, done, report = map(int, sys.argv[1:4])
    pipes = _Pipes(queries, done)
    if sys.platform == "linux":  # else the kernel wakes us up to 50 us late, to save power
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    gc.disable()
    sys.setswitchinterval(SWITCH_SECONDS)
    completer: threading.Thread | None = None
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line, type=Order)
        if order.cores:
            os.sched_setaffinity(0, order.cores)  # before any thread is made, so that all get it
        if order.arrivals:
            np.save(Path(order.logs) / REPLAYED, replay(np.load(order.arrivals), pipes))
        else:
            import mlperf_loadgen

            if completer is None:
                completer = threading.Thread(target=pipes.complete, args=(mlperf_loadgen,), daemon=True)
                completer.start()
            run(order, pipes, mlperf_loadgen)
        os.write(report, b".")
    os._exit(0)  # LoadGen's threads and ours wait for nothing that still matters


if __name__ == "__main__":
    main()
