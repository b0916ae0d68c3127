"""Where the ranker should run: in the cloud on CPUs or GPUs, on the user's device, or split between the two.

Each place gets an end-to-end p99, by drawing network, queue and computation together; what it takes of memory, package and updates; and
its price. Constraints decide first, price among those that are left. A place that was not measured is estimated from this machine's
measurement by the ratio of arithmetic peaks, and says so in `estimate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np

from burnish.errors import JobError
from burnish.job import HERE, HostTable, Job, Placing, Reserve
from burnish.measure.queueing import departures, highest_load
from burnish.place.capacity import machines_for
from burnish.place.price import HOURS_A_MONTH, Prices, table, usd_per_million, usd_per_month
from burnish.place.work import Work

DRAWS = 100_000
SECONDS_A_MONTH = HOURS_A_MONTH * 3600
SPLIT = "an estimate: times by the share of the arithmetic on each side"
REQUEST_FLOOR_US = 20.0  # of a request in the cloud, however small its part: what serving costs by itself
GPU_FLOOR_US = 80.0  # launches and copies of a small batch; of a public order of magnitude, not of ours
GPU_SHARE = 0.3  # of its peak that a ranker's small products reach
GPU_BATCHED = 8  # requests that are scored together where the objective leaves time
HTTP_BYTES = 700  # heads of a request and an answer
# 10^9 int8 multiply-accumulates a second of one core at about 3 GHz, by instruction set; of this machine's, docs/native.md measures them
PEAKS = {"avx512bf16": 232, "avx512vnni": 232, "avx512": 100, "avx2": 48, "i8mm": 330, "dotprod": 77, "neon": 14, "scalar": 3}
Where = Literal["cloud cpu", "cloud gpu", "device", "split"]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class Device(msgspec.Struct, frozen=True):
    """A profile of devices.toml, which says what each field means."""

    what: str
    cores: Annotated[int, msgspec.Meta(ge=1)]
    isa: str
    int8_gmacs: Positive
    gbytes: Positive
    memory_mb: Positive
    package_mb: Positive


class Link(msgspec.Struct, frozen=True):
    rtt_ms: tuple[Positive, Positive]  # median, p99
    up_mbit: Positive
    down_mbit: Positive


class Devices(msgspec.Struct, frozen=True):
    devices: dict[str, Device]
    links: dict[str, Link]

    @classmethod
    def read(cls) -> Devices:
        """The profiles that come with burnish, or those of the file that BURNISH_DEVICES names."""
        return table(cls, "devices.toml", "BURNISH_DEVICES")


class Place(msgspec.Struct, frozen=True):
    """One way to deploy, with everything that spoke for or against it."""

    name: str
    where: Where
    measured: bool
    estimate: str  # how its figures were made when it was not measured
    p50_ms: float
    p99_ms: float
    compute_p99_ms: float  # without network and queue
    network_p99_ms: float
    memory_bytes: int | None  # of the device
    package_bytes: int | None
    update_gb_per_month: float
    usd_per_month: float | None
    usd_per_million_candidates: float | None
    machines: int | None
    obstacles: tuple[str, ...]  # why it cannot be; empty when it can
    chosen: bool = False


class Verdict(msgspec.Struct, frozen=True):
    chosen: str | None
    sentence: str  # the reason that decided
    would_change: tuple[str, ...]  # what would make another place the best


class Subject(msgspec.Struct, frozen=True):
    """What is placed: the chosen trial, as report.json has it."""

    service_us: tuple[float, ...]  # of one call here
    qps_per_replica: float
    qps: float
    p99_ms: float
    candidates: int
    threads: int
    cores: int
    isa: str
    weight_bytes: int
    resident_bytes: int
    work: Work
    reserve: Reserve
    here: str = HERE  # the job's name of the machine that measured


class BenchLatency(msgspec.Struct):
    p50: Positive
    p99: Positive
    curve: tuple[tuple[float, float], ...] = ()  # (percentile, us)


class BenchRow(msgspec.Struct):
    candidates: int
    latency_us: BenchLatency
    engine: str = "this"


class Bench(msgspec.Struct):
    """What is read of a bench's file; more may be in it."""

    rows: Annotated[tuple[BenchRow, ...], msgspec.Meta(min_length=1)]
    peak_memory_bytes: int | None = None  # of the process; the C export's bench program says it


