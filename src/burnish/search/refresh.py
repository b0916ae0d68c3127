"""refresh: the decided recipe on a new checkpoint of the same architecture, gated against that checkpoint's own original.

Rankers are trained anew every day, and a search each time would find the same. So the recipe is taken as the last search decided it, with
its widths, ranks and schemes: the shapes are the same, so the program is, and nothing is compiled. Everything with numbers in it is made
anew: calibration, the gate, golden outputs, latency and load. Where the new checkpoint does not pass, the step that broke is named, and the
search goes on from there: the same recipe, told to lose less; and where that does not do either, the whole space.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from burnish.errors import JobError, ObjectiveNotMet
from burnish.job import Job
from burnish.recipe import Recipe
from burnish.report import page
from burnish.runtime.artifact import Artifact
from burnish.search import decide, journal, output, steps
from burnish.search.architecture import difference
from burnish.search.journal import Journal, Lines
from burnish.search.loop import Progress, Result, Search
from burnish.search.space import BASELINE, eased, space
from burnish.search.steps import Effort
from burnish.search.subject import Subject
from burnish.search.trial import Trial

AGAIN = "again-"  # before the id of the trial that was decided
EFFORT = Effort(latency=0.7, compare=1.0, load=6.0)  # a search has measured it more closely, and gates are as close as ever


class Refreshed(msgspec.Struct, frozen=True):
    """`kept`: the decided recipe passed again. `sentence` says so, or which step broke and that a search followed."""

    result: Result
    kept: bool
    sentence: str


def refresh(
    directory: str | Path,
    model: str | Path | None = None,
    out: str | Path | None = None,
    *,
    progress: Callable[[Progress], object] | None = None,
) -> Refreshed:
    """Put what was decided in `directory` (an `optimize --out`) on another checkpoint, into `out`, which by default takes its place.

    `model`: a checkpoint that torch.save wrote of the state dict, or a model as a job file names one; default: the job's own, loaded again.
    `out` is exchanged whole when all is done, so that it is never half of each; a refresh that was killed goes on when it is repeated.

    JobError when there is nothing to refresh, and for another architecture, with what differs; ObjectiveNotMet, after the report was
    written, when neither the decided recipe nor the search after it met the objective.
    """
    from burnish.capture import load_model

    began = time.monotonic()
    directory = Path(directory)
    out = directory if out is None else Path(out)
    report = output.read_report(directory)
    again = _again(directory, report)
    job = _job(report, model)
    output.check(out)
    loaded = load_model(job.model.load, job.base)
    work = out.absolute().with_name(f".{out.absolute().name}.refresh")
    marks = output.fingerprint(job, loaded) | {"the decision": output.digest(msgspec.json.encode(again))}
    if journal.read(work / journal.NAME) and not journal.fits(work / journal.NAME, marks):
        shutil.rmtree(work)  # of another checkpoint, and of no use for this one
    subject = Subject(job, work / "work", loaded)
    subject.check()
    subject.work.mkdir(parents=True, exist_ok=True)
    with Journal.open(work / journal.NAME, marks) as kept:
        search = _Refresh(subject, kept, again, report["model"], progress or (lambda _: None), began)
        search.command = ["burnish", "refresh", str(directory), "--model", job.source, "--out", str(out)]
        search.extra = {"refresh": {"of": str(directory), "kept": True, "sentence": ""}}
        try:
            result = search.run(work)
        except OtherArchitecture:
            shutil.rmtree(work)
            raise
        except ObjectiveNotMet as error:
            if out.exists():  # what is served from there must not go away
                raise ObjectiveNotMet(f"{error}. {out} is left as it was; the report is {work / page.NAME}") from None
            work.rename(out)
            raise
        finally:
            subject.close()
    output.put(work, out)
    artifact = Artifact.read(out / "artifact")
    return Refreshed(msgspec.structs.replace(result, artifact=artifact), search.kept, search.sentence)


class OtherArchitecture(JobError):
    """The new model is not another checkpoint of the one that was decided on."""


def _again(directory: Path, report: dict[str, Any]) -> Trial:
    """The trial that was decided, with all choices that calibration rows made."""
    chosen = report["chosen"]
    if chosen is None:
        raise JobError(
            f"the search in {directory} chose nothing, so there is no recipe to put on another checkpoint. Run `burnish optimize`"
        )
    if chosen["id"] == BASELINE.id:
        raise JobError(
            f"the search in {directory} chose the model as it came, so there is no recipe to put on another. Run `burnish optimize`"
        )
    if "model" not in report or not chosen.get("decided"):
        raise JobError(f"{directory} is of an older burnish, which did not keep what its search decided. Run `burnish optimize` once more")
    recipe = msgspec.convert(chosen["decided"], Recipe)
    return Trial(AGAIN + chosen["id"].removeprefix(AGAIN).removesuffix("-eased"), recipe)


def _job(report: dict[str, Any], model: str | Path | None) -> Job:
    """The job of a finished search, with another model in its place."""
    job = Job.read(report["job"])
    if model is None:
        return job
    text, own = str(model), job.model.load
    if ".py:" in text or Path(text).suffix in (".pt2", ".onnx"):
        load = str(Path(text).absolute())
    elif ".py:" in own:
        load = f"{own.partition('@')[0]}@{Path(text).absolute()}"
    else:
        raise JobError(f"the job's model is {own}, so --model takes another file of that kind; met {text}")
    return msgspec.structs.replace(job, model=msgspec.structs.replace(job.model, load=load))


class _Refresh(Search):
    """A search that begins with what was decided, and ends there if that passes."""

    def __init__(
        self, subject: Subject, kept: Lines, again: Trial, model: dict[str, Any], tell: Callable[[Progress], object], began: float
    ) -> None:
        super().__init__(subject, kept, (again, *space(subject.job.search, subject.job.accuracy)), tell, began)
        self.again, self.model = again, model
        self.kept, self.sentence = False, ""

    def run(self, out: Path) -> Result:
        whole, self.effort = self.effort, EFFORT
        self.baseline()
        self.attempt(self.again)
        loaded = self._load(lambda passed: [t for t in passed if t.id == self.again.id])
        self.kept = bool(loaded)
        if self.kept:
            self.space = (self.again,)
            self.sentence = f"{decide.named(self.again)} passed again on this checkpoint"
            self.extra["refresh"] |= {"sentence": self.sentence}
            return self._chosen(out, loaded[0])
        self.sentence = self._why()
        less, everything = eased(self._state(self.again), self.job.accuracy), self.space
        if less is not None:
            self.tell(Progress(0.1, f"{self.sentence}. It is tried with less to lose"))
            self.space = (self.again, less)
            self.attempt(less)
            loaded = self._load(lambda passed: [t for t in passed if t.id == less.id])
            if loaded:
                self.sentence += ". It passed with less to lose"
                self.extra["refresh"] |= {"kept": False, "sentence": self.sentence}
                return self._chosen(out, loaded[0])
            everything = (self.again, less, *everything[1:])
        self.space, self.effort = everything, whole
        self.sentence += ". All recipes are tried"
        self.extra["refresh"] |= {"kept": False, "sentence": self.sentence}
        self.tell(Progress(0.1, self.sentence))
        return super().run(out)

    def baseline(self) -> None:
        built = self._step("build", BASELINE, steps.build)
        differs = difference(self.model, built.result["architecture"])
        if differs:
            told = f"the new model is of another architecture than {self.model['load']}: {differs}"
            raise OtherArchitecture(f"{told}. Run `burnish optimize` for it")
        super().baseline()

    def _why(self) -> str:
        """Why what was decided does not do for this checkpoint; of an accuracy that is lost, the step that loses it."""
        rejected = next(trial.rejected for trial in self.trials() if trial.id == self.again.id)
        assert rejected is not None
        reason = rejected.reason
        if rejected.stage in ("screen", "quality"):
            found = self._step(f"broken {self.again.id}", None, lambda *_: steps.broken(self.subject, self.again, self.effort))
            reason = found.result["sentence"]
        return f"{decide.named(self.again)} does not do for this checkpoint: {reason}"
