"""The steps of a trial, cheap evidence first. Each takes the subject and the trial and gives what it found (JSON types), or turns the
trial down with the sentence the report prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from burnish.errors import MeasureError
from burnish.host import Host
from burnish.measure import latency, load, memory, queueing
from burnish.measure.quality import compare, gate
from burnish.place.work import work
from burnish.recipe import Embeddings, FactorRequest, Interactions, Tidy
from burnish.runtime.artifact import difference
from burnish.runtime.scorer import Scorer
from burnish.search.architecture import architecture
from burnish.search.space import BASELINE
from burnish.search.subject import Subject
from burnish.search.trial import Trial
from burnish.trace import Trace

SCREEN_ROWS = 20_000  # enough to see the loss of a bad recipe, and scored in a second
GROWING = 5  # times as many rows before the gate looks again
PARITY_CALLS = 4
LEAST_LOAD = 1.5  # seconds
SERVICE_POINTS = 200  # quantiles kept of the service times, from which capacity is simulated


class TurnedDown(Exception):
    """A trial ends here; the text is the sentence, `found` what was measured before."""

    def __init__(self, sentence: str, found: dict[str, Any] | None = None) -> None:
        super().__init__(sentence)
        self.found = found or {}


class Effort(msgspec.Struct, frozen=True):
    """How long each measurement may take, in seconds."""

    latency: float = 2.0
    compare: float = 5.0  # each engine of the last side-by-side run
    load: float = 15.0  # each search for the highest load

    @classmethod
    def within(cls, budget_seconds: float) -> Effort:
        """The measurements a budget allows: at five minutes and more the ones above, less below."""
        share, full = min(1.0, budget_seconds / 300), cls()
        return cls(max(0.2, share * full.latency), max(0.3, share * full.compare)).with_load(share * full.load)

    def with_load(self, seconds: float) -> Effort:
        """The same with load tests of so many seconds, or of the fewest that find anything."""
        return msgspec.structs.replace(self, load=max(LEAST_LOAD, seconds))


def build(subject: Subject, trial: Trial, effort: Effort) -> dict[str, Any]:
    """Apply the recipe and build; `compile` has held the engine against the interpreter when this returns. `decided` is the recipe with
    what the calibration rows decided (burnish.decided), `layers` what each linear loses in int8, and `unsettled` what those rows were too
    few for; of the model as it came, `architecture`."""
    artifact = subject.artifact(trial.id, trial.recipe)
    program = artifact.manifest.programs[0]
    found = {"weight_bytes": program.weight_bytes, "arena_bytes": program.arena_bytes, "target": program.target}
    if trial.id == BASELINE.id:
        return found | {"architecture": architecture(subject.graph), "work": msgspec.to_builtins(work(subject.graph))}
    return found | {
        "decided": artifact.manifest.recipe,
        "layers": subject.layers(trial.recipe),
        "unsettled": subject.unsettled(trial.recipe),
    }


def screen(subject: Subject, trial: Trial, effort: Effort) -> dict[str, Any]:
    """On real rows: a request beside its candidates scores what the same rows score as a table; and the gate on the first rows, which
    turns down what is plainly worse. Nothing is accepted on so few."""
    with _opened(subject, trial) as scorer:
        rule = scorer.artifact.manifest.golden
        for i in range(min(PARITY_CALLS, len(subject.traffic))):
            as_call = subject.output(scorer(*subject.traffic[i]))
            as_rows = subject.output(scorer.rows(subject.traffic.rows_table(i)))
            worst, mean = difference(as_call, as_rows)
            if worst > rule.tolerance or mean > rule.mean_tolerance:
                raise TurnedDown(f"scores of a request differ from those of the same rows as a table by {worst:.2g}")
        if len(subject.rows) < 2 * SCREEN_ROWS:
            return {}
        scores = subject.score(scorer, SCREEN_ROWS)
    return _judged(subject, scores, whole=False)


def isolated(subject: Subject, trial: Trial, effort: Effort) -> dict[str, Any]:
    """Latency of one call at a time, side by side with the model as it came."""
    with _opened(subject, trial) as scorer:
        engines = {BASELINE.id: subject.baseline, trial.id: scorer}
        found = latency.quieted(latency.measure(engines, subject.traffic, effort.latency, rounds=3, threads=trial.recipe.threads))
    ours, allowed = found[trial.id], subject.job.objective.p99_ms * 1000
    result = latencies(ours, trial.recipe.threads) | {"speedup": latency.faster(ours, found[BASELINE.id]).value}
    if ours.percentile(99) > allowed:
        raise TurnedDown(
            f"p99 of one call alone is {ours.percentile(99) / 1000:.3g} ms at {subject.job.candidates} candidates; "
            f"{allowed / 1000:.3g} ms are allowed",
            result,
        )
    return result


def quality(subject: Subject, trial: Trial, effort: Effort) -> dict[str, Any]:
    """The gate on all validation rows, scored by the built artifact; on GROWING times as many each time, so that what is plainly worse is
    turned down before all are scored. Nothing is accepted before."""
    with _all_cores(subject, trial) as scorer:
        scores, n = np.zeros(0, np.float32), SCREEN_ROWS * GROWING
        while n * 2 <= len(subject.rows):
            scores = np.concatenate([scores, subject.score(scorer, n, start=len(scores))])
            _judged(subject, scores, whole=False)
            n *= GROWING
        scores = np.concatenate([scores, subject.score(scorer, len(subject.rows), start=len(scores))])
    return _judged(subject, scores, whole=True)


def original(subject: Subject, trial: Trial, effort: Effort) -> dict[str, Any]:
    """The metrics of the model as it came: compared with itself."""
    return _judged(subject, subject.original, whole=True)


def highest_load(subject: Subject, trial: Trial, effort: Effort) -> dict[str, Any]:
    """The highest Poisson load whose p99 stays within the objective.

    Where no load test was valid (a machine too busy to run the generator beside the server, or too little time to come down to a load that
    holds), the load is that of the simulated queue, and `simulated` says so: such a fault must not decide between trials. A trial is turned
    down for wrong answers, and when no load of the queue keeps p99.
    """
    p99_us = subject.job.objective.p99_ms * 1000
    with _opened(subject, trial) as scorer:
        found = load.peak(
            scorer,
            subject.traffic,
            p99_us,
            seconds=effort.load / 12,
            confirm_seconds=effort.load / 4,
            budget_seconds=effort.load,
            trace=subject.trace,
        )
        run = found.confirmed
        if run is None:
            if any(tried.cause == "wrong answers" for tried in found.tried):
                raise TurnedDown(found.sentence)
            alone = latency.quieted(
                latency.measure({trial.id: scorer}, subject.traffic, effort.load / 4, rounds=1, threads=trial.recipe.threads)
            )
            return _simulated(np.asarray(alone[trial.id].us), p99_us, found.sentence, subject.trace)
    kept = ("p50_us", "p99_us", "queries", "valid", "early_stopping", "late_p99_us", "harness_us", "utilization", "checked")
    return {
        "qps": found.qps,
        **{name: getattr(run, name) for name in kept},
        "simulated": False,
        "missed_qps": found.below_qps if np.isfinite(found.below_qps) else None,
        "curve": sorted([tried.qps, tried.p99_us] for tried in found.tried if tried.cause != "overloaded"),
        "sentence": found.sentence,
    }


def _simulated(service_us: np.ndarray, p99_us: float, why: str, trace: Trace | None) -> dict[str, Any]:
    """The highest load of a queue with these service times."""
    qps = queueing.highest_load(service_us, p99_us, trace=trace)
    if not qps:
        raise TurnedDown(why)
    found = queueing.simulate(service_us, qps)
    return {
        "qps": qps,
        "p50_us": found.p50_us,
        "p99_us": found.p99_us,
        "queries": 0,
        "valid": False,
        "simulated": True,
        "utilization": found.utilization,
        "sentence": f"{qps:,.0f} queries per second, simulated from {len(service_us):,} measured calls. No load test was valid: {why}",
    }


STEPS: tuple[tuple[str, Callable[[Subject, Trial, Effort], dict[str, Any]]], ...] = (
    ("build", build),
    ("screen", screen),
    ("latency", isolated),
    ("quality", quality),
)


def side_by_side(subject: Subject, trials: list[Trial], effort: Effort) -> dict[str, Any]:
    """Latencies of several trials in one interleaved run: what ratios are taken from. Trial id -> latencies; under `faster` the first
    trial's throughput a core over each other's."""
    with ExitStack() as opened:
        scorers = {trial.id: opened.enter_context(_opened(subject, trial)) for trial in trials}
        most = max(trial.recipe.threads for trial in trials)
        found = latency.quieted(latency.measure(scorers, subject.traffic, effort.compare, rounds=5, threads=most))
    first = found[trials[0].id]
    service = np.percentile(first.us, (np.arange(SERVICE_POINTS) + 0.5) / SERVICE_POINTS * 100)  # each stands for as many calls
    return {
        "latencies": {trial.id: latencies(found[trial.id], trial.recipe.threads) for trial in trials},
        "faster": {trial.id: _faster(first, trials[0], found[trial.id], trial) for trial in trials[1:]},
        "service_us": [round(float(us), 2) for us in service],
        "versions": first.versions,
        "cores": list(first.cores),
    }


def _faster(first: latency.Latencies, ours: Trial, than: latency.Latencies, theirs: Trial) -> dict[str, float]:
    """How many times more candidates per second a core, with the lowest and highest of the rounds."""
    ratio, a_core = latency.faster(first, than), theirs.recipe.threads / ours.recipe.threads
    return {"value": ratio.value * a_core, "low": ratio.low * a_core, "high": ratio.high * a_core}


def latencies(found: latency.Latencies, threads: int) -> dict[str, Any]:
    """What is kept of the latencies of an engine that computes on `threads` cores."""
    return {
        "p50": found.percentile(50),
        "p99": found.percentile(99),
        "mean": float(np.mean(found.us)),
        "count": len(found.us),
        "curve": [list(point) for point in found.curve()],
        "candidates_per_second_per_core": found.candidates_per_second / threads,
        "note": found.unstable(),
    }


@contextmanager
def _all_cores(subject: Subject, trial: Trial) -> Iterator[Scorer]:
    """The trial's scorer on all cores: for scores, which do not depend on that, and not for times."""
    with Scorer(subject.artifact(trial.id, trial.recipe), Host.here().cores) as scorer:
        yield scorer