class Asked(msgspec.Struct, frozen=True):
    """What every place is judged by. Paths are relative to `base`."""

    subject: Subject  # None only to check the rest
    rules: Placing
    link: Link
    base: Path
    prices: Prices
    devices: Devices

    @classmethod
    def of(cls, subject: Subject | None, rules: Placing, base: Path, prices: Prices | None = None, devices: Devices | None = None) -> Asked:
        """With the data files that come with burnish where none are given; JobError for a link that is not known."""
        prices, devices = prices or Prices.read(), devices or Devices.read()
        if rules.link not in devices.links:
            raise JobError(f"placement.link is {rules.link!r}. Known links: {', '.join(devices.links)}")
        link = devices.links[rules.link]
        if rules.rtt_ms is not None:
            if rules.rtt_ms[1] < rules.rtt_ms[0]:
                raise JobError(f"placement.rtt_ms is {list(rules.rtt_ms)}: the p99 is below the median. Give [median, p99]")
            link = msgspec.structs.replace(link, rtt_ms=rules.rtt_ms)
        return cls(subject, rules, link, base, prices, devices)  # type: ignore[arg-type]


def check(job: Job) -> None:
    """Refuse a trace, hosts and rules that nothing could be planned with, before anything is measured."""
    _ = job.trace
    asked = Asked.of(None, job.placement, job.base)
    for host in job.hosts:
        if host.device is not None:
            _device(asked, host)
        if host.measured is not None:
            _measured(job.base / host.measured, job.candidates, host.name)


def place(asked: Asked, hosts: Sequence[HostTable]) -> tuple[tuple[Place, ...], Verdict]:
    """Every host of the job as a place, and for each device also its split with the cloud; the chosen one is marked. JobError for a name
    that is not known, or a measurement that is not one."""
    subject = asked.subject
    found = [_on_device(asked, host) if host.device is not None else _in_cloud(asked, host) for host in hosts]
    cloud = next((host for host in hosts if host.device is None), None)
    if cloud is not None and subject.work.request_macs:
        found += [_split(asked, host, cloud) for host in hosts if host.device is not None]
    return decide(found)


def decide(places: Sequence[Place]) -> tuple[tuple[Place, ...], Verdict]:
    """The cheapest place that nothing stands against, the fastest where no price is known; and why."""
    if not places:
        return (), Verdict(None, "no hosts were given. Add [[hosts]] to the job", ())
    possible = [each for each in places if not each.obstacles]
    barred = [each for each in places if each.obstacles]
    if not possible:
        near = min(places, key=lambda each: (len(each.obstacles), each.p99_ms))
        told = f"no place meets everything. {near.name} comes nearest: {'; '.join(near.obstacles)}."
        return tuple(places), Verdict(None, told, tuple(_change(each, None) for each in places))
    best = min(possible, key=lambda each: (each.usd_per_month is None, each.usd_per_month or 0.0, each.p99_ms))
    others = [each for each in possible if each is not best]
    if not others:
        why = "it is the only place that was given"
        if barred:
            why = f"it is the only one that can be ({'; '.join(f'{each.name}: {each.obstacles[0]}' for each in barred)})"
    elif best.usd_per_month is None:
        why = f"its p99 of {best.p99_ms:.3g} ms is the least, and no prices are known"
    else:
        next_best = min(others, key=lambda each: math.inf if each.usd_per_month is None else each.usd_per_month)
        than = "has no price" if next_best.usd_per_month is None else f"costs ${next_best.usd_per_month:,.0f}"
        why = f"${best.usd_per_month:,.0f} a month is the least of all that can be; {next_best.name} {than}"
    guess = " It was not measured: measure it there before you rely on that." if not best.measured else ""
    marked = tuple(msgspec.structs.replace(each, chosen=each is best) for each in places)
    changes = tuple(_change(each, best) for each in places if each is not best)
    return marked, Verdict(best.name, f"{best.name} ({best.where}): {why}.{guess}", changes)


