"""Who is scored next, and who is refused at once because the answer would come too late.

A worker scores one request at a time, on its event loop. Between two of them it lets the loop take in everything that arrived meanwhile,
so that each request gets its time of arrival, and a refusal its answer, within the time of one scoring, and no thread changes hands.

A request is admitted when what waits before it, and it itself, will be done within its time. Two things are learned for that from the
requests that were scored: how long scoring so many rows takes, and by how much longer a turn is than its scoring, which is what the
protocol, the refusals of others and neighbours on the core cost. When a turn comes too late all the same, the request is refused then:
nothing is scored that nobody waits for. However many arrive, at least half of the time is for scoring: an offer of many times the capacity
is answered slowly, not with refusals alone.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from burnish.serve.wire import Refused

T = TypeVar("T")

OVERLOADED = 503
_ELSEWHERE = "Try again later, or elsewhere"
_WEIGHT = 0.2  # of a new measurement in the running mean
_OUTLIER = 4.0  # a measurement counts as no more than so many times the mean: one hiccup must not close a server
_STALE_SECONDS = 1.0  # an idle worker tries again what it has not measured for so long
_HOPE = 10.0  # unless it would have to be so many times as fast as known
_SHARE = 0.8  # of its time that a request may plan to wait and be scored in; the rest is for what is not seen here, as the network is


class Service:
    """Seconds that a request of so many rows takes: a running mean for each power of two."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._rows: dict[int, float] = {}
        self._seen: dict[int, float] = {}

    def seconds(self, rows: int) -> float:
        """What is expected; for sizes never met the nearest smaller one in proportion, else the nearest larger one; 0 before any."""
        size = rows.bit_length()
        mean = self._seconds.get(size)
        if mean is None:
            known = [s for s in self._seconds if s < size]
            if not known:
                return self._seconds[min(self._seconds)] if self._seconds else 0.0
            size = max(known)
            mean = self._seconds[size]
        return mean * max(rows, 1) / self._rows[size]

    def met(self, rows: int, seconds: float, now: float) -> None:
        """One request took so long."""
        size, rows = rows.bit_length(), max(rows, 1)
        mean = self._seconds.get(size)
        if mean is None:
            self._seconds[size], self._rows[size] = seconds, rows
        else:
            self._seconds[size] = mean + _WEIGHT * (min(seconds, _OUTLIER * mean) - mean)
            self._rows[size] += _WEIGHT * (rows - self._rows[size])
        self._seen[size] = now

    def is_stale(self, rows: int, now: float) -> bool:
        return now - self._seen.get(rows.bit_length(), -math.inf) > _STALE_SECONDS


class _Ticket:
    """A request that waits for its turn."""

    __slots__ = ("given", "latest_start", "rows", "seconds", "timeout", "work")

    def __init__(
        self, work: Callable[[], Any], given: asyncio.Future[Any], rows: int, seconds: float, latest_start: float, timeout: float
    ) -> None:
        self.work, self.given, self.rows, self.seconds = work, given, rows, seconds
        self.latest_start, self.timeout = latest_start, timeout