@contextmanager
def _opened(subject: Subject, trial: Trial) -> Iterator[Scorer]:
    """The trial's scorer, closed afterwards: engines of other trials do not stay in memory, the baseline's does."""
    if trial.id == BASELINE.id:
        yield subject.baseline
        return
    with Scorer(subject.artifact(trial.id, trial.recipe), trial.recipe.threads) as scorer:
        yield scorer


def _judged(subject: Subject, scores: np.ndarray, whole: bool) -> dict[str, Any]:
    """Metrics of the scores of the first rows beside the original's, and the gate's verdict; TurnedDown by it."""
    rule, rows, n = subject.job.accuracy, subject.rows, len(scores)
    assert rows.labels is not None  # checked before the search
    found = compare(
        rows.labels[:n],
        subject.original[:n],
        scores,
        requests=None if rows.requests is None else rows.requests[:n],
        slices=subject.slices if whole else None,
        confidence=rule.confidence,
        k=rule.k,
    )
    verdict = gate(found, rule.metric, rule.max_drop, rule.drop_type)
    result = msgspec.to_builtins(found) | {"verdict": msgspec.to_builtins(verdict)}
    if verdict.outcome == "rejected" or (whole and verdict.outcome != "accepted"):
        raise TurnedDown(verdict.sentence, result)
    return result


