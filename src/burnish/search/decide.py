"""The decision, as pure functions of trials: which are feasible, which is cheapest, how it compares, and in which words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.job import Job
from burnish.place.plan import capacity_sentence
from burnish.search.trial import Trial

ALIKE = 0.05  # loads that differ by less are not told apart by runs of a few seconds
AS_FAST = 0.02  # the same of speeds measured in turns
FAR = 1.5  # times faster than a trial, one that passed makes it useless
FINALISTS = 2  # of ours that are loaded; the fastest alone need not carry the most load
PEERS = 2  # of other tools' that are loaded and compared with side by side: their order beside the baseline is not yet sure


def feasible(trials: Sequence[Trial]) -> list[Trial]:
    """Those that passed all that was measured of them, the fastest beside the baseline first."""
    passed = [trial for trial in trials if trial.rejected is None and trial.measured.quality and trial.measured.latency_us]
    return sorted(passed, key=lambda trial: (-_speedup(trial), trial.id))


def cheapest(finalists: Sequence[Trial], job: Job) -> Trial:
    """The one that carries most at the objective; of those whose load is not told apart the fastest beside the baseline, which is measured
    more closely; and of those that are as fast, the one with the fewest bytes, so that noise does not decide.

    Where one of the loads had to be simulated, loads do not compare, and speed beside the baseline takes their place.
    """
    simulated = any(_simulated(trial) for trial in finalists)
    carries = {trial.id: _speedup(trial) if simulated else at_objective(trial, job) for trial in finalists}
    most = max(carries.values())
    alike = [trial for trial in finalists if carries[trial.id] >= (1 - ALIKE) * most]
    fastest = max(_speedup(trial) for trial in alike)
    as_fast = [trial for trial in alike if _speedup(trial) >= (1 - AS_FAST) * fastest]
    return min(as_fast, key=lambda trial: (trial.measured.weight_bytes or 0, -carries[trial.id], trial.id))


def better(trial: Trial, trials: Sequence[Trial]) -> str | None:
    """Why a trial whose latency is known need not be gated: one that passed is so much faster that no noise turns it round, and no larger,
    and where it is another tool's, enough of those are faster. None where it may be chosen or compared with."""
    rivals = [t for t in feasible(trials) if t.id != trial.id and _speedup(t) > FAR * _speedup(trial)]
    smaller = [t for t in rivals if (t.measured.weight_bytes or 0) <= (trial.measured.weight_bytes or 0)]
    if not smaller or (peers([trial]) and len(peers(rivals)) < PEERS):
        return None
    by = smaller[0]
    return f"{named(by)}, which passed, is {_speedup(by) / _speedup(trial):.3g} times faster and no larger, so all rows were not scored"


def at_objective(trial: Trial, job: Job) -> float:
    """Candidates a second per core at the highest load that kept the objective; 0 where none did."""
    load = trial.measured.load
    return load["qps"] * job.candidates / trial.recipe.threads if load else 0.0


def _speedup(trial: Trial) -> float:
    """Candidates a second over the baseline's, of one run of both: what is comparable between trials on a machine that is not quiet."""
    return trial.measured.latency_us["speedup"] / trial.recipe.threads if trial.measured.latency_us else 0.0


def peers(trials: Sequence[Trial]) -> list[Trial]:
    """Other tools' engines: not ours, and not the model as it came."""
    return [trial for trial in trials if trial.recipe.backend not in ("native", "eager")]


def fastest(trials: Sequence[Trial], latencies: Mapping[str, Any]) -> Trial | None:
    """The one with the most candidates a second and core in one interleaved run; None of none."""
    return max(trials, key=lambda trial: latencies[trial.id]["candidates_per_second_per_core"], default=None)


