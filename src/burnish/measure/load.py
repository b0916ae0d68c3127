"""p99 at a load: open loop, by MLCommons LoadGen's Server scenario or a trace of the user's, and the highest load that keeps it.

Queries arrive whatever the server does, and a query's time counts from the moment it was meant to start, so a server that falls behind
cannot hide it (closed-loop tests do). LoadGen draws Poisson arrivals, keeps the clock and applies its early-stopping rule; the queue and
the server threads are ours. We read LoadGen's trace and not its summary alone, because it has the generator's own delay for each query:
when that is not small against the objective, it is the generator that was measured, and the run is invalid. The arrivals of a trace are
replayed by the same process, under the same rules, our own early stopping in the place of LoadGen's.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from burnish.errors import MeasureError, Overloaded
from burnish.host import Host, versions
from burnish.measure import latency
from burnish.measure.generator import ISSUED, REPLAYED, TRACE, Order
from burnish.measure.harness import CHECKED, Generator, Run, kept, same
from burnish.measure.latency import PACKAGES, Scoring, calls_needed, upper_bound
from burnish.measure.queueing import Prediction, highest_load, simulate
from burnish.measure.traffic import Traffic
from burnish.trace import Trace

__all__ = ["LoadResult", "Peak", "Prediction", "highest_load", "peak", "server", "simulate"]

LATE = 0.1  # the generator's p99 delay may be this share of the objective ...
LATE_US = 200  # ... and this much in any case: waking a thread takes so long, and it counts as latency, so it never flatters
QUANTILES = (50.0, 90.0, 99.0, 99.9)  # that are claimed, each with what it does not exceed with 99 % confidence
OCCUPIED = 200  # quantiles kept of the time that a query takes a server
READ_US = 20.0  # at most, to take a query that was there already; where every one had to be waited for, the wait says no less


Cause = Literal["", "wrong answers", "disturbed", "overloaded", "late generator", "p99", "too few queries", "loadgen"]


MACHINE: tuple[Cause, ...] = ("disturbed", "late generator")  # faults of a busy machine; nothing follows from them for the engine


class LoadResult(msgspec.Struct, frozen=True):
    """One run of LoadGen's Server scenario, or of a trace by its rules. Times are microseconds from the intended start of a query to its
    answer."""

    qps: float  # asked for
    achieved_qps: float  # answered per second
    slo_us: float  # the p99 that was allowed
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    bounds_us: dict[str, float | None]  # percentile -> what it does not exceed with 99 % confidence; None where there are too few queries
    queries: int
    seconds: float
    valid: bool  # the objective was met, and the run is one that can show it
    cause: Cause  # why not; "" when valid
    reason: str  # the same in a sentence
    arrivals: Literal["poisson", "trace"]
    loadgen: str  # LoadGen's own verdict: VALID, or INVALID and why; of a trace "not LoadGen's"
    early_stopping: bool  # LoadGen's rule: enough queries for the p99 to hold with 99 % confidence
    late_p99_us: float  # the generator's own delay
    service_p50_us: float  # one call, without waiting
    service_p99_us: float
    occupied_us: tuple[float, ...]  # quantiles in equal steps: how long a query keeps a server, harness included
    harness_us: float  # mean time a server spent on each query outside the call: pipe, Python
    utilization: float  # busy share of the servers
    cpu_share: float  # processor time of the servers over their busy time; below 1 they waited, or other programs had their cores
    servers: int
    candidates: float  # mean of a call
    refused: int  # by a server that said it has too many
    checked: int  # answers compared with what was expected
    wrong: int
    curve: tuple[tuple[float, float], ...]  # (percentile, us)
    cores: tuple[tuple[int, ...], ...]  # the generator's, then each server's; empty where not pinned
    host: Host
    versions: dict[str, str]


class Peak(msgspec.Struct, frozen=True):
    """The highest load that kept the objective, with the run that confirmed it; 0 and None when none did."""

    qps: float
    confirmed: LoadResult | None
    tried: tuple[LoadResult, ...]
    sentence: str

    @property
    def below_qps(self) -> float:
        """The least load that was seen to miss the objective, infinity when none did: the highest that keeps it lies below this."""
        return min((run.qps for run in self.tried if run.cause in ("p99", "overloaded") and run.qps > self.qps), default=math.inf)


def server(
    call: Scoring | Sequence[Scoring],
    traffic: Traffic,
    qps: float,
    seconds: float,
    p99_us: float,
    *,
    servers: int | None = None,
    expected: Sequence[object] | None = None,
    tolerance: float = 1e-5,
    seed: int = 0,
    trace: Trace | None = None,
    generator: Generator | None = None,
) -> LoadResult:
    """Offer `qps` queries per second for about `seconds`, and compare their p99 with `p99_us`.

    `call` scores (request, candidates); a sequence gives each server thread its own, otherwise `servers` threads (1) share it. Queries
    come as a Poisson stream and are the calls of `traffic` in random order, or come as the busiest stretch of `trace` at that rate, each
    with a call of as many candidates as it had there (or nearest to it). A sample of the answers is compared with `expected` (one per
    call of the traffic; by default what `call` answers beforehand, undisturbed) within `tolerance`. A run at more load than can be served
    is cut off after twice its time and says so. `generator`: a process to use again. MeasureError when the call raises, or LoadGen is not
    installed.
    """
    if find_spec("mlperf_loadgen") is None:
        raise MeasureError("load is measured with MLCommons LoadGen, which is not installed: pip install mlcommons-loadgen")
    calls = list(call) if isinstance(call, Sequence) else [call] * (servers or 1)
    if servers is not None and servers != len(calls):
        raise MeasureError(f"{len(calls)} calls were given for {servers} servers; give one for each, or one for all")
    if not (qps > 0 and seconds > 0 and p99_us > 0):
        raise MeasureError(f"cannot offer {qps} queries per second for {seconds} s with p99 {p99_us} us; give numbers above 0")
    random = np.random.default_rng(seed)
    sampled = sorted(random.choice(len(traffic), min(CHECKED, len(traffic)), replace=False).tolist())
    switched = latency.context_switches()
    truth = {i: kept(calls[0](*traffic[i])) if expected is None else expected[i] for i in sampled}
    computes = (latency.context_switches() - switched)[0] < len(truth) / 2  # it does not wait for a device or another process
    for each in calls:
        with suppress(Overloaded):
            each(*traffic[0])  # warm, on whatever thread; the run itself begins with an idle server
    with ExitStack() as opened:
        logs = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="burnish-loadgen-")))
        generator = generator or opened.enter_context(Generator())
        run = Run(generator, calls, traffic, set(truth), give_up_after=2 * seconds + 1)
        if trace is None:
            run.go(Order(str(logs), len(traffic), _settings(qps, seconds, p99_us, random)))
            if not (logs / TRACE).exists():
                files = ", ".join(sorted(path.name for path in logs.iterdir())) or "none"
                raise MeasureError(f"LoadGen ended without results; its files were {files}")
            summary = _summary(logs / "mlperf_log_detail.txt")
            scheduled_us, delay_us, latency_us = _samples(logs / TRACE)
            late_us = _lateness(np.load(logs / ISSUED), scheduled_us, delay_us)
            verdict, early = _verdict(summary), bool(summary["early_stopping_met"])
        else:
            np.save(logs / "arrivals.npy", _arrivals(trace, traffic, qps, seconds, random))
            run.go(Order(str(logs), len(traffic), arrivals=str(logs / "arrivals.npy")))
            scheduled_us, late_us, latency_us = np.load(logs / REPLAYED)
            verdict, early = "not LoadGen's", upper_bound(np.sort(latency_us), 99) <= p99_us
    between = min(READ_US, float(np.percentile(run.between_ns, 5)) / 1000) if run.between_ns else 0.0
    service, harness = np.asarray(run.service_ns) / 1000, np.asarray(run.harness_ns) / 1000 + between
    ascending = np.sort(latency_us)
    span = float((scheduled_us + latency_us).max() - scheduled_us.min())
    bounds = {f"{q:g}": upper_bound(ascending, q) for q in QUANTILES}
    result = LoadResult(
        qps=qps,
        achieved_qps=len(latency_us) / span * 1e6,
        slo_us=p99_us,
        **{name: _rank(latency_us, q) for name, q in (("p50_us", 50), ("p90_us", 90), ("p99_us", 99), ("p999_us", 99.9), ("max_us", 100))},
        bounds_us={q: us if math.isfinite(us) else None for q, us in bounds.items()},
        queries=len(latency_us),
        seconds=span / 1e6,
        valid=False,
        cause="",
        reason="",
        arrivals="poisson" if trace is None else "trace",
        loadgen=verdict,
        early_stopping=early,
        late_p99_us=_rank(late_us, 99),
        service_p50_us=_rank(service, 50),
        service_p99_us=_rank(service, 99),
        occupied_us=tuple(np.percentile(service + harness, (np.arange(OCCUPIED) + 0.5) / OCCUPIED * 100).tolist()) if len(service) else (),
        harness_us=float(harness.sum() / max(1, len(service))),
        utilization=float(service.sum() / span / len(calls)),
        cpu_share=run.server_cpu_ns / (sum(run.service_ns) + sum(run.harness_ns)) if run.service_ns else 0.0,
        servers=len(calls),
        candidates=float(np.diff(traffic.ends).mean()),
        refused=run.refused,
        checked=len(run.answers),
        wrong=sum(not same(answer, truth[index], tolerance) for index, answer in run.answers),
        curve=tuple((q, _rank(latency_us, q)) for q in (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9) if len(latency_us) * (100 - q) > 99.9),
        cores=run.cores,
        host=Host.here(),
        versions=versions(*PACKAGES, "mlcommons-loadgen"),
    )
    # the last answer came long after the last arrival: the queue grew as long as there were arrivals
    behind = span / (scheduled_us.max() - scheduled_us.min() + p99_us) > 1.1
    cause, reason = _judge(result, run.gave_up or behind, computes and result.cpu_share < latency.UNDISTURBED)
    return msgspec.structs.replace(result, valid=not cause, cause=cause, reason=reason)


def peak(
    call: Scoring | Sequence[Scoring],
    traffic: Traffic,
    p99_us: float,
    *,
    servers: int | None = None,
    seconds: float = 1.5,
    confirm_seconds: float = 5.0,
    budget_seconds: float = 45.0,
    precision: float = 0.03,
    seed: int = 0,
    trace: Trace | None = None,
) -> Peak:
    """The highest load whose p99 stays within `p99_us`, to `precision`, found within about `budget_seconds`.

    Where to look comes from the queue simulated with measured service times; short runs then narrow it down, and a long one confirms
    it. When the long run fails, the load is lowered, in steps that double from `precision` on, until one holds, and
    raised again by halves towards the load that did not, while there is time.
    """
    calls = list(call) if isinstance(call, Sequence) else [call] * (servers or 1)
    end = time.monotonic() + budget_seconds
    service_us = _service_times(calls[0], traffic, seconds / 3)  # of a quiet machine: where others run on this one, the runs show it
    capacity = len(calls) * 1e6 / float(service_us.mean())
    tried: list[LoadResult] = []

    def seconds_for(qps: float, wanted: float) -> float:
        # LoadGen's rule needs so many queries even without a miss; and a queue needs time to grow as long as it will
        return max(wanted, 1.2 * calls_needed(99) / qps, 20 * p99_us / 1e6)

    def holds(qps: float, wanted: float, tries: int = 1) -> bool:
        for _ in range(tries):  # a fault of the machine says nothing about the load
            options = {"seed": seed + len(tried), "trace": trace, "generator": generator}
            tried.append(server(calls, traffic, qps, seconds_for(qps, wanted), p99_us, **options))  # type: ignore[arg-type]
            if tried[-1].cause not in MACHINE:
                break
        return tried[-1].valid

    expected = highest_load(service_us, p99_us, len(calls), seed, trace=trace)
    if expected == 0:
        told = f"a call alone, without any waiting, has p99 {np.percentile(service_us, 99):,.0f} us; {p99_us:,.0f} us are allowed"
        return Peak(0.0, None, (), f"no load keeps p99: {told}")
    low, high, load = 0.0, capacity, min(expected, 0.95 * capacity)
    with Generator() as generator:
        while high - low > precision * high and end - time.monotonic() > seconds_for(load, seconds) + seconds_for(load, confirm_seconds):
            if holds(load, seconds, tries=2):
                low = load
            else:
                high = load
            # small steps around what the simulation expects, until both ends are known
            load = (low + high) / 2 if low and high < capacity else min(low * 1.1, (low + capacity) / 2) if low else 0.8 * high
        best: LoadResult | None = None
        wanted, failed, step = low or load, high, precision
        while end - time.monotonic() > (seconds_for(wanted, confirm_seconds) if best else 0):
            spare = end - time.monotonic() - 2 * seconds_for(wanted, confirm_seconds)  # for another run at a lower load
            if holds(wanted, confirm_seconds, tries=2 if spare > seconds_for(wanted, confirm_seconds) else 1):
                best = tried[-1]
                if failed - wanted <= precision * failed or wanted == low:
                    break
            else:
                failed = wanted
            below = best.qps if best else failed * (1 - step)
            wanted, step = (below + failed) / 2 if best else below, min(0.5, 2 * step)
    if best:
        told = f"{best.qps:,.0f} queries per second keep p99 at {best.p99_us:,.0f} us, within {p99_us:,.0f} us ({best.queries:,} queries)"
        return Peak(best.qps, best, tuple(tried), told)
    last = tried[-1].reason if tried else f"{budget_seconds:.0f} s are too short for one run"
    return Peak(0.0, None, tuple(tried), f"no load was found that keeps p99 within {p99_us:,.0f} us; the last run: {last}")


def loadgens_peak(call: Scoring, traffic: Traffic, p99_us: float, *, start_qps: float, seconds: float = 5.0, seed: int = 0) -> float:
    """The highest load by LoadGen's own FindPeakPerformance mode, whose runs last `seconds` each: what `peak` is held against. It doubles
    `start_qps`, which must hold, until that fails, and then halves the interval down to a query per second. It knows nothing of late
    generators, disturbed servers or wrong answers, nor of how many queries a p99 takes. MeasureError when `start_qps` does not hold."""
    with tempfile.TemporaryDirectory(prefix="burnish-loadgen-") as logs, Generator() as generator:
        run = Run(generator, [call], traffic, set(), give_up_after=math.inf)
        settings = _settings(start_qps, seconds, p99_us, np.random.default_rng(seed))
        settings |= {"server_find_peak_qps_decimals_of_precision": 0, "server_find_peak_qps_boundary_step_size": 1.0}
        run.go(Order(logs, len(traffic), settings, find_peak=True))
        log = (Path(logs) / "mlperf_log_detail.txt").read_text()
    if found := re.search(r"Found peak performance field: ([\d.]+)", log):
        return float(found[1])
    raise MeasureError(f"LoadGen's FindPeakPerformance found no load from {start_qps:,.0f} queries per second on. Begin with fewer")


def _settings(qps: float, seconds: float, p99_us: float, random: np.random.Generator) -> dict[str, bool | int | float]:
    """LoadGen's settings of one run, by the names it has for them."""
    seeds = random.integers(1, 2**31, 3).tolist()
    return {
        "server_target_qps": qps,
        "server_target_latency_ns": round(p99_us * 1000),
        "server_target_latency_percentile": 0.99,
        "min_duration_ms": round(seconds * 1000),
        "min_query_count": 1,
        "server_coalesce_queries": True,  # those that came due while LoadGen slept are issued together; each counts from its own time
        **dict(zip(("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"), seeds)),
    }


