"""Requests over HTTP at the times of a Poisson process, whether or not the server keeps up (open loop)."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import msgspec
import numpy as np


class Sent(msgspec.Struct, frozen=True):
    """What became of the requests of one run. Latencies (seconds, of requests that were answered 200) count from the intended start."""

    statuses: dict[int, int]  # 0: the connection broke
    latencies: tuple[float, ...]
    seconds: float

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
    """Send the same request `qps` times a second on average, each on a connection that is free or new; wait for every answer."""
    return asyncio.run(_send(host, port, request, qps, seconds, seed))


async def _send(host: str, port: int, request: bytes, qps: float, seconds: float, seed: int) -> Sent:
    rng = np.random.default_rng(seed)
    starts = np.cumsum(rng.exponential(1 / qps, round(qps * seconds)))
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    statuses: Counter[int] = Counter()
    latencies: list[float] = []
    under_way: set[asyncio.Task[None]] = set()

    async def one(intended: float) -> None:
        try:
            reader, writer = free.pop() if free else await asyncio.open_connection(host, port)
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            lower = head.lower()
            length = lower.index(b"\r\ncontent-length:") + 17  # not inference-header-content-length
            await reader.readexactly(int(lower[length : lower.index(b"\r\n", length)]))
        except (OSError, asyncio.IncompleteReadError):
            statuses[0] += 1
            return
        status = int(head[9:12])
        statuses[status] += 1
        if status == 200:
            latencies.append(time.perf_counter() - intended)
        free.append((reader, writer))

    began = time.perf_counter()
    for start in began + starts:
        await asyncio.sleep(max(0.0, start - time.perf_counter()))
        task = asyncio.create_task(one(start))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    took = time.perf_counter() - began
    for _, writer in free:
        writer.close()
    return Sent(dict(statuses), tuple(latencies), took)
