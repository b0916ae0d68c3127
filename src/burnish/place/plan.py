"""Capacity and price from what a search measured: for its own objective, and again for another from its report alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from burnish.errors import JobError
from burnish.measure.queueing import highest_load
from burnish.place.capacity import HEADROOM, replicas
from burnish.place.price import usd_per_million, usd_per_month


def capacity(
    service_us: Sequence[float],
    measured_qps: float | None,
    measured_p99_ms: float,
    *,
    qps: float,
    p99_ms: float,
    candidates: int,
    threads: int,
    cores: int,
    price_per_hour: float | None,
    headroom: float = HEADROOM,
) -> dict[str, Any]:
    """The `capacity` of report.json. `measured_qps` is the highest load found at `measured_p99_ms`, None where none was measured; the
    simulation is scaled to agree with it."""
    simulated = highest_load(np.asarray(service_us), measured_p99_ms * 1000)
    correction = measured_qps / simulated if measured_qps and simulated else 1.0
    found = replicas(service_us, qps, p99_ms * 1000, cores=cores, threads=threads, headroom=headroom, correction=correction)
    rate = found.qps_per_replica * candidates / threads
    return {
        "replicas": found.replicas,
        "machines": found.machines,
        "spare_machines": found.spare_machines,
        "replicas_per_machine": found.replicas_per_machine,
        "qps": qps,
        "p99_ms": p99_ms,
        "candidates": candidates,
        "threads": threads,
        "cores_per_machine": cores,
        "price_per_hour": price_per_hour,
        "headroom": headroom,
        "qps_per_replica": found.qps_per_replica,
        "utilization": found.utilization,
        "predicted_p99_ms": found.p99_us / 1000,
        "usd_per_million_candidates": None if price_per_hour is None else usd_per_million(price_per_hour, cores, rate),
        "usd_per_month": None if price_per_hour is None else usd_per_month(price_per_hour, found.machines),
    }


def replan(
    report: Mapping[str, Any],
    *,
    qps: float | None = None,
    p99_ms: float | None = None,
    price_per_hour: float | None = None,
    cores: int | None = None,
    headroom: float | None = None,
) -> dict[str, Any]:
    """The capacity of a finished search for another load, objective, machine or head-room; with its `sentence`. JobError when the search
    chose nothing."""
    kept = report.get("capacity")
    if not kept:
        raise JobError(f"the search chose nothing, so there is nothing to plan with: {report['decision']['sentence']}")
    load = report["chosen"]["load"]
    again = capacity(
        report["service_us"],
        load["qps"] if load else None,
        report["objective"]["p99_ms"],
        qps=kept["qps"] if qps is None else qps,
        p99_ms=kept["p99_ms"] if p99_ms is None else p99_ms,
        candidates=kept["candidates"],
        threads=kept["threads"],
        cores=kept["cores_per_machine"] if cores is None else cores,
        price_per_hour=kept["price_per_hour"] if price_per_hour is None else price_per_hour,
        headroom=kept["headroom"] if headroom is None else headroom,
    )
    return again | {"sentence": capacity_sentence(again)}


def capacity_sentence(capacity: Mapping[str, Any]) -> str:
    """Replicas and price for a load."""
    price = ""
    if capacity["usd_per_month"] is not None:
        price = f": ${capacity['usd_per_month']:,.0f} a month, ${plain(capacity['usd_per_million_candidates'])} per million candidates"
    spare = f", {capacity['spare_machines']} of them spare" if capacity["spare_machines"] else ""
    cores = capacity["cores_per_machine"]
    return (
        f"{capacity['qps']:,.0f} requests a second of {capacity['candidates']} candidates at p99 {capacity['p99_ms']:g} ms "
        f"take {capacity['replicas']:,} replicas on {capacity['machines']:,} machines of {cores} {'core' if cores == 1 else 'cores'} "
        f"({capacity['headroom']:.0%} head-room{spare}){price}."
    )


def plain(value: float) -> str:
    """Two significant digits or two decimals, without an exponent: 0.000020, 1.25."""
    return f"{value:.{max(2, 1 - math.floor(math.log10(value)))}f}"