def _arrivals(trace: Trace, traffic: Traffic, qps: float, seconds: float, random: np.random.Generator) -> np.ndarray:
    """(2, queries): when each query of a replay comes, and the call it is."""
    times, counts = trace.busiest(seconds).at(qps, int(random.integers(2**31)), seconds)
    if len(times) == 0:
        raise MeasureError(f"{qps:g} queries per second for {seconds:g} s are no query at all. Run longer or at more load")
    if counts is None:
        return np.stack([times, random.integers(len(traffic), size=len(times)).astype(float)])
    sizes = np.diff(traffic.ends)
    order = np.argsort(sizes, kind="stable")
    known, first, many = np.unique(sizes[order], return_index=True, return_counts=True)
    right = np.minimum(np.searchsorted(known, counts), len(known) - 1)
    left = np.maximum(right - 1, 0)
    nearest = np.where(np.abs(known[left] - counts) < np.abs(known[right] - counts), left, right)
    chosen = order[first[nearest] + (random.random(len(counts)) * many[nearest]).astype(int)]
    return np.stack([times, chosen.astype(float)])


def _summary(path: Path) -> dict:
    """What LoadGen logged in the end: key -> value of its detail log."""
    found = {}
    for line in path.read_text().splitlines():
        if line.startswith(":::MLLOG "):
            entry = json.loads(line.removeprefix(":::MLLOG "))
            found[entry["key"]] = entry["value"]
    return found


