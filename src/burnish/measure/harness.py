"""The side of a load test that serves: a thread for each server, fed by the generator's process through a pipe."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import numpy as np

from burnish.errors import MeasureError, Overloaded
from burnish.measure.generator import DONE_BYTES, NO_ID, QUERY, SWITCH_SECONDS, Order
from burnish.measure.latency import Scoring
from burnish.measure.traffic import Traffic

CHECKED = 64  # calls whose answers are compared
KEPT = 4 * CHECKED  # answers that are kept at most
PIPE_BYTES = 1 << 20  # queries that wait lie in a pipe; its default holds 4,096 of them
END_SECONDS = 10.0  # for the generator to end after it was told to


class Generator:
    """The generator's process and the pipes to it. One serves all runs of a search, since starting Python takes a quarter of a second."""

    def __init__(self) -> None:
        self.queries, theirs = os.pipe()
        self.inject = theirs  # our own end of the pipe of queries, for what ends the servers
        done, self.done = os.pipe()
        self.report, report = os.pipe()
        _widen(theirs)
        command = [sys.executable, "-m", "burnish.measure.generator", str(theirs), str(done), str(report)]
        path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            command,
            pass_fds=(theirs, done, report),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
        os.close(done)
        os.close(report)

    def start(self, order: Order) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(order) + b"\n")
        self.process.stdin.flush()

    def wait(self) -> None:
        """Until the run is over; MeasureError with its last line when the process has died."""
        if os.read(self.report, 1):
            return
        assert self.process.stderr is not None
        said = self.process.stderr.read().decode(errors="replace").strip().splitlines()
        raise MeasureError(f"the load generator died: {said[-1] if said else f'exit code {self.process.wait()}'}")

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stderr is not None
        self.process.stdin.close()
        os.close(self.done)
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stderr.close()
        for end in (self.queries, self.inject, self.report):
            os.close(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Run:
    """A system under test: one queue, and one thread for each of `calls`."""

    def __init__(self, generator: Generator, calls: Sequence[Scoring], traffic: Traffic, keep: set[int], give_up_after: float) -> None:
        self.generator = generator
        self.calls = calls
        self.traffic = list(traffic)
        self.keep = keep
        self.give_up_after = give_up_after
        self.service_ns: list[int] = []
        self.harness_ns: list[int] = []
        self.between_ns: list[int] = []  # from one query to the next: reading it, where it was there already, and idling
        self.answers: list[tuple[int, object]] = []
        self.server_cpu_ns = 0
        self.gave_up = False
        self.refused = 0
        self.failure: BaseException | None = None
        remote = any(getattr(call, "remote", False) for call in calls)
        self.cores: tuple[tuple[int, ...], ...] = cores(0 if remote else len(calls))

    def go(self, order: Order) -> None:
        """Run to the end; MeasureError if a call raised."""
        switch, collects = sys.getswitchinterval(), gc.isenabled()
        workers = [threading.Thread(target=self._serve, args=(i,), daemon=True) for i in range(len(self.calls))]
        sys.setswitchinterval(SWITCH_SECONDS)
        gc.collect()
        gc.disable()
        self.stop_at = time.monotonic() + self.give_up_after
        process_ns = time.process_time_ns()
        try:
            for thread in workers:
                thread.start()
            self.generator.start(msgspec.structs.replace(order, cores=self.cores[0] if self.cores else ()))
            self.generator.wait()
        except KeyboardInterrupt:
            self.stop_at = 0.0  # answer what is still to come without scoring, and come to an end
            self.generator.process.terminate()
            raise
        finally:
            self.stop_at = 0.0
            for _ in workers:
                os.write(self.generator.inject, QUERY.pack(NO_ID, 0))
            for thread in workers:
                thread.join()
            self.server_cpu_ns = time.process_time_ns() - process_ns
            sys.setswitchinterval(switch)
            if collects:
                gc.enable()
        if self.failure is not None:
            raise MeasureError(f"the engine failed under load: {type(self.failure).__name__}: {self.failure}") from self.failure

    def _serve(self, number: int) -> None:
        if len(self.cores) > 1:
            os.sched_setaffinity(0, self.cores[1 + number])
        clock, call, calls, keep = time.perf_counter_ns, self.calls[number], self.traffic, self.keep
        read, queries, done, size = os.read, self.generator.queries, self.generator.done, QUERY.size
        last = clock()
        while (query := QUERY.unpack(read(queries, size)))[0] != NO_ID:
            taken = clock()
            self.between_ns.append(taken - last)
            ident, index = query
            answered = ident.to_bytes(DONE_BYTES, sys.byteorder)
            if self.failure is not None or time.monotonic() >= self.stop_at:
                self.gave_up = True
                _tell(done, answered)
                continue
            begin = clock()
            try:
                answer = call(*calls[index])
            except Overloaded:
                self.refused += 1
                answer = None
            except Exception as error:  # whatever it is: LoadGen waits for ever for a query that is never answered
                self.failure = error
                answer = None
            end = clock()
            self.service_ns.append(end - begin)
            if answer is not None and index in keep and len(self.answers) < KEPT:
                self.answers.append((index, kept(answer)))
            _tell(done, answered)
            last = clock()
            self.harness_ns.append(begin - taken + last - end)


def _tell(done: int, answered: bytes) -> None:
    try:
        os.write(done, answered)
    except BrokenPipeError:  # the generator was ended, by Ctrl-C
        return


def cores(servers: int) -> tuple[tuple[int, ...], ...]:
    """Cores of the generator and of each server: one each while there are enough; servers share what the generator leaves otherwise, and
    nothing is pinned on a single core."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(allowed) < 2:
        return ()
    rest = allowed[1:]
    return ((allowed[0],), *((rest[i],) if servers <= len(rest) else tuple(rest) for i in range(servers)))


def kept(answer: object) -> object:
    """A copy: an engine may use the memory of an answer again for the next."""
    if isinstance(answer, dict):
        return {name: np.copy(value) for name, value in answer.items()}
    return np.copy(answer)  # type: ignore[call-overload]


def same(answer: object, truth: object, tolerance: float) -> bool:
    """Whether two answers agree within an absolute tolerance, output by output."""
    if isinstance(truth, dict):
        return isinstance(answer, dict) and all(same(answer.get(name), value, tolerance) for name, value in truth.items())
    a, b = np.asarray(answer), np.asarray(truth)
    return a.shape == b.shape and bool(np.all(np.abs(a.astype(np.float64) - b) <= tolerance))


def _widen(pipe: int) -> None:
    """Let a pipe hold as many queries as an overloaded run leaves waiting, where the system allows it."""
    import fcntl

    if hasattr(fcntl, "F_SETPIPE_SZ"):
        try:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            return
