"""Capacity and price from what a search measured: for its own objective, and again for another from its report alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from burnish.errors import JobError, MeasureError, ObjectiveNotMet
from burnish.host import Host
from burnish.job import HERE, HostTable, Placing, Reserve
from burnish.measure.queueing import highest_load
from burnish.place.capacity import LOAD_ERROR, SIMULATED_ERROR, Capacity, fleet, machines_for, nearest_p99, replicas
from burnish.place.price import Prices, usd_per_million, usd_per_month
from burnish.place.work import Work

if TYPE_CHECKING:
    from burnish.place.placement import Asked

OTHER_P99 = (0.5, 2)  # times the objective's: what the sensitivity is told at
CALM = 0.5  # of the load per replica at which machines are added: at less, they are given back


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
    reserve: Reserve | None = None,
    missed_qps: float | None = None,
    calls: int | None = None,
    correction: float | None = None,
    kept: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The `capacity` of report.json. `measured_qps` is the highest load found at `measured_p99_ms`, None where none was measured; the
    simulation is scaled to agree with it, or by `correction`, found elsewhere. `missed_qps`: the least load that failed. `calls`: how many
    the quantiles `service_us` are of. `kept`: an earlier answer of the same engine on the same host, from which is taken what it has
    simulated."""
    reserve, carried = reserve or Reserve(), dict[float, float]()
    if kept and "carried" in kept:
        correction, carried = kept["correction"], {at: most for at, most in kept["carried"]}
    error = SIMULATED_ERROR
    if correction is None:
        correction = _correction(np.asarray(service_us), measured_qps, measured_p99_ms)
    if measured_qps:
        error = max(LOAD_ERROR, (missed_qps - measured_qps) / measured_qps) if missed_qps else LOAD_ERROR

    options = {"cores": cores, "threads": threads, "reserve": reserve, "correction": correction, "load_error": error, "calls": calls}
    known = (carried[p99_ms], kept["qps_per_replica_error"]) if kept and kept["p99_ms"] == p99_ms and p99_ms in carried else None
    found = replicas(service_us, qps, p99_ms * 1000, known=known, **options)  # type: ignore[arg-type]
    carried[p99_ms] = found.qps_per_replica
    for times in OTHER_P99:
        if times * p99_ms not in carried:
            carried[times * p99_ms] = highest_load(np.asarray(service_us), times * found.allowed_p99_us, queries=50_000) * correction
    rate = found.qps_per_replica * candidates / threads
    return {
        "replicas": found.replicas,
        "replicas_interval": [found.replicas_low, found.replicas_high],
        "machines": found.machines,
        "spare_machines": found.spare_machines,
        "replicas_per_machine": found.replicas_per_machine,
        "qps": qps,
        "p99_ms": p99_ms,
        "candidates": candidates,
        "threads": threads,
        "cores_per_machine": cores,
        "price_per_hour": price_per_hour,
        "headroom": reserve.headroom,
        "reserve": msgspec.to_builtins(reserve),
        "qps_per_replica": found.qps_per_replica,
        "qps_per_replica_error": found.qps_error,
        "correction": correction,
        "carried": sorted([at, most] for at, most in carried.items()),
        "utilization": found.utilization,
        "predicted_p99_ms": found.p99_us / 1000,
        "predicted_p99_ms_spare_down": found.p99_down_us / 1000 if math.isfinite(found.p99_down_us) else None,
        "usd_per_million_candidates": None if price_per_hour is None else usd_per_million(price_per_hour, cores, rate),
        "usd_per_month": None if price_per_hour is None else usd_per_month(price_per_hour, found.machines),
        "autoscaling": autoscaling(found, float(np.mean(service_us)) / correction),
        "sensitivity": _sensitivity(carried, found, p99_ms, price_per_hour),
    }


def autoscaling(found: Capacity, service_us: float) -> dict[str, Any]:
    """When to add and when to give back machines. The metric is requests a second per replica: it rises before p99 does, which near
    saturation is too late, and unlike processor time it is the same on a machine that other programs use."""
    above = found.qps_per_replica * (1 - found.reserve.headroom)
    below = CALM * above
    return {
        "metric": "requests a second per replica",
        # of one `burnish serve --workers N` a machine, whose workers are the replicas and share its /metrics
        "prometheus": f"avg(sum by (instance) (rate(burnish_requests_total[1m]))) / {found.replicas_per_machine}",
        "scale_out_above": above,
        "scale_in_below": below,
        "utilization_out_above": min(1.0, above * service_us / 1e6),
        "sentence": (
            f"Add machines when a replica gets more than {above:,.0f} requests a second over a minute (it is busy "
            f"{min(1.0, above * service_us / 1e6):.0%} of the time then), and give them back below {below:,.0f}; "
            f"at {found.qps_per_replica:,.0f} p99 would be at its limit."
        ),
    }