def _verdict(summary: dict) -> str:
    """LoadGen's verdict in a line: its reason and the result of early stopping, which come as bullet lists."""
    if summary["result_validity"] == "VALID":
        return "VALID"
    told = f"{summary.get('result_invalid_reason', '')} {summary.get('early_stopping_result', '')}"
    return f"INVALID: {' '.join(told.replace('*', ' ').split())}"


_SAMPLE = re.compile(
    rb'"name":"Sample","cat":"default","ph":"b","pid":\d+,"id":\d+,"ts":(-?[\d.]+),'
    rb'"args":\{"sample_seq":(\d+),"query_seq":\d+,"sample_idx":\d+,"issue_start_ns":(\d+),"complete_ns":(\d+)'
)


def _samples(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each query in the order of arrival, in us: when it was meant to start, how much later LoadGen issued it, its latency."""
    rows = [tuple(map(float, match)) for match in _SAMPLE.findall(path.read_bytes())]
    if not rows:
        raise MeasureError("LoadGen left no trace of any query: the run was too short for a single one. Run longer or at more load")
    table = np.array(sorted(rows, key=lambda row: row[1]))
    return table[:, 0], table[:, 2] / 1000, table[:, 3] / 1000


def _lateness(issued_ns: np.ndarray, scheduled_us: np.ndarray, delay_us: np.ndarray) -> np.ndarray:
    """How late each query reached our queue. LoadGen's own delay ends before it has Python's lock; our clock reads after. The offset of the
    two clocks is the smallest difference seen: some query waited for nothing."""
    ours = np.asarray(issued_ns)[: len(scheduled_us)] / 1000 - scheduled_us
    return ours - (ours - delay_us).min()


def _rank(values: np.ndarray, q: float) -> float:
    return float(np.percentile(values, q, method="inverted_cdf")) if len(values) else float("nan")


def _judge(result: LoadResult, overloaded: bool = False, robbed: bool = False) -> tuple[Cause, str]:
    """Why a run does not show that the objective is met, and the sentence; empty when it does. Faults of the measurement come first.

    `robbed`: other programs had the servers' cores for some of the time. A p99 that was met all the same is met.
    """
    if result.wrong:
        return "wrong answers", f"{result.wrong} of {result.checked} answers checked during the run were wrong; nothing else it says counts"
    if result.refused:
        return "overloaded", f"overloaded: {result.refused:,} of {result.queries:,} queries were refused at {result.qps:,.0f} a second"
    if robbed and (overloaded or result.p99_us > result.slo_us):
        return "disturbed", (
            f"other programs had the servers' cores for {100 * (1 - result.cpu_share):.0f} % of the time, so that p99 was "
            f"{result.p99_us:,.0f} us says nothing of this engine. Stop what else runs on this machine"
        )
    if overloaded:
        told = f"overloaded: {result.qps:,.0f} queries per second were offered and about {result.achieved_qps:,.0f} could be served"
        return "overloaded", told
    if result.late_p99_us > max(LATE * result.slo_us, LATE_US):
        return "late generator", (
            f"the load generator itself was late: its p99 delay was {result.late_p99_us:,.0f} us, against an objective of "
            f"{result.slo_us:,.0f} us. Give it a core of its own, or lower the load"
        )
    if result.p99_us > result.slo_us:
        return "p99", f"p99 was {result.p99_us:,.0f} us at {result.qps:,.0f} queries per second; {result.slo_us:,.0f} us are allowed"
    if not result.early_stopping:
        more = re.search(r"at least (\d+) more", result.loadgen)
        return "too few queries", (
            f"{result.queries:,} queries are too few to claim a p99 within {result.slo_us:,.0f} us with 99 % confidence"
            + (f": LoadGen's early-stopping rule asks for at least {int(more[1]):,} more" if more else "")
            + ". Run longer"
        )
    if result.arrivals == "poisson" and result.loadgen != "VALID":
        return "loadgen", f"LoadGen calls the run {result.loadgen}"
    return "", ""


def _service_times(call: Scoring, traffic: Traffic, seconds: float) -> np.ndarray:
    """(calls,) microseconds, one after another."""
    found = latency.quieted(latency.measure({"alone": call}, traffic, seconds, rounds=1))
    return np.asarray(found["alone"].us)