def broken(subject: Subject, trial: Trial, effort: Effort) -> dict[str, Any]:
    """The gate after each step of a recipe that is not exact: `steps`, with the change of the metric and its interval; `sentence` names
    the first after which the gate fails."""
    rule, steps, found = subject.job.accuracy, trial.recipe.steps, []
    tail = tuple(step for step in steps if isinstance(step, FactorRequest))
    for i, step in enumerate(steps):
        if isinstance(step, Tidy | Embeddings | Interactions | FactorRequest):
            continue
        part = msgspec.structs.replace(trial.recipe, steps=(*steps[: i + 1], *tail))
        with Scorer(subject.artifact(f"{trial.id}-to-{i}", part), part.threads) as scorer:
            scores = subject.score(scorer, len(subject.rows))
        try:
            judged = _judged(subject, scores, whole=False)
        except TurnedDown as turned_down:
            judged = turned_down.found
        said = judged["verdict"]
        found.append({"step": type(step).__name__, "outcome": said["outcome"], "sentence": said["sentence"]})
        if said["outcome"] != "accepted":
            break
    last = found[-1]
    before = f"; after {found[-2]['step']}, {found[-2]['sentence']}" if len(found) > 1 else ""
    return {"steps": found, "sentence": f"step {last['step']} broke it: {last['sentence']}{before}", "metric": rule.metric}


def resident(artifact: Path) -> dict[str, Any]:
    """What a fresh process grows by when it opens the artifact and scores; nothing where the system does not say."""
    try:
        return {"resident_bytes": memory.resident(artifact).scored.pss}
    except MeasureError:
        return {}
