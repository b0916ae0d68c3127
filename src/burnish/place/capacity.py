"""How many replicas carry a load: from measured service times, through the simulated queue.

A replica is one process on its own core(s) with its own queue, as `burnish serve` runs them; a balancer that spreads requests at random
gives each an equal share of a Poisson stream. That is the conservative case: a shared queue, or a balancer that looks at load, does better
(`fleet` says by how much).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from burnish.errors import MeasureError
from burnish.job import Reserve
from burnish.measure.queueing import departures, highest_load, simulate

RESAMPLED = 8  # service times drawn anew, from whose spread the interval comes
LOAD_ERROR = 0.03  # of a load that LoadGen confirmed, where no load just above it was seen to fail
SIMULATED_ERROR = 0.15  # of a load that the queue alone says: what docs/decision.md holds the prediction to
Balancer = Literal["random", "in turn", "shared"]


class Capacity(msgspec.Struct, frozen=True):
    """Replicas for a load. `qps_per_replica` is the most one carries within p99; planned is a share 1 - headroom of that, or less."""

    replicas: int  # with the spare ones
    replicas_low: int  # about 95 of 100 such measurements would say no less ...
    replicas_high: int  # ... and no more
    machines: int
    spare_machines: int
    replicas_per_machine: int
    qps_per_replica: float
    qps_error: float  # of that, relative: half the width of its 95 % interval
    utilization: float  # busy share of a replica at the planned load, all machines up
    p99_us: float  # predicted there
    p99_down_us: float  # and with the spare machines and those of a swap away
    qps: float
    allowed_p99_us: float
    reserve: Reserve


def replicas(
    service_us: Sequence[float] | np.ndarray,
    qps: float,
    p99_us: float,
    *,
    cores: int = 1,
    threads: int = 1,
    reserve: Reserve | None = None,
    correction: float = 1.0,
    load_error: float = SIMULATED_ERROR,
    calls: int | None = None,
    known: tuple[float, float] | None = None,
    seed: int = 0,
) -> Capacity:
    """Replicas of `threads` cores each, on machines of `cores`, that answer `qps` with 99 % inside `p99_us`.

    `service_us` are measured times of one call, or quantiles of `calls` of them; `correction` is measured over simulated highest load,
    where a load test was run, and `load_error` how far that may be off (relative). `reserve` is what is planned beyond the load: it
    is carried after its growth, with the spare machines and those of a swap away. `known`: the `qps_per_replica` and `qps_error` of an
    earlier answer at this p99, which are then not simulated again. MeasureError when no load at all can be answered in
    time, or a number makes no sense.
    """
    reserve = reserve or Reserve()
    if not 0 <= reserve.headroom < 1:
        raise MeasureError(f"head-room is {reserve.headroom}; give a share of at least 0 and below 1, such as 0.2")
    if not 0 <= reserve.swap < 1:
        raise MeasureError(f"swap is {reserve.swap}; give the share of machines that are away, at least 0 and below 1, such as 0.1")
    if reserve.growth < 0 or reserve.spare_machines < 0:
        raise MeasureError(f"growth is {reserve.growth} and spare machines are {reserve.spare_machines}; give numbers of at least 0")
    if not (qps > 0 and p99_us > 0):
        raise MeasureError(f"cannot plan for {qps:g} queries per second at p99 {p99_us / 1000:g} ms; give numbers above 0")
    if threads > cores:
        raise MeasureError(f"a replica takes {threads} cores, and a machine has {cores}")
    service = np.asarray(service_us, np.float64)
    most = known[0] if known else highest_load(service, p99_us, seed=seed) * correction
    if most <= 0:
        alone = np.percentile(service, 99) / 1000
        raise MeasureError(
            f"one call alone takes {alone:.3g} ms at p99; no number of replicas answers within {p99_us / 1000:g} ms. "
            f"The least p99 that can be met is about {nearest_p99(service) / 1000:.3g} ms"
        )
    a_machine = cores // threads
    error = known[1] if known else min(0.95, math.hypot(load_error, 1.96 * _spread(service, p99_us, calls or len(service), seed)))
    machines, fewest, most_machines = (
        machines_for(qps, rate, a_machine, reserve) for rate in (most, most * (1 + error), most * (1 - error))
    )
    away = reserve.spare_machines + math.floor(machines * reserve.swap)
    at_work, down = (simulate(service, qps / (up * a_machine) / correction, seed=seed) for up in (machines, max(1, machines - away)))
    return Capacity(
        replicas=machines * a_machine,
        replicas_low=fewest * a_machine,
        replicas_high=most_machines * a_machine,
        machines=machines,
        spare_machines=reserve.spare_machines,
        replicas_per_machine=a_machine,
        qps_per_replica=most,
        qps_error=error,
        utilization=at_work.utilization,
        p99_us=at_work.p99_us,
        p99_down_us=down.p99_us,
        qps=qps,
        allowed_p99_us=p99_us,
        reserve=reserve,
    )


def machines_for(qps: float, qps_per_replica: float, replicas_per_machine: int, reserve: Reserve) -> int:
    """Machines that carry `qps` within the reserve, where a replica carries at most `qps_per_replica`."""
    working = math.ceil(math.ceil(qps * (1 + reserve.growth) / (qps_per_replica * (1 - reserve.headroom))) / replicas_per_machine)
    return math.ceil(working / (1 - reserve.swap) - 1e-9) + reserve.spare_machines


def nearest_p99(service_us: np.ndarray) -> float:
    """The p99 of a replica that is a tenth busy: about the least that a deployment can promise, at ten times its machines."""
    return simulate(service_us, 0.1 * 1e6 / float(service_us.mean()), queries=50_000).p99_us


def _spread(service: np.ndarray, p99_us: float, calls: int, seed: int) -> float:
    """Standard error of the highest load, relative, because so many calls were measured and no more."""
    random = np.random.default_rng(seed)
    quantiles, at = np.sort(service), np.linspace(0, 1, len(service))
    loads = [
        highest_load(np.interp(random.random(min(calls, 5000)), at, quantiles), p99_us, seed=seed, queries=20_000) for _ in range(RESAMPLED)
    ]
    scale = math.sqrt(min(calls, 5000) / calls)
    return float(np.std(loads, ddof=1)) / max(float(np.mean(loads)), 1e-9) * scale


class Fleet(msgspec.Struct, frozen=True):
    """Latencies over all requests of a simulated fleet, in us."""

    qps: float
    replicas: int
    balancer: Balancer
    utilization: float
    p50_us: float
    p99_us: float
    p999_us: float
    p99_error_us: float  # standard error, by parts of the time
    slowest_replica_p99_us: float  # p99 of the requests of the replica that fared worst; nan for a shared queue
    queries: int


def fleet(
    service_us: Sequence[float] | np.ndarray,
    qps: float,
    replicas: int,
    *,
    balancer: Balancer = "random",
    queries: int = 4_000_000,
    seed: int = 0,
) -> Fleet:
    """So many replicas under a Poisson stream of `qps`, each request simulated: a balancer that gives it to any (`random`), to each `in
    turn`, or a `shared` queue from which whichever is free takes the next. The first fifth of the time, in which queues fill, is dropped.
    """
    service = np.asarray(service_us, np.float64)
    utilization = qps / replicas * float(service.mean()) / 1e6
    if not utilization < 1:
        raise MeasureError(f"{replicas:,} replicas can serve {replicas * 1e6 / service.mean():,.0f} queries per second; {qps:,.0f} came")
    if balancer == "shared":
        queries = min(queries, 1_000_000)  # one after another, in Python
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.standard_exponential(queries)) * (1e6 / qps)
    need = random.choice(service, queries)
    slowest = math.nan
    if balancer == "shared":
        latency = departures(arrivals, need, replicas) - arrivals
    else:
        turn = random.integers(0, replicas, queries) if balancer == "random" else np.arange(queries) % replicas
        order = np.argsort(turn.astype(np.uint16 if replicas <= 1 << 16 else np.int64), kind="stable")  # radix sort for 16 bits
        # each replica's queue after the other's, so far apart that all is served in between
        apart = arrivals[-1] + need.sum() / replicas * 20 + need.max()
        at = arrivals[order] + turn[order] * apart
        latency = np.empty(queries)
        latency[order] = departures(at, need[order], 1) - at
        kept = order[arrivals[order] > arrivals[-1] / 5]
        ends = np.flatnonzero(np.diff(turn[kept])) + 1
        parts = np.split(latency[kept], ends) if replicas <= 20_000 else []
        slowest = max((float(np.quantile(part, 0.99)) for part in parts if len(part) >= 100), default=math.nan)
    warm = latency[queries // 5 :]
    p50, p99, p999 = np.percentile(warm, (50, 99, 99.9), method="inverted_cdf")
    blocks = [np.percentile(part, 99) for part in np.array_split(warm, 10)]
    error = float(np.std(blocks, ddof=1) / math.sqrt(len(blocks)))
    return Fleet(qps, replicas, balancer, utilization, float(p50), float(p99), float(p999), error, slowest, queries)