def _change(other: Place, best: Place | None) -> str:
    """What would have to be otherwise for `other` to win."""
    if other.obstacles:
        return f"{other.name}, if not for this: {'; '.join(other.obstacles)}"
    if best is None or best.usd_per_month is None or other.usd_per_month is None:
        return f"{other.name}, if its price were known and the least"
    if other.usd_per_month == 0 or best.usd_per_month == 0:
        return f"{other.name}, if it cost nothing"
    ratio = other.usd_per_month / best.usd_per_month
    return f"{other.name}, if it cost {1 - 1 / ratio:.0%} less, or {best.name} {ratio:.3g} times as much"


def _in_cloud(asked: Asked, host: HostTable) -> Place:
    subject, kind = asked.subject, asked.prices.kinds.get(host.name)
    service, measured, how = service_times(asked, host)
    gpu = bool(kind and kind.gpu)
    cores = host.cores or (kind.cores if kind else subject.cores)
    carries = _carries(subject, service) * (GPU_BATCHED if gpu and not measured else 1)
    a_machine = 1 if gpu else cores // subject.threads
    obstacles = [] if a_machine else [f"a replica takes {subject.threads} cores, and it has {cores}"]
    machines = machines_for(subject.qps, carries, max(1, a_machine), subject.reserve)
    busy = subject.qps / (machines * max(1, a_machine)) / carries * subject.qps_per_replica * float(np.mean(subject.service_us)) / 1e6
    sent = subject.work.request_bytes + subject.candidates * subject.work.candidate_bytes
    network = _network(asked.link, sent, subject.candidates * subject.work.answer_bytes)
    whole = network + _queue(service, min(busy, 0.97))
    price = host.price_per_hour or (kind.price_per_hour if kind else None)
    rate = carries * subject.candidates * max(1, a_machine)
    return Place(
        name=host.name,
        where="cloud gpu" if gpu else "cloud cpu",
        measured=measured,
        estimate=how,
        p50_ms=_ms(whole, 50),
        p99_ms=_ms(whole, 99),
        compute_p99_ms=_ms(service, 99),
        network_p99_ms=_ms(network, 99),
        memory_bytes=None,
        package_bytes=None,
        update_gb_per_month=0.0,
        usd_per_month=None if price is None else usd_per_month(price, machines),
        usd_per_million_candidates=None if price is None else usd_per_million(price, 1, rate),
        machines=machines,
        obstacles=(*obstacles, *_needs_cloud(asked.rules), *_late(whole, asked)),
    )


def _on_device(asked: Asked, host: HostTable) -> Place:
    subject, device = asked.subject, _device(asked, host)
    service, measured, how = service_times(asked, host)
    peak = _bench(asked.base / host.measured, host.name).peak_memory_bytes if host.measured else None
    memory, package = peak or max(subject.resident_bytes, subject.weight_bytes), subject.weight_bytes
    gb, month, million = _updates(asked, package)
    return Place(
        name=host.name,
        where="device",
        measured=measured,
        estimate=how,
        p50_ms=_ms(service, 50),
        p99_ms=_ms(service, 99),
        compute_p99_ms=_ms(service, 99),
        network_p99_ms=0.0,
        memory_bytes=memory,
        package_bytes=package,
        update_gb_per_month=gb,
        usd_per_month=month,
        usd_per_million_candidates=million,
        machines=0,
        obstacles=(*_too_large(memory, package, device), *_late(service, asked)),
    )