def _sensitivity(carried: Mapping[float, float], found: Capacity, p99_ms: float, price: float | None) -> list[dict[str, Any]]:
    """What one change at a time does to machines and price; None where no number of machines would do. `carried`: p99 in ms -> the
    highest load of a replica."""

    def row(change: str, machines: int | None, price: float | None) -> dict[str, Any]:
        month = None if price is None or machines is None else usd_per_month(price, machines)
        return {"change": change, "machines": machines, "usd_per_month": month}

    def machines(times_load: float, times_p99: float) -> int | None:
        most = carried[times_p99 * p99_ms]
        return machines_for(times_load * found.qps, most, found.replicas_per_machine, found.reserve) if most else None

    rows = [row("half the load", machines(0.5, 1), price), row("twice the load", machines(2, 1), price)]
    rows += [row(f"p99 {p99_ms * times:g} ms", machines(1, times), price) for times in OTHER_P99]
    if price is not None:
        rows += [row("half the price", found.machines, price / 2), row("1.5 times the price", found.machines, price * 1.5)]
    return rows


def replan(
    report: Mapping[str, Any],
    *,
    qps: float | None = None,
    p99_ms: float | None = None,
    price_per_hour: float | None = None,
    cores: int | None = None,
    headroom: float | None = None,
    growth: float | None = None,
    swap: float | None = None,
    spare: int | None = None,
    host: str | None = None,
    check: bool = False,
) -> dict[str, Any]:
    """The capacity of a finished search for another load, objective, machine or reserve; with its `sentence`, and the placement where the
    report has what that takes. `host`: one of the job's, or a kind of the price file, whose times are estimated. `check` simulates
    every request of the whole fleet, which takes seconds. JobError when the search chose nothing, or a name is not known; ObjectiveNotMet,
    with the nearest plan, when no number of machines meets the new one."""
    kept = report.get("capacity")
    if not kept:
        raise JobError(f"the search chose nothing, so there is nothing to plan with: {report['decision']['sentence']}")
    chosen = report["chosen"]
    load = chosen["load"] or {}
    measured = None if load.get("simulated") else load.get("qps")
    given = {"headroom": headroom, "growth": growth, "swap": swap, "spare_machines": spare}
    before = kept.get("reserve") or {"headroom": kept["headroom"], "spare_machines": kept["spare_machines"]}
    planned = kept | {
        "qps": kept["qps"] if qps is None else qps,
        "p99_ms": kept["p99_ms"] if p99_ms is None else p99_ms,
        "cores_per_machine": kept["cores_per_machine"] if cores is None else cores,
        "price_per_hour": kept["price_per_hour"] if price_per_hour is None else price_per_hour,
        "reserve": before | {name: value for name, value in given.items() if value is not None},
    }
    service, correction, how = report["service_us"], None, ""
    here = report.get("measured_on", HERE)
    if host is not None and host != here:
        correction = _correction(np.asarray(service), measured, report["objective"]["p99_ms"])
        there, service, how = _on(report, planned, host)
        planned["cores_per_machine"] = cores or there.cores or kept["cores_per_machine"]
        planned["price_per_hour"] = price_per_hour or there.price_per_hour

    def answer(p99_ms: float) -> dict[str, Any]:
        return capacity(
            service,
            measured,
            report["objective"]["p99_ms"],
            qps=planned["qps"],
            p99_ms=p99_ms,
            candidates=kept["candidates"],
            threads=kept["threads"],
            cores=planned["cores_per_machine"],
            price_per_hour=planned["price_per_hour"],
            reserve=Reserve(**planned["reserve"]),
            missed_qps=load.get("missed_qps"),
            calls=(chosen.get("latency_us") or {}).get("count"),
            correction=correction,
            kept=None if how else kept,
        )

    try:
        again = answer(planned["p99_ms"])
    except MeasureError as error:
        least = _least_p99(service)
        if not 0 < planned["p99_ms"] < least:
            raise
        raise ObjectiveNotMet(f"{error}. The nearest plan: {capacity_sentence(answer(least))}") from None
    if check:
        again["check"] = _check(
            np.asarray(service) / (correction or _correction(np.asarray(service), measured, report["objective"]["p99_ms"])), again
        )
    again["sentence"] = (f"On {host}, {how}: " if how else "") + capacity_sentence(again)
    if "work" in report and report["hosts"] and host is None:
        hosts = [_changed(each, price_per_hour, cores) if each["name"] == here else each for each in report["hosts"]]
        again |= placement({**report, "capacity": again, "hosts": hosts})
    return again


def _check(service_us: np.ndarray, planned: Mapping[str, Any]) -> dict[str, Any]:
    """The planned fleet with its spare machines away, every request simulated, behind two balancers."""
    count = planned["replicas"] - planned["spare_machines"] * planned["replicas_per_machine"]
    random, turns = (fleet(service_us, planned["qps"], count, balancer=name) for name in ("random", "in turn"))
    sentence = (
        f"Simulated with {random.queries:,} requests and the spare machines away: p99 {random.p99_us / 1000:.3g} ms "
        f"(+- {random.p99_error_us / 1000:.2g}) behind a random balancer, {turns.p99_us / 1000:.3g} ms behind one that takes turns; "
        f"{planned['p99_ms']:g} ms are allowed."
    )
    return {"random": msgspec.to_builtins(random), "in_turn": msgspec.to_builtins(turns), "sentence": sentence}