def closest(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the least p99 of those that may have kept accuracy; None where none was measured."""
    kept = [t for t in trials if t.measured.latency_us and not (t.rejected and t.rejected.stage in ("screen", "quality"))]
    return min(kept, key=lambda t: t.measured.latency_us["p99"] if t.measured.latency_us else 0.0, default=None)


def nearest(trials: Sequence[Trial], job: Job) -> str:
    """Why nothing meets the objective, and the nearest that can be met."""
    objective = job.objective
    asked = f"nothing meets p99 {objective.p99_ms:g} ms at {job.candidates} candidates within the accuracy that must be kept"
    best = closest(trials)
    if best is None:
        return f"{asked}; no recipe could be built and measured. The report has the reason of each"
    assert best.measured.latency_us
    p99_ms = best.measured.latency_us["p99"] / 1000
    if p99_ms <= objective.p99_ms:
        reason = best.rejected.reason if best.rejected else "it was not tried under load"
        return f"{asked}: {named(best)} comes nearest with p99 {p99_ms:.3g} ms for one call alone, but under load {reason}"
    return f"{asked}: {named(best)} comes nearest with p99 {p99_ms:.3g} ms. Allow that, or give fewer candidates a request"


def ratios(chosen: Trial, peer: Trial | None, compared: dict[str, Any], baseline: Trial, job: Job) -> dict[str, Any]:
    """How many times more candidates per second, from one interleaved run; and at the objective, from the load tests."""
    told: dict[str, Any] = {"best_peer": peer.id if peer else None}
    for name, other in (("baseline", baseline), ("best_peer", peer)):
        faster = compared["faster"].get(other.id) if other else None
        own = other is not None and other.id == chosen.id
        told[f"throughput_vs_{name}"] = 1.0 if own else faster["value"] if faster else None
        told[f"throughput_vs_{name}_interval"] = [faster["low"], faster["high"]] if faster else None
        ours, theirs = at_objective(chosen, job), at_objective(other, job) if other else 0.0
        alike = other is not None and _simulated(chosen) == _simulated(other)
        told[f"at_objective_vs_{name}"] = ours / theirs if ours and theirs and alike else None
    return told


def _simulated(trial: Trial) -> bool:
    return bool(trial.measured.load and trial.measured.load["simulated"])


def sentences(
    job: Job, trials: Sequence[Trial], chosen: Trial, peer: Trial | None, told: dict[str, Any], capacity: dict[str, Any]
) -> tuple[str, str, str]:
    """The plan in three sentences."""
    tried = any(trial.seconds for trial in peers(trials))
    how_much = _why_nothing(trials) if chosen.recipe.backend == "eager" else _how_much(chosen, peer, told, tried)
    return _what(job, chosen), how_much, capacity_sentence(capacity)


def _what(job: Job, chosen: Trial) -> str:
    measured, objective, rule = chosen.measured, job.objective, job.accuracy
    assert measured.quality and measured.latency_us
    metric, latency = measured.quality["metrics"][rule.metric], measured.latency_us
    if rule.drop_type == "relative":
        change = f"{metric['relative']:+.4%} [{metric['relative_low']:+.4%}, {metric['relative_high']:+.4%}]"
        allowed = f"{rule.max_drop:.3%}"
    else:
        change = f"{metric['delta']:+.6f} [{metric['low']:+.6f}, {metric['high']:+.6f}]"
        allowed = f"{rule.max_drop:g}"
    name = {"auc": "AUC", "gauc": "GAUC", "ndcg": f"NDCG@{rule.k}", "mrr": "MRR", "ece": "ECE"}.get(
        rule.metric, rule.metric.replace("_", "-")
    )
    return (
        f"Chosen: {named(chosen)}, {threads(chosen)}: {name} changes by {change} on {measured.quality['rows']:,} rows "
        f"({allowed} is allowed), and one call of {job.candidates} candidates takes {latency['p50'] / 1000:.3g} ms at p50, "
        f"{latency['p99'] / 1000:.3g} ms at p99 ({objective.p99_ms:g} ms is allowed)."
    )


def _why_nothing(trials: Sequence[Trial]) -> str:
    """Why the model as it came was chosen, with what kept the fastest from it."""
    faster = [t for t in trials if t.rejected and t.rejected.stage in ("screen", "quality") and _speedup(t) > 1]
    near = max(faster, key=_speedup, default=None)
    why = f": {named(near)} is {_speedup(near):.3g} times faster, and {near.rejected.reason}" if near and near.rejected else ""
    return f"Nothing that was tried is cheaper than the model as it came and keeps its accuracy{why}."


def _how_much(chosen: Trial, peer: Trial | None, told: dict[str, Any], tried: bool) -> str:
    """`tried`: whether any other tool was."""
    others = [("the model as it came", "baseline")]
    if peer is not None and peer.id != chosen.id:
        others.append((f"the best other tool ({named(peer)})", "best_peer"))
    faster = " and ".join(f"{_times(told[f'throughput_vs_{key}'])} {who}" for who, key in others)
    cheap = [told[f"at_objective_vs_{key}"] for _, key in others]
    cheaper = f"; at the objective it is {' and '.join(f'{times:.3g}' for times in cheap)} times cheaper" if all(cheap) else ""
    alone = "; no other tool passed" if peer is None and tried else ""
    return f"It is {faster}, side by side on one core{cheaper}{alone}."


def _times(ratio: float) -> str:
    return f"{ratio:.3g} times faster than" if ratio > 1 else f"{ratio:.3g} times as fast as"


def named(trial: Trial) -> str:
    """How a person is told of a trial."""
    cores = f" with {trial.recipe.threads} cores" if trial.recipe.threads > 1 else ""
    return f"{trial.recipe.name} on {trial.recipe.backend}{cores}"


def threads(trial: Trial) -> str:
    return "one core" if trial.recipe.threads == 1 else f"{trial.recipe.threads} cores"