def _split(asked: Asked, host: HostTable, cloud: HostTable) -> Place:
    """The request's part on `cloud`, the candidates' on the device: the request goes up, the cut comes down. Times by the share of the
    arithmetic on each side."""
    subject, work, device = asked.subject, asked.subject.work, _device(asked, host)
    up = work.request_macs / (work.request_macs + subject.candidates * work.candidate_macs)
    there, _, cloud_how = service_times(asked, cloud)
    here, _, device_how = service_times(asked, host)
    in_cloud = np.maximum(there * up, REQUEST_FLOOR_US)
    random = np.random.default_rng(2)
    network = _network(asked.link, work.request_bytes, work.cut_bytes)
    compute = random.choice(in_cloud, DRAWS) + random.choice(here * (1 - up), DRAWS)
    whole = network + compute
    weights = round(subject.weight_bytes * (1 - work.request_weights))
    gb, month, _ = _updates(asked, weights)
    kind = asked.prices.kinds.get(cloud.name)
    cores = cloud.cores or (kind.cores if kind else subject.cores)
    carries = _carries(subject, in_cloud)
    machines = machines_for(subject.qps, carries, max(1, cores // subject.threads), subject.reserve)
    price = cloud.price_per_hour or (kind.price_per_hour if kind else None)
    total = None if price is None else usd_per_month(price, machines) + month
    return Place(
        name=f"{host.name} + {cloud.name}",
        where="split",
        measured=False,
        estimate="; ".join(dict.fromkeys(filter(None, (SPLIT, cloud_how, device_how)))),
        p50_ms=_ms(whole, 50),
        p99_ms=_ms(whole, 99),
        compute_p99_ms=_ms(compute, 99),
        network_p99_ms=_ms(network, 99),
        memory_bytes=weights,
        package_bytes=weights,
        update_gb_per_month=gb,
        usd_per_month=total,
        usd_per_million_candidates=None if total is None else _a_million(total, subject),
        machines=machines,
        obstacles=(*_too_large(weights, weights, device), *_needs_cloud(asked.rules), *_late(whole, asked)),
    )


def _carries(subject: Subject, service_us: np.ndarray) -> float:
    """The highest load of a replica with these service times, by that of this machine and the simulated queues of both."""
    there, here = (highest_load(np.asarray(us), 1000 * subject.p99_ms, queries=50_000) for us in (service_us, subject.service_us))
    if not (there and here):  # the objective cannot be met at all, and an obstacle says so
        return subject.qps_per_replica * float(np.mean(subject.service_us) / np.mean(service_us))
    return subject.qps_per_replica * there / here


def service_times(asked: Asked, host: HostTable) -> tuple[np.ndarray, bool, str]:
    """Service times of one call there, in us; whether they were measured; and otherwise how they were estimated."""
    subject = asked.subject
    if host.measured is not None:
        return _measured(asked.base / host.measured, subject.candidates, host.name), True, ""
    service = np.asarray(subject.service_us)
    if host.name == subject.here:
        return service, True, ""
    if host.device is not None:
        peak = _device(asked, host).int8_gmacs
    elif (kind := asked.prices.kinds.get(host.name)) is None:
        return (
            service,
            False,
            f"an estimate, as if its cores were those of this machine: give {host.name} what `burnish bench --json` wrote there",
        )
    elif kind.gpu:
        macs = subject.work.request_macs + subject.candidates * subject.work.candidate_macs
        us = GPU_FLOOR_US + macs / (GPU_SHARE * kind.int8_gmacs * 1e3)
        return np.full(len(service), us), False, f"an estimate: {GPU_FLOOR_US:g} us and {GPU_SHARE:.0%} of the peak of a {kind.gpu}"
    else:
        peak = kind.int8_gmacs
    slower = PEAKS[subject.isa] / peak
    return service * slower, False, f"an estimate: the times of this machine x {slower:.2g}, the ratio of arithmetic peaks"


def _bench(path: Path, name: str) -> Bench:
    """What `burnish bench --json`, or the C export's bench program, wrote on the host `name`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Bench)
    except OSError as error:
        raise JobError(f"hosts: cannot read {path}, where {name!r} was measured: {error.strerror}") from None
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise JobError(f"hosts: {path} is not what `burnish bench --json` writes: {error}") from None


def _measured(path: Path, candidates: int, name: str) -> np.ndarray:
    """Service times of the first engine of a bench, at this number of candidates."""
    content = _bench(path, name)
    rows = [row for row in content.rows if row.engine == content.rows[0].engine]
    row = next((row for row in rows if row.candidates == candidates), None)
    if row is None:
        had = ", ".join(str(row.candidates) for row in rows) or "none"
        raise JobError(
            f"hosts: {path} has no measurement at {candidates} candidates (it has {had}). Run `burnish bench --candidates {candidates}`"
        )
    curve = {q: us for q, us in row.latency_us.curve} | {50.0: row.latency_us.p50, 99.0: row.latency_us.p99}
    at = sorted(curve)
    return np.interp(np.linspace(0, 100, 401), at, [curve[q] for q in at])


def _device(asked: Asked, host: HostTable) -> Device:
    if host.device not in asked.devices.devices:
        raise JobError(f"hosts: {host.name!r} names the device {host.device!r}. Known devices: {', '.join(asked.devices.devices)}")
    return asked.devices.devices[host.device]


def _network(link: Link, up_bytes: int, down_bytes: int) -> np.ndarray:
    """(DRAWS,) us on the way: a round trip, log-normal through its median and p99, and the payload at the link's rates."""
    middle, slow = link.rtt_ms
    sigma = math.log(slow / middle) / 2.3263 if slow > middle else 0.0  # the normal quantile of 99 %
    trips = middle * np.exp(sigma * np.random.default_rng(1).standard_normal(DRAWS))
    payload = (up_bytes + HTTP_BYTES) * 8 / link.up_mbit + (down_bytes + HTTP_BYTES) * 8 / link.down_mbit
    return trips * 1000 + payload


def _queue(service: np.ndarray, busy: float) -> np.ndarray:
    """(DRAWS,) us from arrival to answer at a server that is `busy` that share of the time."""
    random = np.random.default_rng(3)
    arrivals = np.cumsum(random.standard_exponential(DRAWS)) * (float(service.mean()) / busy)
    latency = departures(arrivals, random.choice(service, DRAWS), 1) - arrivals
    return random.permutation(latency)  # neighbours in a queue are alike, and must not meet neighbours on the network


def _late(whole_us: np.ndarray, asked: Asked) -> list[str]:
    allowed = asked.rules.p99_ms or asked.subject.p99_ms
    p99 = _ms(whole_us, 99)
    return [f"its p99 is {p99:.3g} ms end to end, and {allowed:g} ms are allowed"] if p99 > allowed else []


def _needs_cloud(rules: Placing) -> list[str]:
    return ["it must answer offline"] * rules.offline + ["what is known of the request may not leave the device"] * rules.private


def _too_large(memory: int, package: int, device: Device) -> list[str]:
    told = []
    if memory > device.memory_mb * 1e6:
        told.append(f"it takes {memory / 1e6:.0f} MB of memory, and {device.memory_mb:g} MB are there")
    if package > device.package_mb * 1e6:
        told.append(f"its package has {package / 1e6:.0f} MB, and {device.package_mb:g} MB are allowed")
    return told


def _updates(asked: Asked, package: int) -> tuple[float, float, float]:
    """GB a month that one device loads; US dollars a month for all, and for a million candidates."""
    gb = package * asked.rules.updates_per_day * 365 / 12 / 1e9
    month = gb * asked.rules.devices * asked.prices.about.egress_per_gb
    return gb, month, _a_million(month, asked.subject)


def _a_million(month: float, subject: Subject) -> float:
    return month / (subject.qps * subject.candidates * SECONDS_A_MONTH) * 1e6


def _ms(us: np.ndarray, q: float) -> float:
    return float(np.percentile(us, q)) / 1000