class Turns:
    """The order of one worker: `await run(...)` for each request, on its event loop."""

    def __init__(self, most: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.service = Service()
        self._clock = clock
        self._most = most  # that may wait
        self._waiting: deque[_Ticket] = deque()
        self._ahead = 0.0  # seconds of scoring of those that wait
        self._slowdown = 1.0  # a turn's seconds over its scoring's: a running mean
        self.inside = 0  # requests that have begun and wait for something else, as their bodies, before their turn; counted by their owner
        self._busy = False  # a turn is going on, or the loop is taking in what arrived during one
        self._began = 0.0  # of that turn
        self._ended = 0.0  # of its scoring
        self._scored = 0.0  # seconds of its scoring
        self._lap = 0.0  # seconds of the last turn, and of taking in what arrived during it

    def __len__(self) -> int:
        return len(self._waiting)

    async def run(self, work: Callable[[], T], rows: int, arrived: float, timeout: float) -> T:
        """What `work` returns, called in its turn. Refused (503) at once when `timeout` seconds from `arrived` (by the clock) cannot be
        kept, or later when they were not."""
        sentence = self.refusal(rows, arrived, timeout)
        if sentence is not None:
            raise Refused(sentence, OVERLOADED)
        return await self.admitted(work, rows, arrived, timeout)

    def refusal(self, rows: int, arrived: float, timeout: float) -> str | None:
        """Why a request cannot be answered in its time; None where it may be `admitted`, which must follow at once."""
        now, seconds = self._clock(), self.service.seconds(rows)
        if not self._busy:
            left = arrived + timeout - now
            if seconds > left and not (seconds < _HOPE * left and self.service.is_stale(rows, now)):
                return f"{rows} rows take about {1000 * seconds:.3g} ms here; the request's time is {1000 * timeout:.4g} ms"
            return None
        if len(self._waiting) >= self._most:
            return f"overloaded: {self._most} requests wait here, which is as many as may. {_ELSEWHERE}"
        done = now + self._ahead * self._slowdown + seconds
        # it may have waited unseen for as long as a scoring takes, and the taking in of what arrived meanwhile
        if done + max(seconds, self._lap) > arrived + timeout * _SHARE:
            return (
                f"overloaded: {len(self._waiting)} requests wait here, and an answer would take about {1000 * (done - arrived):.3g} ms; "
                f"the request's time is {1000 * timeout:.4g} ms. {_ELSEWHERE}"
            )
        return None

    async def admitted(self, work: Callable[[], T], rows: int, arrived: float, timeout: float) -> T:
        """What `work` returns, called in its turn. Refused (503) when that comes too late."""
        if not self._busy:
            self._begin(self._clock())
            try:
                return self._call(work, rows)
            finally:
                if self.inside == 1:  # alone: what arrived meanwhile has yet to begin, and nobody can take a turn before it has
                    self._busy = False
                else:
                    asyncio.get_running_loop().call_soon(self._next)
        seconds = self.service.seconds(rows)
        latest = arrived + timeout * _SHARE - seconds
        ticket = _Ticket(work, asyncio.get_running_loop().create_future(), rows, seconds, latest, timeout)
        self._waiting.append(ticket)
        self._ahead += seconds
        return await ticket.given

    def _begin(self, now: float) -> None:
        self._busy, self._began, self._scored = True, now, 0.0

    def _call(self, work: Callable[[], T], rows: int) -> T:
        began = self._clock()
        try:
            found = work()
        finally:
            self._ended = self._clock()
        self._scored += self._ended - began
        self.service.met(rows, self._ended - began, self._ended)
        return found

    def _next(self) -> None:
        """The loop has taken in what arrived during the last turn: the next one, which may score for as long as that took."""
        now = self._clock()
        self._lap = now - self._began
        if self._scored:
            self._slowdown += _WEIGHT * (min((now - self._began) / self._scored, _OUTLIER * self._slowdown) - self._slowdown)
        until = now + (now - self._ended)
        self._begin(now)
        called = False
        while self._waiting and (not called or self._ended < until):
            ticket = self._waiting.popleft()
            self._ahead -= ticket.seconds
            if ticket.given.cancelled():  # its caller went away
                continue
            if max(now, self._ended) > ticket.latest_start:
                waited = f"overloaded: the request waited longer than was expected; its time is {1000 * ticket.timeout:.4g} ms"
                ticket.given.set_exception(Refused(f"{waited}. {_ELSEWHERE}", OVERLOADED))
                continue
            called = True
            try:
                ticket.given.set_result(self._call(ticket.work, ticket.rows))
            except Exception as error:  # belongs to the request
                ticket.given.set_exception(error)
        if called or self._waiting:
            asyncio.get_running_loop().call_soon(self._next)
        else:
            self._busy, self._ahead, self._lap = False, 0.0, 0.0
