"""How many replicas carry a load: from measured service times, through the simulated queue.

A replica is one process on its own core(s) with its own queue, as `burnish serve` runs them; a balancer that spreads requests at random
gives each an equal share of a Poisson stream. That is the conservative case: a shared queue, or a balancer that looks at load, does better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from burnish.errors import MeasureError
from burnish.measure.queueing import highest_load, simulate

HEADROOM = 0.2


class Capacity(msgspec.Struct, frozen=True):
    """Replicas for a load. `qps_per_replica` is the most one carries within p99; planned is a share 1 - headroom of that, or less."""

    replicas: int  # with the spare ones
    machines: int
    spare_machines: int
    replicas_per_machine: int
    qps_per_replica: float
    utilization: float  # busy share of a replica at the planned load, all machines up
    p99_us: float  # predicted there
    qps: float
    allowed_p99_us: float
    headroom: float


def replicas(
    service_us: Sequence[float] | np.ndarray,
    qps: float,
    p99_us: float,
    *,
    cores: int = 1,
    threads: int = 1,
    headroom: float = HEADROOM,
    spare_machines: int = 1,
    correction: float = 1.0,
    seed: int = 0,
) -> Capacity:
    """Replicas of `threads` cores each, on machines of `cores`, that answer `qps` with 99 % inside `p99_us`.

    `service_us` are measured times of one call; `correction` is measured over simulated highest load, where a load test was run.
    `headroom` is kept free for bursts and growth; the load is carried with `spare_machines` down. MeasureError when no load at all
    can be answered in time, or a number makes no sense.
    """
    if not 0 <= headroom < 1:
        raise MeasureError(f"head-room is {headroom}; give a share of at least 0 and below 1, such as 0.2")
    if not (qps > 0 and p99_us > 0):
        raise MeasureError(f"cannot plan for {qps:g} queries per second at p99 {p99_us / 1000:g} ms; give numbers above 0")
    if threads > cores:
        raise MeasureError(f"a replica takes {threads} cores, and a machine has {cores}")
    service = np.asarray(service_us, np.float64)
    most = highest_load(service, p99_us, seed=seed) * correction
    if most <= 0:
        alone = np.percentile(service, 99) / 1000
        raise MeasureError(f"one call alone takes {alone:.3g} ms at p99; no number of replicas answers within {p99_us / 1000:g} ms")
    a_machine = cores // threads
    machines = math.ceil(math.ceil(qps / (most * (1 - headroom))) / a_machine) + spare_machines
    count = machines * a_machine
    at_work = simulate(service, qps / count / correction, seed=seed)
    return Capacity(
        replicas=count,
        machines=machines,
        spare_machines=spare_machines,
        replicas_per_machine=a_machine,
        qps_per_replica=most,
        utilization=at_work.utilization,
        p99_us=at_work.p99_us,
        qps=qps,
        allowed_p99_us=p99_us,
        headroom=headroom,
    )