def placement(report: Mapping[str, Any]) -> dict[str, Any]:
    """`placement` (a list of places) and `placement_verdict` of a report that has capacity, work and the job's hosts and rules."""
    from burnish.place.placement import place

    hosts = msgspec.convert(report["hosts"], tuple[HostTable, ...])
    places, verdict = place(_asked(report, report["capacity"]), hosts)
    return {"placement": msgspec.to_builtins(places), "placement_verdict": msgspec.to_builtins(verdict)}


def _asked(report: Mapping[str, Any], kept: Mapping[str, Any]) -> Asked:
    from burnish.place.placement import Asked, Subject

    chosen = report["chosen"]
    subject = Subject(
        service_us=tuple(report["service_us"]),
        qps_per_replica=kept["qps_per_replica"],
        qps=kept["qps"],
        p99_ms=kept["p99_ms"],
        candidates=kept["candidates"],
        threads=kept["threads"],
        cores=kept["cores_per_machine"],
        isa=msgspec.convert(report["host"], Host).isa,
        weight_bytes=chosen["weight_bytes"],
        resident_bytes=chosen.get("resident_bytes") or 0,
        work=msgspec.convert(report.get("work") or dict.fromkeys(Work.__struct_fields__, 0), Work),
        reserve=Reserve(**kept["reserve"]),
        here=report.get("measured_on", HERE),
    )
    rules = msgspec.convert(report.get("placement_rules", {}), Placing)
    return Asked.of(subject, rules, Path(report.get("job", "")).parent)


def _on(report: Mapping[str, Any], planned: Mapping[str, Any], name: str) -> tuple[HostTable, list[float], str]:
    """A host by its name, with its cores and price; its service times, and how they are known."""
    from burnish.place.placement import service_times

    listed = {each["name"]: each for each in report.get("hosts", ())}
    kinds = Prices.read().kinds
    if name not in listed and name not in kinds:
        raise JobError(f"no host {name!r}. The job has {', '.join(listed) or 'none'}; the price file has {', '.join(kinds)}")
    host, kind = msgspec.convert(listed.get(name, {"name": name}), HostTable), kinds.get(name)
    times, measured, how = service_times(_asked(report, planned), host)
    if kind is not None:
        price = host.price_per_hour or kind.price_per_hour
        host = msgspec.structs.replace(host, cores=host.cores or kind.cores, price_per_hour=price)
    return host, times.tolist(), "measured there" if measured else how


def _changed(host: dict[str, Any], price_per_hour: float | None, cores: int | None) -> dict[str, Any]:
    """A host of the report with another price or number of cores, where given."""
    given = {"price_per_hour": price_per_hour, "cores": cores}
    return host | {name: value for name, value in given.items() if value is not None}


def _correction(service_us: np.ndarray, measured_qps: float | None, measured_p99_ms: float) -> float:
    """Measured over simulated highest load; 1 where none was measured."""
    simulated = highest_load(service_us, measured_p99_ms * 1000) if measured_qps else 0.0
    return measured_qps / simulated if measured_qps and simulated else 1.0


def _least_p99(service_us: Sequence[float]) -> float:
    """A p99 in ms that can be met, rounded up to two digits: that of a replica that is nearly idle."""
    least = nearest_p99(np.asarray(service_us)) / 1000
    digits = 1 - math.floor(math.log10(least))
    return math.ceil(least * 10**digits) / 10**digits


def capacity_sentence(capacity: Mapping[str, Any]) -> str:
    """Replicas and price for a load."""
    price = ""
    if capacity["usd_per_month"] is not None:
        price = f": ${capacity['usd_per_month']:,.0f} a month, ${plain(capacity['usd_per_million_candidates'])} per million candidates"
    spare = f", {capacity['spare_machines']} of them spare" if capacity["spare_machines"] else ""
    reserve = capacity.get("reserve") or {}
    more = f", {reserve['growth']:.0%} growth" if reserve.get("growth") else ""
    more += f", {reserve['swap']:.0%} away in a swap" if reserve.get("swap") else ""
    cores = f"{capacity['cores_per_machine']} core{'s' if capacity['cores_per_machine'] > 1 else ''}"
    low, high = capacity.get("replicas_interval") or (capacity["replicas"], capacity["replicas"])
    between = f" [{low:,} to {high:,}]" if (low, high) != (capacity["replicas"],) * 2 else ""
    return (
        f"{capacity['qps']:,.0f} requests a second of {capacity['candidates']} candidates at p99 {capacity['p99_ms']:g} ms "
        f"take {capacity['replicas']:,} replicas{between} on {capacity['machines']:,} machines of {cores} "
        f"({capacity['headroom']:.0%} head-room{more}{spare}){price}."
    )


def plain(value: float) -> str:
    """Two significant digits or two decimals, without an exponent: 0.000020, 1.25."""
    return f"{value:.{max(2, 1 - math.floor(math.log10(value)))}f}"
