"""Load over HTTP: requests at the times of a Poisson process whether or not the server keeps up, or as many as it takes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
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

    async def run(client: _Client) -> None:
        starts = np.cumsum(np.random.default_rng(seed).exponential(1 / qps, round(qps * seconds)))
        under_way: set[asyncio.Task[None]] = set()
        for start in time.perf_counter() + starts:
            await asyncio.sleep(max(0.0, start - time.perf_counter()))
            task = asyncio.create_task(client.ask(start))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)

    return _sent(host, port, request, run)


def saturate(host: str, port: int, request: bytes, connections: int, seconds: float) -> Sent:
    """Send the same request on so many connections, on each one after the other (closed loop): what a server can do at most."""

    async def run(client: _Client) -> None:
        until = time.perf_counter() + seconds

        async def one() -> None:
            while (now := time.perf_counter()) < until:
                await client.ask(now)

        await asyncio.gather(*(one() for _ in range(connections)))

    return _sent(host, port, request, run)


def _sent(host: str, port: int, request: bytes, run: Callable[[_Client], Coroutine[Any, Any, None]]) -> Sent:
    async def main() -> Sent:
        client = _Client(host, port, request)
        began = time.perf_counter()
        await run(client)
        took = time.perf_counter() - began
        client.close()
        return Sent(dict(client.statuses), tuple(client.latencies), took, dict(client.broken))

    return asyncio.run(main())


class _Client:
    """Connections that are used again, and what came back on them."""

    def __init__(self, host: str, port: int, request: bytes) -> None:
        self.host, self.port, self.request = host, port, request
        self.statuses: Counter[int] = Counter()
        self.broken: Counter[str] = Counter()
        self.latencies: list[float] = []
        self._may = asyncio.Semaphore(CONNECTIONS)
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, intended: float) -> None:
        async with self._may:
            await self._ask(intended)

    async def _ask(self, intended: float) -> None:
        try:
            reader, writer = self._free.pop() if self._free else await asyncio.open_connection(self.host, self.port)
            writer.write(self.request)
            head = await reader.readuntil(b"\r\n\r\n")
            lower = head.lower()
            length = lower.index(b"\r\ncontent-length:") + 17  # not inference-header-content-length
            await reader.readexactly(int(lower[length : lower.index(b"\r\n", length)]))
        except (OSError, asyncio.IncompleteReadError) as error:
            self.statuses[0] += 1
            self.broken[repr(error)] += 1
            return
        status = int(head[9:12])
        self.statuses[status] += 1
        if status == 200:
            self.latencies.append(time.perf_counter() - intended)
        self._free.append((reader, writer))

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()
