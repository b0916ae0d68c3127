"""optimize: validate, capture, try, compare, decide. Each finished step is a line of the journal, and nothing is done that has a line.

So a resumed run, and a run of a finished job again, are the same code: they find their steps in the journal and go on after them.
"""

from __future__ import annotations

import datetime
import functools
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from os import environ
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from burnish.errors import BurnishError, JobError, MeasureError, ObjectiveNotMet
from burnish.host import Host
from burnish.job import Job
from burnish.place import placement
from burnish.place.capacity import nearest_p99
from burnish.place.plan import capacity, capacity_sentence
from burnish.runtime.artifact import Artifact
from burnish.search import decide, journal, mlflow, output, steps
from burnish.search.journal import Journal, Line, Lines
from burnish.search.space import BASELINE, on_more_cores, refined, shrinks, space
from burnish.search.steps import Effort, TurnedDown
from burnish.search.subject import Subject
from burnish.search.summary import summary
from burnish.search.trial import Measurement, Plan, Rejected, Trial
from burnish.train import Progress as TrainingProgress

SHRINKING = 3  # times what the trials before the first that shrinks the model took at most
DEATHS = 3  # of the process in one step, until the step is given up
NEEDS = ("torch", "polars", "scipy", "mlperf_loadgen", "altair")  # whatever the job; backends say for themselves what they lack


class Progress(msgspec.Struct, frozen=True):
    """What a search is doing: `done` of 1, in words; a trial that just came to its verdict; and an estimate of the seconds left."""

    done: float
    text: str
    trial: Trial | None = None
    left: float | None = None


class Result(msgspec.Struct, frozen=True):
    """What a search found. `reused`: everything was in the journal, nothing was measured."""

    plan: Plan
    trials: tuple[Trial, ...]
    artifact: Artifact
    reused: bool


def optimize(
    job: str | Path | Job, out: str | Path, *, resume: bool = False, progress: Callable[[Progress], object] | None = None
) -> Result:
    """Find the cheapest way to serve the job's model within its objective; `out` gets artifact/, report.html, report.json, trials.jsonl.

    `resume` goes on where a run was stopped. A finished run of an unchanged job is not repeated: its decision comes from the journal.
    JobError when the job, its rows or `out` cannot be used, before anything is written; CaptureError when the model cannot be captured;
    ObjectiveNotMet, after the report was written, when nothing meets the objective.
    """
    from burnish.capture import load_model

    began = time.monotonic()
    for package in NEEDS:
        if find_spec(package) is None:
            raise JobError(f"optimize needs {package}, which is not installed. Install all it needs: pip install 'burnish[optimize]'")
    mlflow.check()
    out = Path(out)
    output.check(out)
    job = job if isinstance(job, Job) else Job.read(job)
    placement.check(job)
    trials = space(job.search, job.accuracy)
    model = load_model(job.model.load, job.base)
    subject = Subject(job, out / "work", model)
    subject.check()
    marks = output.fingerprint(job, model)
    lines = journal.read(out / journal.NAME)
    if len(lines) > 1:
        journal.check_fingerprint(out / journal.NAME, lines[0], marks)
        if not resume and not any(line.step == "decided" for line in lines):
            raise JobError(f"{out} holds a search that was stopped. Go on with --resume, or delete that directory")
    subject.work.mkdir(parents=True, exist_ok=True)
    with Journal.open(out / journal.NAME, marks) as kept:
        search = Search(subject, kept, trials, progress or (lambda _: None), began)
        try:
            return search.run(out)
        finally:
            subject.close()
            if len(journal.read(kept.path)) == 1:
                output.discard(out)


