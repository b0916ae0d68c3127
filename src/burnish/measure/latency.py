"""How long one call takes, closed loop, one after another: several engines side by side in short alternating slices of one run.

Alternation makes the comparison fair on a machine that is not quiet: what slows the machine down slows all engines down. What is claimed
of a percentile is limited by the number of calls, and a run whose rounds disagree says so.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec
import numpy as np

from burnish.errors import MeasureError
from burnish.host import Host, versions
from burnish.measure.traffic import Traffic

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Scoring = Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], object]

PACKAGES = ("burnish", "numpy", "onnxruntime", "openvino", "torch")
STEADY = 0.05  # medians of the rounds may differ by this share before a run is called unstable ...
UNDISTURBED = 0.95  # ... and a single thread has its core for at least this share of the time


class Latencies(msgspec.Struct, frozen=True):
    """Every call of one run, in arrival order, and the machine it ran on."""

    us: tuple[float, ...]
    host: Host
    candidates: tuple[int, ...] = ()  # of each call
    rounds: tuple[int, ...] = ()  # how many of the calls each round had
    threads: int = 1
    cores: tuple[int, ...] = ()  # it was pinned to
    cpu_us: tuple[float, ...] = ()  # processor time of each call, all threads together
    waits: int = 0  # times the process gave up a core by itself, while it was measured ...
    preemptions: int = 0  # ... and times a core was taken from it
    versions: dict[str, str] = {}
    estimated: str = ""  # why `us` are processor times and not latencies, when they are (`quieted`)

    def percentile(self, q: float) -> float:
        """The q-th percentile in microseconds by nearest rank: a latency that was measured."""
        if not self.us:
            raise MeasureError("there are no latencies to take a percentile of")
        if not 0 <= q <= 100:
            raise MeasureError(f"there is no percentile {q}; give 0 to 100")
        return sorted(self.us)[max(0, math.ceil(q / 100 * len(self.us)) - 1)]

    def confident(self, q: float, confidence: float = 0.99) -> bool:
        """Whether so many calls can bound the q-th percentile at all: `calls_needed(q, confidence)` of them, 459 for p99 at 99 %."""
        return len(self.us) >= calls_needed(q, confidence)

    def upper(self, q: float, confidence: float = 0.99) -> float:
        """Microseconds that the true q-th percentile does not exceed, with `confidence`: an order statistic, whatever the distribution.
        infinity when there are too few calls."""
        return upper_bound(np.sort(np.asarray(self.us)), q, confidence)

    def curve(self, quantiles: Sequence[float] = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100)) -> list[tuple[float, float]]:
        """(quantile, us) pairs for a plot; only those that the number of calls resolves."""
        return [(q, self.percentile(q)) for q in quantiles if q in (0, 100) or len(self.us) * min(q, 100 - q) > 99.9]

    @property
    def candidates_per_second(self) -> float:
        """Candidates scored per second of scoring time, on `threads` threads."""
        return sum(self.candidates) / sum(self.us) * 1e6

    @property
    def cpu_share(self) -> float:
        """Processor time over passed time: 1 for one thread that nothing disturbs."""
        return sum(self.cpu_us) / sum(self.us) if self.cpu_us else 1.0

    @property
    def disturbed(self) -> bool:
        """Whether other programs took the core of a single thread. An engine that waits by itself, for a device say, is not disturbed."""
        return self.threads == 1 and self.cpu_share < UNDISTURBED and self.preemptions > self.waits

    def undisturbed(self) -> Latencies:
        """An estimate for a machine that is busy with other things: each call's processor time in place of its latency. That is what it
        would have taken with the core to itself, but for caches that others emptied. MeasureError for more than one thread, whose
        processor times add up."""
        if self.threads != 1:
            raise MeasureError(
                f"processor time stands for latency where one thread computes; these were measured with {self.threads} threads"
            )
        if len(self.cpu_us) != len(self.us):
            raise MeasureError("these latencies were measured without processor times")
        return msgspec.structs.replace(self, us=tuple(map(min, self.us, self.cpu_us)), estimated="processor times, not latencies")

    @property
    def round_medians(self) -> tuple[float, ...]:
        ends = np.cumsum(self.rounds)
        return tuple(float(np.median(self.us[end - size : end])) for end, size in zip(ends, self.rounds) if size)

    @property
    def spread(self) -> float:
        """Largest less smallest median of the rounds, as a share of the middle one."""
        medians = self.round_medians
        return (max(medians) - min(medians)) / float(np.median(medians)) if medians else 0.0

    def unstable(self, tolerance: float = STEADY) -> str | None:
        """None, or the sentence that says why these figures may be wrong and what would settle it."""
        if self.estimated:
            return self.estimated
        if self.spread > tolerance:
            low, high = min(self.round_medians), max(self.round_medians)
            return (
                f"unstable: the medians of {len(self.rounds)} rounds go from {low:.0f} to {high:.0f} us ({100 * self.spread:.0f} % apart, "
                f"{100 * tolerance:.0f} % is steady). Stop what else runs on this machine, or measure more and longer rounds"
            )
        if self.disturbed:
            return (
                f"unstable: the engine had its core for {100 * self.cpu_share:.0f} % of the time; the rest went to other programs. Stop "
                "what else runs on this machine"
            )
        if not self.confident(99):
            return f"{len(self.us)} calls are too few for a p99: {calls_needed(99)} bound it with 99 % confidence. Measure longer"
        return None

    def __add__(self, other: Latencies) -> Latencies:
        if self.host != other.host:
            raise MeasureError(
                f"cannot pool latencies of {self.host.cpu} with those of {other.host.cpu}: the hosts differ in {_differ(self, other)}"
            )
        if (self.threads, self.versions, self.estimated) != (other.threads, other.versions, other.estimated):
            raise MeasureError("cannot pool latencies measured with different threads or versions, or measured with estimated ones")
        return Latencies(
            self.us + other.us,
            self.host,
            self.candidates + other.candidates,
            self.rounds + other.rounds,
            self.threads,
            tuple(sorted({*self.cores, *other.cores})),
            self.cpu_us + other.cpu_us,
            self.waits + other.waits,
            self.preemptions + other.preemptions,
            self.versions,
            self.estimated,
        )


class Ratio(msgspec.Struct, frozen=True):
    """How many times more candidates per second, over the rounds of one run: median, lowest and highest."""

    value: float
    low: float
    high: float


def calls_needed(q: float, confidence: float = 0.99) -> int:
    """Calls until the slowest of them bounds the q-th percentile with `confidence`: the least n with 1 - (q/100)^n >= confidence."""
    return math.ceil(math.log(1 - confidence) / math.log(q / 100))


def upper_bound(ascending: np.ndarray, q: float, confidence: float = 0.99) -> float:
    """The smallest order statistic that is at least the true q-th percentile with `confidence`; infinity when none is.

    The number of values above the true percentile is Binomial(n, 1 - q/100); with k chosen so that at most k lie above it with probability
    at most 1 - confidence, the (k+1)-th largest value bounds it.
    """
    n, p = len(ascending), 1 - q / 100
    if not 0 < p < 1:
        return math.inf if p <= 0 else float(ascending[0])
    j = np.arange(1, n + 1)
    log_mass = np.concatenate(([0.0], np.cumsum(np.log((n - j + 1) / j) + math.log(p / (1 - p))))) + n * math.log(1 - p)
    k = int(np.searchsorted(np.cumsum(np.exp(log_mass)), 1 - confidence, side="right")) - 1
    return float(ascending[n - 1 - k]) if k >= 0 else math.inf


def measure(
    engines: Mapping[str, Scoring],
    traffic: Traffic,
    seconds_each: float = 2.0,
    rounds: int = 5,
    core: int | Sequence[int] | None = None,
    threads: int = 1,
) -> dict[str, Latencies]:
    """Latencies of each engine on the same calls: `rounds` times a slice of `seconds_each / rounds` for each in turn.

    The calling thread is pinned to `core` (the last one it may use when None; as many as `threads`), and the pinning undone
    afterwards. Each slice starts with calls that are not counted, so that an engine does not pay for the one before it;
    garbage is collected between slices, not within. Every engine gets the calls in the same order.
    """
    if not engines:
        raise MeasureError("there is no engine to measure")
    if seconds_each <= 0 or rounds < 1:
        raise MeasureError(f"cannot measure {rounds} rounds in {seconds_each} s; give at least 1 round and a time above 0")
    calls = list(traffic)
    counts = [traffic.count(i) for i in range(len(traffic))]
    slice_ns = int(seconds_each / rounds * 1e9)
    us: dict[str, list[int]] = {name: [] for name in engines}
    sizes: dict[str, list[int]] = {name: [] for name in engines}
    cpu: dict[str, list[int]] = {name: [] for name in engines}
    switches = {name: np.zeros(2, int) for name in engines}
    names = list(engines)
    with pinned(core, threads) as cores, _old_objects_left():
        for name in names:
            _slice(engines[name], calls, 0, slice_ns // 10, [], [])
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                before = len(us[name])
                _slice(engines[name], calls, before - 3, slice_ns // 20, [], [])
                switched = context_switches()
                _slice(engines[name], calls, before, slice_ns, us[name], cpu[name])
                switches[name] += context_switches() - switched
                sizes[name].append(len(us[name]) - before)
    host, found = Host.here(), versions(*PACKAGES)
    return {
        name: Latencies(
            us=tuple(ns / 1000 for ns in us[name]),
            host=host,
            candidates=tuple(counts[i % len(counts)] for i in range(len(us[name]))),
            rounds=tuple(sizes[name]),
            threads=threads,
            cores=cores,
            cpu_us=tuple(ns / 1000 for ns in cpu[name]),
            waits=int(switches[name][0]),
            preemptions=int(switches[name][1]),
            versions=found,
        )
        for name in names
    }


def quieted(found: dict[str, Latencies]) -> dict[str, Latencies]:
    """The latencies of one run as a quiet machine would show them; as they are where nothing disturbed the run. All engines or none are
    estimated, so that they stay comparable, and `estimated` has the sentence that must stand beside them."""
    share = min((each.cpu_share for each in found.values() if each.disturbed), default=1.0)
    if share == 1 or any(each.threads != 1 or each.waits > each.preemptions for each in found.values()):
        return found
    why = (
        f"other programs ran on this core, which left it to the engines for {100 * share:.0f} % of the time; these latencies are processor "
        "times, an estimate of a quiet machine"
    )
    return {name: msgspec.structs.replace(each.undisturbed(), estimated=why) for name, each in found.items()}


def faster(first: Latencies, than: Latencies) -> Ratio:
    """How many times more candidates per second `first` scores, round against round of one `measure`."""
    if first.host != than.host or len(first.rounds) != len(than.rounds):
        raise MeasureError("only latencies of one run can be compared: the hosts or the rounds differ")
    ratios = [a / b for a, b in zip(_per_round(first), _per_round(than))]
    return Ratio(float(np.median(ratios)), min(ratios), max(ratios))


def context_switches() -> np.ndarray:
    """(2,) of this process so far: voluntary and involuntary ones; zeros where the system does not count them."""
    if resource is None:
        return np.zeros(2, int)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([used.ru_nvcsw, used.ru_nivcsw])


@contextmanager
def pinned(core: int | Sequence[int] | None = None, threads: int = 1) -> Iterator[tuple[int, ...]]:
    """The calling thread on `core` (or cores), by default the last `threads` it may use; what it may use is restored afterwards. Yields the
    cores, none where the system cannot pin."""
    if not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    allowed = os.sched_getaffinity(0)
    wanted = sorted(allowed)[-threads:] if core is None else [core] if isinstance(core, int) else list(core)
    if not set(wanted) <= allowed:
        raise MeasureError(f"cannot pin to core {', '.join(map(str, wanted))}: this process may use {', '.join(map(str, sorted(allowed)))}")
    os.sched_setaffinity(0, wanted)
    try:
        yield tuple(wanted)
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def _old_objects_left() -> Iterator[None]:
    """Collections between slices look only at what was made since: with torch in memory a whole one takes 0.2 s, longer than a slice."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _slice(call: Scoring, calls: list, start: int, ns: int, passed: list[int], cpu: list[int]) -> None:
    """Call until `ns` have passed, at least once, from call number `start` on; append the nanoseconds of each, and those of processor time
    (read outside of the others, since reading it is a system call)."""
    clock, processor, n, i = time.perf_counter_ns, time.process_time_ns, len(calls), start
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        end = clock() + ns
        while True:
            request, candidates = calls[i % n]
            i += 1
            busy = processor()
            begin = clock()
            call(request, candidates)
            now = clock()
            cpu.append(processor() - busy)
            passed.append(now - begin)
            if now >= end:
                return
    finally:
        if enabled:
            gc.enable()


def _per_round(latencies: Latencies) -> list[float]:
    ends = np.cumsum(latencies.rounds)
    pairs = [(end - size, end) for end, size in zip(ends, latencies.rounds)]
    return [sum(latencies.candidates[a:b]) / sum(latencies.us[a:b]) * 1e6 for a, b in pairs]


def _differ(a: Latencies, b: Latencies) -> str:
    return ", ".join(f for f in Host.__struct_fields__ if getattr(a.host, f) != getattr(b.host, f))
