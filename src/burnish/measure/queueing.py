"""The latency of a queue with c servers, from service times: what a load test would find, computed in milliseconds."""

from __future__ import annotations

import heapq
import math

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from burnish.errors import MeasureError
from burnish.trace import Trace

BATCHES = 20  # for the standard error of p99 by batch means; queueing delays are too correlated for order statistics


class Prediction(msgspec.Struct, frozen=True):
    """Latencies of a simulated queue, from arrival to answer. Infinite when more arrives than can be served."""

    qps: float
    servers: int
    utilization: float  # busy share of the servers
    mean_us: float
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    p99_error_us: float  # standard error
    queries: int


def simulate(
    service_us: ArrayLike,
    qps: float,
    servers: int = 1,
    seed: int = 0,
    queries: int = 200_000,
    arrivals_us: ArrayLike | None = None,
) -> Prediction:
    """First come, first served at `servers` servers: G/G/c.

    Service times are drawn from the measured `service_us`. Arrivals are Poisson at `qps`, or the given `arrivals_us` (ascending times,
    whose rate then takes the place of `qps`). One server by Lindley's (1952) recursion as a running maximum; more by that of Kiefer
    and Wolfowitz (1955): each arrival takes the server that is free first. The first tenth, in which the queue fills, is dropped.
    """
    service_us = np.asarray(service_us, np.float64)
    if service_us.size == 0 or not np.isfinite(service_us).all() or service_us.min() < 0:
        raise MeasureError("simulate needs measured service times: at least one, finite, not negative")
    if servers < 1 or not qps > 0:
        raise MeasureError(f"simulate needs at least 1 server and a load above 0; met {servers} servers and {qps} queries per second")
    random = np.random.default_rng(seed)
    if arrivals_us is None:
        arrivals = np.cumsum(random.exponential(1e6 / qps, queries))
    else:
        arrivals = np.asarray(arrivals_us, np.float64)
        queries = len(arrivals)
        back = np.flatnonzero(np.diff(arrivals) < 0)
        if queries < 2 or back.size:
            where = f"goes back at entry {back[0] + 1}" if back.size else f"has {queries} entries"
            raise MeasureError(f"the arrival trace {where}; give at least 2 times in ascending order")
        qps = (queries - 1) / (arrivals[-1] - arrivals[0]) * 1e6 if arrivals[-1] > arrivals[0] else math.inf
    qps = float(qps)
    utilization = qps * float(service_us.mean()) / 1e6 / servers
    if utilization >= 1 and arrivals_us is None:
        return Prediction(qps, servers, utilization, *(math.inf,) * 6, queries)
    service = random.choice(service_us, queries)
    latency = (departures(arrivals, service, servers) - arrivals)[queries // 10 :]
    mean, (p50, p90, p99, p999) = float(latency.mean()), np.percentile(latency, (50, 90, 99, 99.9), method="inverted_cdf")
    batches = [np.percentile(batch, 99) for batch in np.array_split(latency, min(BATCHES, len(latency)))]
    error = float(np.std(batches, ddof=1) / math.sqrt(len(batches))) if len(batches) > 1 else math.inf
    return Prediction(qps, servers, utilization, mean, float(p50), float(p90), float(p99), float(p999), error, queries)


def departures(arrivals: np.ndarray, service: np.ndarray, servers: int) -> np.ndarray:
    """(Q,) when each query leaves, given ascending arrivals and the service each needs, first come first served."""
    if servers == 1:
        work = np.cumsum(service)  # leave_i = max over j <= i of (arrive_j + service_j + ... + service_i)
        return work + np.maximum.accumulate(arrivals - (work - service))
    free = [float("-inf")] * servers
    leave = np.empty(len(arrivals))
    for i, (arrive, need) in enumerate(zip(arrivals.tolist(), service.tolist())):
        leave[i] = done = max(arrive, free[0]) + need
        heapq.heapreplace(free, done)
    return leave


def highest_load(
    service_us: ArrayLike, p99_us: float, servers: int = 1, seed: int = 0, queries: int = 100_000, trace: Trace | None = None
) -> float:
    """Queries per second up to which the simulated p99 stays within `p99_us`, to half a percent of capacity; 0 when even an idle
    server misses it. Arrivals are Poisson, or those of `trace` at that rate."""
    service_us = np.asarray(service_us, np.float64)
    capacity = servers * 1e6 / float(service_us.mean())
    random = np.random.default_rng(seed)
    poisson, service = np.cumsum(random.standard_exponential(queries)), random.choice(service_us, queries)  # the same at every load
    low, high = 0.0, capacity
    while high - low > capacity / 200:
        middle = (low + high) / 2
        arrivals = poisson * (1e6 / middle) if trace is None else trace.at(middle, seed, queries / middle)[0]
        need = service if trace is None else random.choice(service_us, len(arrivals))
        latency = (departures(arrivals, need, servers) - arrivals)[len(arrivals) // 10 :]
        if len(latency) == 0 or np.percentile(latency, 99, method="inverted_cdf") <= p99_us:
            low = middle
        else:
            high = middle
    return low