class Search:
    """One run over one journal."""

    def __init__(self, subject: Subject, kept: Lines, space: tuple[Trial, ...], tell: Callable[[Progress], object], began: float) -> None:
        self.subject, self.job, self.journal, self.space, self.tell = subject, subject.job, kept, space, tell
        self.budget = self.job.search.budget_minutes * 60
        self.effort = Effort.within(self.budget)
        self.began = began - kept.seconds
        self.lines_before = len(kept.lines)
        self.command = ["burnish", "optimize", self.job.path, "--out", str(subject.work.parent)]
        self.extra: dict[str, Any] = {}  # of report.json

    @property
    def seconds(self) -> float:
        """Spent so far, earlier runs included."""
        return time.monotonic() - self.began

    def run(self, out: Path) -> Result:
        self.baseline()
        for trial in self.space:
            self.attempt(trial)
        while (another := refined(self.trials(), self.job.accuracy)) is not None and self.attempt(another):
            pass
        if not decide.feasible(self.trials()):
            more = on_more_cores(self.trials(), Host.here().cores)
            for trial in more:
                self.attempt(trial)
        finalists = self._load(self._wanted)
        return self._chosen(out, decide.cheapest(finalists, self.job)) if finalists else self._nothing(out)

    def baseline(self) -> None:
        self._say(0.0, "capture, and score the validation rows with the model as it came")
        for name, step in (("build", steps.build), ("quality", steps.original), ("latency", steps.isolated)):
            line = self._step(name, BASELINE, step)
            if name == "quality" and line.rejected is not None:
                raise JobError(f"the validation rows cannot tell even the original from itself: {line.rejected}")

    def attempt(self, trial: Trial) -> bool:
        """Whether there was time to try it."""
        if trial not in self.space:
            self.space += (trial,)
        before = len(self.journal.lines)
        for i, (name, step) in enumerate((*steps.STEPS[:-1], ("worth", self._worth), steps.STEPS[-1])):
            if self.journal.find(name, trial.id) is None:
                if i == 0 and self._too_late(trial):
                    return False
                self._say(self._done(trial, i), f"{decide.named(trial)}: {name}")
                self.subject.trained = functools.partial(self._trained, self._done(trial, i), decide.named(trial))
            if self._step(name, trial, step).rejected is not None:
                break
        if len(self.journal.lines) > before:
            self._say(self._done(trial, len(steps.STEPS)), "", self._state(trial))
        return True

    def _worth(self, subject: Subject, trial: Trial, effort: Effort) -> dict[str, Any]:
        """Turn down a trial that can be neither chosen nor compared with, before all validation rows are scored for it."""
        better = decide.better(self._state(trial), self.trials())
        if better is not None:
            raise TurnedDown(better)
        return {}

    def _trained(self, done: float, trial: str, found: TrainingProgress) -> None:
        lost = f"held-out loss {found.held_out:.3g}, {found.start:.3g} before"
        self._say(done, f"{trial}: {found.name}, step {found.step:,} of {found.steps:,}, {lost}")

    def _say(self, done: float, text: str, trial: Trial | None = None) -> None:
        """Tell what is done, and how long the rest will take by what was measured so far: no longer than the budget allows."""
        waiting = [t for t in self.space if self.journal.find("build", t.id) is None]
        need = sum(self._expected(t) for t in waiting) + self._last
        self.tell(Progress(done, text, trial, min(need, max(self.budget - self.seconds, 0.0))))

    def _wanted(self, passed: list[Trial]) -> list[Trial]:
        """Of those that passed, those to be loaded: the fastest, the best peers, and the baseline beside them."""
        baseline = [t for t in passed if t.id == BASELINE.id]
        return passed[: decide.FINALISTS] + decide.peers(passed)[: decide.PEERS] + baseline

    def _load(self, wanted: Callable[[list[Trial]], list[Trial]]) -> list[Trial]:
        """The wanted ones of the feasible trials that were loaded and kept the objective; where one did not, the next one is wanted."""
        while True:
            passed = decide.feasible(self.trials())
            new = [t for t in wanted(passed) if self.journal.find("load", t.id) is None]
            if not new:
                return [t for t in passed if t.measured.load]
            # what trials took beyond their share comes out of the load tests, so that the budget is kept
            shares = {t.id: 2 if t.id == BASELINE.id else 1 for t in new}  # the slower an engine, the longer until p99 has enough queries
            left = (self.budget - self.seconds - (2 + decide.PEERS) * self.effort.compare) / sum(shares.values())
            share = min(self.effort.load, left)
            for trial in new:
                effort = self.effort.with_load(share * shares[trial.id])
                self._say(0.9, f"{decide.named(trial)}: the highest load that keeps p99 {self.job.objective.p99_ms:g} ms")
                self._step("load", trial, lambda subject, t, _, effort=effort: steps.highest_load(subject, t, effort))

    def _chosen(self, out: Path, chosen: Trial) -> Result:
        states = self.trials()
        baseline = states[0]
        peers = decide.peers(decide.feasible(states))[: decide.PEERS]
        others = {t.id: t for t in (*peers, baseline) if t.id != chosen.id}
        self._say(0.95, "the chosen one, the baseline and the best other tools, side by side")
        name = f"compare {' '.join([chosen.id, *sorted(others)])}"
        compared = self._step(name, None, lambda *_: steps.side_by_side(self.subject, [chosen, *others.values()], self.effort)).result
        states = tuple(_with_latency(t, compared["latencies"].get(t.id)) for t in states)
        chosen, baseline = (next(t for t in states if t.id == name) for name in (chosen.id, BASELINE.id))
        peer = decide.fastest(peers, compared["latencies"])
        ratios = decide.ratios(chosen, peer, compared, baseline, self.job)
        needs = self._capacity(chosen, compared["service_us"])
        plan = Plan(chosen, decide.sentences(self.job, states, chosen, peer, ratios, needs), ratios, needs)
        self._say(0.98, "the artifact and the report")
        artifact = self._keep(out / "artifact", chosen)
        grown = self._step(f"memory {chosen.id}", None, lambda *_: steps.resident(artifact.path)).result
        plan = msgspec.structs.replace(plan, chosen=_with_memory(chosen, grown))
        states = tuple(plan.chosen if t.id == chosen.id else t for t in states)
        reused = self._finish(out, states, plan, compared)
        return Result(plan, states, artifact, reused)

    def _nothing(self, out: Path) -> Result:
        states = self.trials()
        sentence = ". ".join((decide.nearest(states, self.job), *self._nearest_plan(decide.closest(states))))
        self._finish(out, states, None, {}, sentence)
        raise ObjectiveNotMet(sentence)

    def _nearest_plan(self, closest: Trial | None) -> tuple[str, ...]:
        """What the load would take at the least p99 that can be promised."""
        if closest is None or closest.measured.latency_us is None:
            return ()
        shares, us = np.transpose(closest.measured.latency_us["curve"])
        service_us = np.interp(np.linspace(0, 100, steps.SERVICE_POINTS), shares, us)
        try:
            plan = self._capacity(closest, service_us.tolist(), float(f"{1.05 * nearest_p99(service_us) / 1000:.2g}"))
        except MeasureError:  # too few calls, or too short for the clock
            return ()
        return (f"The nearest plan: {capacity_sentence(plan).rstrip('.')}",)

    def _capacity(self, chosen: Trial, service_us: list[float], p99_ms: float | None = None) -> dict[str, Any]:
        """Of the objective, or of another p99."""
        here = next((host for host in self.job.hosts if host.name == self.subject.host), None)
        objective, load = self.job.objective, chosen.measured.load or {}
        return capacity(
            service_us,
            None if load.get("simulated") else load.get("qps"),
            objective.p99_ms,
            qps=objective.qps,
            p99_ms=p99_ms or objective.p99_ms,
            candidates=self.job.candidates,
            threads=chosen.recipe.threads,
            cores=(here.cores if here else None) or Host.here().cores,
            price_per_hour=here.price_per_hour if here else None,
            reserve=self.job.reserve,
            missed_qps=load.get("missed_qps"),
            calls=chosen.measured.latency_us["count"] if chosen.measured.latency_us else None,
        )

    def _keep(self, to: Path, chosen: Trial) -> Artifact:
        """The chosen trial's artifact at its place, with what was measured of it."""
        line = self.journal.find("kept")
        if line is not None and line.result["trial"] == chosen.id and (to / "manifest.json").exists():
            return Artifact.read(to)
        artifact = self.subject.artifact(chosen.id, chosen.recipe)
        artifact.measured(**msgspec.to_builtins(chosen.measured), objective=msgspec.to_builtins(self.job.objective))
        artifact.save(to)
        self.journal.add(Line("kept", result={"trial": chosen.id}))
        return artifact

    def _finish(self, out: Path, states: tuple[Trial, ...], plan: Plan | None, compared: dict[str, Any], sentence: str = "") -> bool:
        """Write the report; True when nothing was done in this run that was not in the journal."""
        from burnish.report import page

        done = self.journal.find("decided")
        reused = done is not None and len(self.journal.lines) == self.lines_before
        if not reused:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            done = self.journal.add(Line("decided", result={"created": now, "seconds": self.seconds, "budget": self.budget}))
        assert done is not None
        built = self.journal.find("build", BASELINE.id)
        assert built is not None
        report = summary(self.subject, states, plan, compared, sentence, done.result, built.result, self.command)
        report |= self.extra
        if output.write_json(out / output.REPORT, report) or not (out / page.NAME).exists():
            page.write(report, out)
        if not reused:
            mlflow.track(report, out)
        for path in self.subject.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        self._attempts.unlink(missing_ok=True)
        return reused

    def trials(self) -> tuple[Trial, ...]:
        """All trials as the journal has them, the baseline first."""
        return tuple(self._state(trial) for trial in (BASELINE, *self.space))

    def _state(self, trial: Trial) -> Trial:
        lines = [line for line in self.journal.lines if line.trial == trial.id]
        found = {line.step: line.result for line in lines if line.result}
        rejected = next((Rejected(line.step, line.rejected) for line in lines if line.rejected is not None), None)
        if not lines:
            rejected = Rejected("budget", f"not tried: the budget of {self.job.search.budget_minutes:g} minutes was used up")
        built, latency, quality = found.get("build", {}), found.get("latency"), found.get("quality") or found.get("screen")
        return msgspec.structs.replace(
            trial,
            measured=Measurement(
                weight_bytes=built.get("weight_bytes"),
                arena_bytes=built.get("arena_bytes"),
                quality=quality,
                latency_us=latency,
                candidates_per_second_per_core=latency["candidates_per_second_per_core"] if latency else None,
                load=found.get("load"),
                decided=built.get("decided"),
                layers=built.get("layers"),
                unsettled=built.get("unsettled"),
            ),
            rejected=rejected,
            seconds=sum(line.seconds for line in lines),
            verdict=quality["verdict"]["sentence"] if quality else "",
        )

    def _step(self, name: str, trial: Trial | None, call: Callable[..., dict[str, Any]]) -> Line:
        """The journal's line of a step, after doing it when there is none."""
        done = self.journal.find(name, trial.id if trial else "")
        if done is not None:
            return done
        began, rejected = time.monotonic(), None
        try:
            self._begin(name, trial)
            result = call(self.subject, trial, self.effort)
        except TurnedDown as verdict:
            result, rejected = verdict.found, str(verdict)
        except JobError:
            raise
        except BurnishError as error:
            if trial is None or (trial.id == BASELINE.id and name != "load"):
                raise
            result, rejected = {}, str(error)
        except Exception as error:  # an engine is another's code: one that falls over must not cost what the others have shown
            if trial is None or trial.id == BASELINE.id:
                raise
            if environ.get("BURNISH_DEBUG"):
                traceback.print_exc(file=sys.stderr)
            result, rejected = {}, f"failed: {type(error).__name__}: {error}".splitlines()[0]
        return self.journal.add(Line(name, trial.id if trial else "", result, time.monotonic() - began, rejected))

    def _begin(self, name: str, trial: Trial | None) -> None:
        """Note that a step begins. One that the process did not outlive three times is a crash of the engine, and ends the trial: else
        no resumed run would ever get past it."""
        if trial is None or trial.id == BASELINE.id:
            return
        line = f"{trial.id} {name}"
        if self._attempts.exists() and self._attempts.read_text().splitlines().count(line) >= DEATHS:
            raise TurnedDown(f"the process ended {DEATHS} times during this step: the engine crashes, or needs more memory than there is")
        with self._attempts.open("a") as file:
            file.write(f"{line}\n")

    @property
    def _attempts(self) -> Path:
        return self.subject.work / "attempts"

    def _too_late(self, trial: Trial) -> bool:
        """Whether the trial would not end within the budget, with what must follow it; or this budget was decided on already."""
        decided = self.journal.find("decided")
        if decided is not None and decided.result["budget"] >= self.budget:
            return True
        return self.seconds + self._expected(trial) + self._last > self.budget

    @property
    def _last(self) -> float:
        """Seconds of the load tests and the comparison that follow the trials."""
        return (decide.FINALISTS + decide.PEERS + 2) * self.effort.load + (2 + decide.PEERS) * self.effort.compare

    def _expected(self, trial: Trial) -> float:
        """Seconds that a trial will take: the median of those before it; one that shrinks the model, as long as the longest of those, or
        a few times as long as calibrating for int8 took, where it is the first."""
        spent = {t.id: sum(line.seconds for line in self.journal.lines if line.trial == t.id) for t in self.space}
        tried = [t for t in self.space if spent[t.id]]
        if not tried:
            return 0.0
        usual, alike = statistics.median(spent[t.id] for t in tried), [spent[t.id] for t in tried if shrinks(t.recipe)]
        if not shrinks(trial.recipe):
            return usual
        return max(alike) if alike else SHRINKING * max(spent[t.id] for t in tried)

    def _done(self, trial: Trial, step: int) -> float:
        per_trial = 0.8 / len(self.space)
        return 0.1 + per_trial * (self.space.index(trial) + step / len(steps.STEPS))


def _with_memory(trial: Trial, grown: dict[str, Any]) -> Trial:
    return msgspec.structs.replace(trial, measured=msgspec.structs.replace(trial.measured, **grown))


def _with_latency(trial: Trial, found: dict[str, Any] | None) -> Trial:
    """The trial with the latencies of the last run in the place of its first ones, where it took part in that."""
    if found is None:
        return trial
    latency = (trial.measured.latency_us or {}) | found
    rate = found["candidates_per_second_per_core"]
    return msgspec.structs.replace(
        trial, measured=msgspec.structs.replace(trial.measured, latency_us=latency, candidates_per_second_per_core=rate)
    )
