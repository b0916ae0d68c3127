"""Load over HTTP: requests at the times of a Poisson process whether or not the server keeps up, or as many as it takes."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import numpy as np

CONNECTIONS = 512  # at most: a flood of new ones would overflow the kernel's queue, whose retries take seconds


class Sent(msgspec.Struct, frozen=True):
    """What became of the requests of one run. Latencies (seconds, of requests that were answered 200) count from the intended start."""

    statuses: dict[int, int]  # 0: the connection broke
    latencies: tuple[float, ...]
    seconds: float
    broken: dict[str, int] = {}  # why

    @property
    def goodput(self) -> float:
        """Answers 200 a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.latencies, q)) if self.latencies else float("nan")


def post(path: str, body: bytes, **headers: str) -> bytes:
    """A whole HTTP request; `_` in the name of a header is `-`."""
    told = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{told}\r\n".encode() + body


def send(host: str, port: int, request: bytes, qps: float, seconds: float, seed: int = 0) -> Sent:
    """Send the same request `qps` times a second on average, each on a connection that is free or new; wait for every
    answer."""

    async def run(load: _Load) -> None:
        starts = np.cumsum(np.random.default_rng(seed).exponential(1 / qps, max(1, round(qps * seconds))))
        for start in (time.perf_counter() + starts).tolist():
            await asyncio.sleep(max(0.0, start - time.perf_counter()))
            load.ask(start)
        await load.answered()

    return _sent(host, port, request, run)


def saturate(host: str, port: int, request: bytes, connections: int, seconds: float) -> Sent:
    """Send the same request on so many connections, on each one after the other (closed loop): what a server can do at most."""

    async def run(load: _Load) -> None:
        until = time.perf_counter() + seconds

        def again() -> None:
            if (now := time.perf_counter()) < until:
                load.ask(now)

        load.then = again
        for _ in range(connections):
            again()
        await load.answered()

    return _sent(host, port, request, run)


def _sent(host: str, port: int, request: bytes, run: Callable[[_Load], Coroutine[Any, Any, None]]) -> Sent:
    async def main() -> Sent:
        load = _Load(host, port, request)
        began = time.perf_counter()
        await run(load)
        took = time.perf_counter() - began
        load.close()
        return Sent(dict(load.statuses), tuple(load.latencies), took, dict(load.broken))

    # epoll waits whole milliseconds, which is longer than many a request takes; select knows microseconds
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(main())


class _Load:
    """Requests under way, on connections that are used again, and what came back on them."""

    def __init__(self, host: str, port: int, request: bytes) -> None:
        self.host, self.port, self.request = host, port, request
        self.statuses: Counter[int] = Counter()
        self.broken: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.then: Callable[[], None] = lambda: None  # called after each answer
        self._free: list[_Connection] = []
        self._made = 0
        self._late: deque[float] = deque()  # intended starts that wait for a connection
        self._pending = 0
        self._idle = asyncio.Event()
        self._opening: set[asyncio.Task[None]] = set()

    def ask(self, intended: float) -> None:
        """Send one request, or keep it until a connection is free."""
        self._pending += 1
        self._idle.clear()
        if self._free:
            self._free.pop().send(intended)
        elif self._made < CONNECTIONS:
            self._made += 1
            task = asyncio.ensure_future(self._open(intended))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        else:
            self._late.append(intended)

    async def _open(self, intended: float) -> None:
        try:
            _, made = await asyncio.get_running_loop().create_connection(lambda: _Connection(self), self.host, self.port)
        except OSError as error:
            self.lost(repr(error))
        else:
            made.send(intended)

    def came(self, connection: _Connection, status: int, intended: float) -> None:
        """An answer."""
        self.statuses[status] += 1
        if status == 200:
            self.latencies.append(time.perf_counter() - intended)
        if self._late:
            connection.send(self._late.popleft())
        else:
            self._free.append(connection)
        self._over()

    def lost(self, why: str, connection: _Connection | None = None) -> None:
        """A connection broke, or could not be made; with a request, where `connection` is not one that was free."""
        self._made -= 1
        if connection in self._free:
            self._free.remove(connection)
            return
        self.statuses[0] += 1
        self.broken[why] += 1
        if self._late:
            self._pending -= 1  # asked again below
            self.ask(self._late.popleft())
        self._over()

    def _over(self) -> None:
        self._pending -= 1
        self.then()
        if not self._pending:
            self._idle.set()

    async def answered(self) -> None:
        """Wait until nothing is under way."""
        if self._pending:
            await self._idle.wait()

    def close(self) -> None:
        for connection in list(self._free):
            connection.close()


class _Connection(asyncio.Protocol):
    """One connection: a request goes out, its answer comes back, whole or in pieces."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._intended: float | None = None
        self._came = b""
        self._closing = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, intended: float) -> None:
        self._intended = intended
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        self._came += data
        end = self._came.find(b"\r\n\r\n")
        if end < 0:
            return
        lower = self._came[: end + 2].lower()
        length = lower.index(b"\r\ncontent-length:") + 17  # not inference-header-content-length
        if len(self._came) < end + 4 + int(lower[length : lower.index(b"\r\n", length)]):
            return
        status, intended = int(self._came[9:12]), self._intended
        assert intended is not None  # nothing comes that was not asked for
        self._came, self._intended = b"", None
        self._load.came(self, status, intended)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._closing:
            self._load.lost(repr(error), self)

    def close(self) -> None:
        self._closing = True
        self._transport.close()
