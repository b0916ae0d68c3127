"""What the choice of `burnish optimize` costs over the best of an exhaustive sweep, and how long each took.

Six jobs: three rankers trained on MovieLens-100K, each under a strict and a loose objective. The sweep builds, gates and measures every
recipe of every backend that the search knows, those that it leaves out too, and how far the model is shrunk in eight steps; nothing is
rejected early and nothing is bounded by a budget. Then the choice of the search and the fastest of the sweep that passed run side by side
in one interleaved run: regret is how much faster the best of them is, 0 where that is the choice.

    python benchmarks/regret.py             all six, into docs/decision.md
    python benchmarks/regret.py --short     one, printed
    python benchmarks/regret.py --study     how to look for the expected loss: fixed, refined, or by Optuna's TPE
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

import burnish
from burnish.capture import load_model
from burnish.job import Job
from burnish.passes.evidence import macs
from burnish.recipe import RECIPES, LowRank, Prune, recipe
from burnish.search import decide, space, steps
from burnish.search.journal import Lines
from burnish.search.loop import Search
from burnish.search.steps import Effort
from burnish.search.subject import Subject
from burnish.search.trial import Rejected, Trial
from models import ROOT, make_movielens
from pages import footer

PAGE = ROOT / "docs" / "decision.md"
BEGIN, END = "<!-- regret: python benchmarks/regret.py -->", "<!-- /regret -->"
MODELS = ("dcn", "deepfm", "finalmlp")
OBJECTIVES = {"strict": (0.0005, 10, 128), "loose": (0.005, 2, 16)}  # allowed relative drop of AUC, p99 in ms, candidates
SCALES = (0.25, 0.5, 0.71, 1.0, 1.4, 2.0, 2.8, 4.0)  # times the expected loss that a search begins with
BUDGET = 1.0  # minutes of a search
FINAL, FASTEST = 4.0, 3  # seconds an engine of the last run, and how many of the sweep take part


@dataclass(frozen=True)
class Row:
    """One job: what the search chose, the best of the sweep, and what the difference is."""

    job: str
    chosen: str
    best: str
    regret: float
    low: float
    high: float
    search_seconds: float
    sweep_seconds: float
    swept: int
    passed: int


class Sweep(Search):
    """Every trial to its end."""

    def _worth(self, subject: Subject, trial: Trial, effort: Effort) -> dict:
        return {}

    def _too_late(self, trial: Trial) -> bool:
        return False

    def each(self) -> list[Trial]:
        self.baseline()
        for trial in self.space:
            self.attempt(trial)
        return self._load(lambda passed: passed)


def everything(job: Job) -> tuple[Trial, ...]:
    """All recipes that do not train on all backends, and those that shrink the model by each of SCALES."""
    known = {trial.id: trial for trial in space.space(job.search, job.accuracy)}
    for backend in dict.fromkeys(backend for backend, _ in space.SPACE):
        for name in RECIPES:
            made = recipe(name, backend)
            if name not in ("original", "int8-naive") and not made.trains and (backend == "native" or not space.shrinks(made)):
                known.setdefault(f"{backend}-{name}", Trial(f"{backend}-{name}", space.spending(made, job.accuracy.max_drop)))
    for trial in list(known.values()):
        if space.shrinks(trial.recipe):
            for scale in SCALES:
                known.setdefault(f"{trial.id}-by-{scale:g}", _scaled(trial, scale))
    return tuple(known.values())


def _scaled(trial: Trial, scale: float) -> Trial:
    changed = (msgspec.structs.replace(s, loss=s.loss * scale) if isinstance(s, Prune | LowRank) else s for s in trial.recipe.steps)
    made = msgspec.structs.replace(trial.recipe, steps=tuple(changed), name=f"{trial.recipe.name} by {scale:g}")
    return Trial(f"{trial.id}-by-{scale:g}", made)


def job_of(model: str, objective: str) -> Job:
    """A job on MovieLens-100K."""
    drop, p99_ms, candidates = OBJECTIVES[objective]
    job = Job.read(ROOT / "benchmarks" / "movielens" / "job.toml")
    return msgspec.structs.replace(
        job,
        title=f"{model}, {objective}",
        model=msgspec.structs.replace(job.model, load=f"{ROOT}/benchmarks/regret_models.py:{model}"),
        objective=msgspec.structs.replace(job.objective, p99_ms=p99_ms, candidates=candidates),
        accuracy=msgspec.structs.replace(job.accuracy, max_drop=drop),
        search=msgspec.structs.replace(job.search, budget_minutes=BUDGET),
    )


def measure(job: Job, effort: Effort, only: tuple[str, ...] | None = None) -> Row:
    """Search, sweep, and the last run of both; `only` keeps those trials of the sweep whose backend is named."""
    folder = Path(tempfile.mkdtemp(prefix="burnish-regret-"))
    began = time.monotonic()
    result = burnish.optimize(job, folder / "search")
    searched = time.monotonic() - began
    subject = Subject(job, folder / "work", load_model(job.model.load, job.base))
    subject.work.mkdir()
    began = time.monotonic()
    trials = tuple(t for t in everything(job) if only is None or t.recipe.backend in only)
    sweep = Sweep(subject, Lines([]), trials, lambda step: print(f"  {step.text}", flush=True) if step.text else None, began)
    sweep.effort = effort
    held = sweep.each()
    swept = time.monotonic() - began
    chosen = msgspec.structs.replace(result.plan.chosen, id="the choice")
    fastest = sorted(held, key=lambda t: -decide.at_objective(t, job))[:FASTEST]
    rates = steps.side_by_side(subject, [chosen, *fastest], msgspec.structs.replace(effort, compare=FINAL))
    slower = {t.id: 1 / rates["faster"][t.id]["value"] - 1 for t in fastest}
    best = max(fastest, key=lambda t: slower[t.id])
    between = rates["faster"][best.id]
    subject.close()
    shutil.rmtree(folder)
    regret = max(0.0, slower[best.id])
    low, high = (max(0.0, 1 / between[end] - 1) for end in ("high", "low"))
    return Row(job.title, decide.named(chosen), decide.named(best), regret, low, high, searched, swept, len(trials), len(held))


def table(rows: list[Row]) -> list[str]:
    told = [
        "| job | chosen | best of the sweep | regret (rounds) | search | sweep | share | tried (kept the objective) |",
        "|" + "---|" * 8,
    ]
    for row in rows:
        told.append(
            f"| {row.job} | {row.chosen} | {row.best} | {row.regret:.1%} ({row.low:.1%} to {row.high:.1%}) | {row.search_seconds:.0f} s "
            f"| {row.sweep_seconds:.0f} s | {row.search_seconds / row.sweep_seconds:.0%} | {row.swept} ({row.passed}) |"
        )
    return told


def study(trials: int = 20) -> None:
    """Products a candidate, of the best that passed the gate, by how the expected losses of Prune and LowRank are looked for."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for model in MODELS:
        job = job_of(model, "strict")
        subject = Subject(job, Path(tempfile.mkdtemp(prefix="burnish-study-")), load_model(job.model.load, job.base))
        first = next(t for t in space.space(job.search, job.accuracy) if t.id == "native-lean")
        began, spent = macs(subject.graph), []

        def gated(trial: Trial, subject: Subject = subject, spent: list = spent) -> tuple[float, float, Trial]:
            """Products, the loss at the interval's bad end in parts of what is allowed, and the trial as a search knows it."""
            start = time.monotonic()
            try:
                quality, rejected = steps.quality(subject, trial, Effort()), None
            except steps.TurnedDown as verdict:
                quality, rejected = verdict.found, Rejected("quality", str(verdict))
            changed, _ = subject.apply(subject.graph, trial.recipe, subject.calibration)
            spent.append(time.monotonic() - start)
            measured = msgspec.structs.replace(trial.measured, quality=quality)
            known = msgspec.structs.replace(trial, measured=measured, rejected=rejected)
            return macs(changed), quality["verdict"]["worst"] / subject.job.accuracy.max_drop, known

        found = {"fixed": [gated(first)]}
        found["refined"] = list(found["fixed"])
        while (another := space.refined([known for *_, known in found["refined"]], job.accuracy)) is not None:
            found["refined"].append(gated(another))
        found["TPE"] = []
        losses = [s.loss for s in first.recipe.steps if isinstance(s, Prune | LowRank)]
        sampler = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
        for i in range(trials):
            asked = sampler.ask()
            scaled = iter(loss * asked.suggest_float(name, 0.1, 10, log=True) for name, loss in zip(("prune", "rank"), losses))
            changed = tuple(
                msgspec.structs.replace(s, loss=next(scaled)) if isinstance(s, Prune | LowRank) else s for s in first.recipe.steps
            )
            cost, used, known = gated(Trial(f"tpe-{i}", msgspec.structs.replace(first.recipe, steps=changed)))
            found["TPE"].append((cost, used, known))
            sampler.tell(asked, cost / began if known.rejected is None else 1 + used)
        print(f"{model}: {began:,.0f} products, {statistics.median(spent):.0f} s a trial")
        for name, tried in found.items():
            best = [min((cost for cost, _, known in tried[:n] if known.rejected is None), default=began) for n in range(len(tried) + 1)]
            parts = [f"{best[n] / began:.3f} after {n}" for n in sorted({1, 3, 5, 10, len(tried)}) if n <= len(tried)]
            print(f"  {name:8} {len(tried):3} trials: products left {', '.join(parts)}", flush=True)
        subject.close()
        shutil.rmtree(subject.work)


def write(rows: list[Row], command: str) -> None:
    """Put the table between its marks on docs/decision.md."""
    text = PAGE.read_text()
    body = "\n".join([BEGIN, "", *table(rows), "", footer(command), END])
    PAGE.write_text(re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: body, text, flags=re.DOTALL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one job on one backend, printed")
    parser.add_argument("--study", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    make_movielens()
    if options.study:
        study()
    elif options.short:
        print("\n".join(table([measure(job_of("dcn", "loose"), Effort(0.3, 0.5, 1.5), ("native",))])))
    else:
        rows: list[Row] = []
        for model in MODELS:
            for objective in OBJECTIVES:
                rows.append(measure(job_of(model, objective), Effort(1.0, 2.0, 8.0)))
                print("\n".join(table(rows)), flush=True)
                write(rows, "python benchmarks/regret.py")


if __name__ == "__main__":
    main()
