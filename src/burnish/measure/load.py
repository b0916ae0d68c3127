"""p99 at a load: open loop, by MLCommons LoadGen's Server scenario, and the highest load that keeps it.

Queries arrive as a Poisson stream whatever the server does, and a query's time counts from the moment it was meant to start, so a
server that falls behind cannot hide it (closed-loop tests do). LoadGen draws the arrivals, keeps the clock and applies its
early-stopping rule; the queue and the server threads are ours. We read LoadGen's trace and not its summary alone, because it has the
generator's own delay for each query: when that is not small against the objective, it is the generator that was measured, and the
run is invalid.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import re
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal

import msgspec
import numpy as np

from burnish.errors import MeasureError
from burnish.host import Host, versions
from burnish.measure import latency
from burnish.measure.latency import PACKAGES, Scoring, calls_needed
from burnish.measure.queueing import Prediction, highest_load, simulate
from burnish.measure.traffic import Traffic

__all__ = ["LoadResult", "Peak", "Prediction", "highest_load", "peak", "server", "simulate"]

LATE = 0.1  # the generator's p99 delay may be this share of the objective ...
LATE_US = 200  # ... and this much in any case: waking a thread takes so long, and it counts as latency, so it never flatters
TRACE = "mlperf_log_trace.json"
CHECKED = 64  # answers that are kept and compared
SWITCH_SECONDS = 1e-4  # between threads that want Python's lock: the default of 5 ms would be the p99 of a fast ranker


Cause = Literal["", "wrong answers", "disturbed", "overloaded", "late generator", "p99", "too few queries", "loadgen"]


MACHINE: tuple[Cause, ...] = ("disturbed", "late generator")  # faults of a busy machine; nothing follows from them for the engine


class LoadResult(msgspec.Struct, frozen=True):
    """One run of LoadGen's Server scenario. Times are microseconds from the intended start of a query to its answer."""

    qps: float  # asked for
    achieved_qps: float  # answered per second
    slo_us: float  # the p99 that was allowed
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    queries: int
    seconds: float
    valid: bool  # the objective was met, and the run is one that can show it
    cause: Cause  # why not; "" when valid
    reason: str  # the same in a sentence
    loadgen: str  # LoadGen's own verdict: VALID, or INVALID and why
    early_stopping: bool  # LoadGen's rule: enough queries for the p99 to hold with 99 % confidence
    late_p99_us: float  # the generator's own delay
    service_p50_us: float  # one call, without waiting
    service_p99_us: float
    harness_us: float  # mean time a server spent on each query outside the call: queue, Python, LoadGen
    utilization: float  # busy share of the servers
    cpu_share: float  # processor time of the servers over their busy time; below 1 they waited, or other programs had their cores
    servers: int
    candidates: float  # mean of a call
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
) -> LoadResult:
    """Offer `qps` Poisson queries per second for about `seconds`, and compare their p99 with `p99_us`.

    `call` scores (request, candidates); a sequence gives each server thread its own, otherwise `servers` threads (1) share it. Queries
    are the calls of `traffic` in random order. A sample of the answers is compared with `expected` (one per call of the traffic; by
    default what `call` answers beforehand, undisturbed) within `tolerance`. A run at more load than can be served is cut off after
    twice its time and says so. MeasureError when the call raises, or LoadGen is not installed.
    """
    loadgen = _loadgen()
    calls = list(call) if isinstance(call, Sequence) else [call] * (servers or 1)
    if servers is not None and servers != len(calls):
        raise MeasureError(f"{len(calls)} calls were given for {servers} servers; give one for each, or one for all")
    if not (qps > 0 and seconds > 0 and p99_us > 0):
        raise MeasureError(f"cannot offer {qps} queries per second for {seconds} s with p99 {p99_us} us; give numbers above 0")
    random = np.random.default_rng(seed)
    sampled = sorted(random.choice(len(traffic), min(CHECKED, len(traffic)), replace=False).tolist())
    switched = latency.context_switches()
    truth = {i: _kept(calls[0](*traffic[i])) if expected is None else expected[i] for i in sampled}
    computes = (latency.context_switches() - switched)[0] < len(truth) / 2  # it does not wait for a device or another process
    for each in calls:
        each(*traffic[0])  # warm, on whatever thread; the run itself begins with an idle server
    run = _Run(loadgen, calls, traffic, set(truth), give_up_after=2 * seconds + 1)
    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.Server
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = qps
    settings.server_target_latency_ns = round(p99_us * 1000)
    settings.server_target_latency_percentile = 0.99
    settings.min_duration_ms = round(seconds * 1000)
    settings.min_query_count = 1
    settings.qsl_rng_seed, settings.sample_index_rng_seed, settings.schedule_rng_seed = random.integers(1, 2**31, 3).tolist()
    with tempfile.TemporaryDirectory(prefix="burnish-loadgen-") as logs:
        run.go(settings, logs)
        summary = _summary(Path(logs) / "mlperf_log_detail.txt")
        scheduled_us, delay_us, latency_us = _samples(Path(logs) / TRACE)
    late_us = _lateness(run.issued_ns, scheduled_us, delay_us)
    wrong = sum(not _same(answer, truth[index], tolerance) for index, answer in run.answers)
    service = np.asarray(run.service_ns) / 1000
    span = float((scheduled_us + latency_us).max() - scheduled_us.min())
    result = LoadResult(
        qps=qps,
        achieved_qps=len(latency_us) / span * 1e6,
        slo_us=p99_us,
        **{name: _rank(latency_us, q) for name, q in (("p50_us", 50), ("p90_us", 90), ("p99_us", 99), ("p999_us", 99.9), ("max_us", 100))},
        queries=len(latency_us),
        seconds=span / 1e6,
        valid=False,
        cause="",
        reason="",
        loadgen=_verdict(summary),
        early_stopping=summary["early_stopping_met"],
        late_p99_us=_rank(late_us, 99),
        service_p50_us=_rank(service, 50),
        service_p99_us=_rank(service, 99),
        harness_us=float(sum(run.harness_ns) / max(1, len(service)) / 1000),
        utilization=float(service.sum() / span / len(calls)),
        cpu_share=run.server_cpu_ns / (sum(run.service_ns) + sum(run.harness_ns)) if run.service_ns else 0.0,
        servers=len(calls),
        candidates=float(np.diff(traffic.ends).mean()),
        checked=len(run.answers),
        wrong=wrong,
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
            tried.append(server(calls, traffic, qps, seconds_for(qps, wanted), p99_us, seed=seed + len(tried)))
            if tried[-1].cause not in MACHINE:
                break
        return tried[-1].valid

    expected = highest_load(service_us, p99_us, len(calls), seed)
    if expected == 0:
        told = f"a call alone, without any waiting, has p99 {np.percentile(service_us, 99):,.0f} us; {p99_us:,.0f} us are allowed"
        return Peak(0.0, None, (), f"no load keeps p99: {told}")
    low, high, load = 0.0, capacity, min(expected, 0.95 * capacity)
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
        if holds(wanted, confirm_seconds):
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


class _Run:
    """A system under test for LoadGen: one queue, one thread for each of `calls`, and a thread for the generator."""

    def __init__(self, loadgen: ModuleType, calls: list[Scoring], traffic: Traffic, keep: set[int], give_up_after: float) -> None:
        self.loadgen = loadgen
        self.calls = calls
        self.traffic = list(traffic)
        self.keep = keep
        self.give_up_after = give_up_after
        self.queue: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self.issued_ns: list[int] = []
        self.service_ns: list[int] = []
        self.harness_ns: list[int] = []
        self.answers: list[tuple[int, object]] = []
        self.server_cpu_ns = 0
        self.generator_cpu_ns = 0
        self.ended = threading.Event()
        self.gave_up = False
        self.failure: BaseException | None = None
        self.cores: tuple[tuple[int, ...], ...] = _cores(len(calls))

    def go(self, settings: object, logs: str) -> None:
        """Run to the end; MeasureError if a call raised."""
        switch, collects = sys.getswitchinterval(), gc.isenabled()
        workers = [threading.Thread(target=self._serve, args=(i,), daemon=True) for i in range(len(self.calls))]
        # LoadGen blocks in C++ until the run ends: on a thread of its own Ctrl-C still reaches us
        generator = threading.Thread(target=self._generate, args=(settings, logs), daemon=True)
        sys.setswitchinterval(SWITCH_SECONDS)
        gc.collect()
        gc.disable()
        self.stop_at = time.monotonic() + self.give_up_after
        process_ns = time.process_time_ns()
        try:
            for thread in (*workers, generator):
                thread.start()
            self.ended.wait()  # not join: Ctrl-C during a join makes Python 3.11 take the thread for ended
        finally:
            self.stop_at = 0.0  # after Ctrl-C: answer what is still to come without scoring
            generator.join()
            for _ in workers:
                self.queue.put(None)
            for thread in workers:
                thread.join()
            self.server_cpu_ns = time.process_time_ns() - process_ns - self.generator_cpu_ns
            sys.setswitchinterval(switch)
            if collects:
                gc.enable()
        if self.failure is not None:
            raise MeasureError(f"the engine failed under load: {type(self.failure).__name__}: {self.failure}") from self.failure
        if not Path(logs, TRACE).exists():
            raise MeasureError(f"LoadGen ended without results; its files were {', '.join(sorted(os.listdir(logs))) or 'none'}")

    def _generate(self, settings: object, logs: str) -> None:
        try:
            self._pin(0)
            lg = self.loadgen
            log = lg.LogSettings()
            log.enable_trace = True
            log.log_output = lg.LogOutputSettings()
            log.log_output.outdir = logs
            log.log_output.copy_summary_to_stdout = log.log_output.copy_detail_to_stdout = False
            sut = lg.ConstructSUT(self._issue, lambda: None)
            count = len(self.traffic)
            qsl = lg.ConstructQSL(count, count, lambda _: None, lambda _: None)
            lg.StartTestWithLogSettings(sut, qsl, settings, log, "")
            lg.DestroyQSL(qsl)
            lg.DestroySUT(sut)
        finally:
            self.generator_cpu_ns = time.thread_time_ns()
            self.ended.set()

    def _issue(self, samples: list) -> None:
        now = time.perf_counter_ns()
        for sample in samples:
            self.issued_ns.append(now)
            self.queue.put((sample.id, sample.index))

    def _serve(self, number: int) -> None:
        self._pin(1 + number)
        clock, call, calls, keep = time.perf_counter_ns, self.calls[number], self.traffic, self.keep
        complete, response = self.loadgen.QuerySamplesComplete, self.loadgen.QuerySampleResponse
        while (query := self.queue.get()) is not None:
            taken = clock()
            ident, index = query
            if self.failure is None and time.monotonic() < self.stop_at:
                begin = clock()
                try:
                    answer = call(*calls[index])
                except Exception as error:  # whatever it is: LoadGen waits for ever for a query that is never answered
                    self.failure = error
                    answer = None
                end = clock()
                self.service_ns.append(end - begin)
                if index in keep and len(self.answers) < 4 * CHECKED:
                    self.answers.append((index, _kept(answer)))
                complete([response(ident, 0, 0)])
                self.harness_ns.append(begin - taken + clock() - end)
            else:
                self.gave_up = True
                complete([response(ident, 0, 0)])

    def _pin(self, place: int) -> None:
        if self.cores:
            os.sched_setaffinity(0, self.cores[place])


def _cores(servers: int) -> tuple[tuple[int, ...], ...]:
    """Cores of the generator and of each server: one each while there are enough; servers share what the generator leaves otherwise, and
    nothing is pinned on a single core."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(allowed) < 2:
        return ()
    rest = allowed[1:]
    return ((allowed[0],), *((rest[i],) if servers <= len(rest) else tuple(rest) for i in range(servers)))


def _loadgen() -> ModuleType:
    try:
        import mlperf_loadgen
    except ImportError:
        raise MeasureError("load is measured with MLCommons LoadGen, which is not installed: pip install mlcommons-loadgen") from None
    return mlperf_loadgen


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


def _lateness(issued_ns: list[int], scheduled_us: np.ndarray, delay_us: np.ndarray) -> np.ndarray:
    """How late each query reached our queue. LoadGen's own delay ends before it has Python's lock; our clock reads after. The offset of the
    two clocks is the smallest difference seen: some query waited for nothing."""
    ours = np.asarray(issued_ns[: len(scheduled_us)]) / 1000 - scheduled_us
    return ours - (ours - delay_us).min()


def _rank(values: np.ndarray, q: float) -> float:
    return float(np.percentile(values, q, method="inverted_cdf")) if len(values) else float("nan")


def _kept(answer: object) -> object:
    """A copy: an engine may use the memory of an answer again for the next."""
    if isinstance(answer, dict):
        return {name: np.copy(value) for name, value in answer.items()}
    return np.copy(answer)  # type: ignore[call-overload]


def _same(answer: object, truth: object, tolerance: float) -> bool:
    if isinstance(truth, dict):
        return isinstance(answer, dict) and all(_same(answer.get(name), value, tolerance) for name, value in truth.items())
    a, b = np.asarray(answer), np.asarray(truth)
    return a.shape == b.shape and bool(np.all(np.abs(a.astype(np.float64) - b) <= tolerance))


def _judge(result: LoadResult, overloaded: bool = False, robbed: bool = False) -> tuple[Cause, str]:
    """Why a run does not show that the objective is met, and the sentence; empty when it does. Faults of the measurement come first.

    `robbed`: other programs had the servers' cores for some of the time. A p99 that was met all the same is met.
    """
    if result.wrong:
        return "wrong answers", f"{result.wrong} of {result.checked} answers checked during the run were wrong; nothing else it says counts"
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
    if result.loadgen != "VALID":
        return "loadgen", f"LoadGen calls the run {result.loadgen}"
    return "", ""


def _service_times(call: Scoring, traffic: Traffic, seconds: float) -> np.ndarray:
    """(calls,) microseconds, one after another."""
    found = latency.quieted(latency.measure({"alone": call}, traffic, seconds, rounds=1))
    return np.asarray(found["alone"].us)
