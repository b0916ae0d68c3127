"""One job on several kinds of machines at once: trials as Ray tasks, each kind of machine measuring for itself.

A node says what it is by a Ray resource that has the name of one of the job's [[hosts]]:

    ray start --address HEAD:6379 --resources '{"c7a.xlarge": 1}'

A task takes the whole of that resource, so that a machine measures one thing at a time. What a task found out comes back as lines and goes
into the journal of its kind here, where a killed search goes on. A node that dies costs the tasks it had: Ray gives them to another of its
kind, or waits for it to come back. burnish, the job's files and its rows must be at the same paths on every node (a shared file system).
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from burnish.errors import JobError, ObjectiveNotMet
from burnish.job import Job
from burnish.search import journal, output
from burnish.search.journal import Journal, Line, Lines
from burnish.search.loop import DEATHS, Progress, Search
from burnish.search.space import space
from burnish.search.steps import Effort
from burnish.search.subject import Subject
from burnish.search.trial import Trial

RESULTS = ("artifact", output.REPORT, "report.html")
_subjects: dict[str, Subject] = {}  # of this process: the model, its rows and its scores serve many tasks


class Decided(msgspec.Struct, frozen=True):
    """What was decided for one kind of machines: `report` is its report.json. Without a choice, its sentence says why."""

    host: str
    out: Path
    report: dict[str, Any]

    @property
    def usd_per_month(self) -> float | None:
        """The price of the load; None where nothing was chosen, or the machine has no price."""
        return (self.report["capacity"] or {}).get("usd_per_month")


def optimize(
    job: str | Path | Job,
    out: str | Path,
    address: str = "auto",
    *,
    effort: Effort | None = None,
    progress: Callable[[str, Progress], object] | None = None,
) -> list[Decided]:
    """`burnish.optimize` for each kind of machines of the Ray cluster at `address`, all at once; out/<name of the host>/ gets what optimize
    writes. The cheapest that meets the objective comes first. A search that was stopped goes on when it is repeated.

    `address`: as ray.init takes it; "auto" the cluster that runs here. `effort`: how long each measurement may take; default: by the
    budget. JobError without ray, and when no node has the name of a host of the job; ObjectiveNotMet when no kind of machines meets it.
    """
    try:
        import ray
    except ImportError:
        raise JobError("several machines need Ray, which is not installed: pip install ray") from None
    from burnish.capture import load_model

    job = job if isinstance(job, Job) else Job.read(job)
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False)
    there = ray.cluster_resources()
    kinds = [host.name for host in job.hosts if host.name in there]
    if not kinds:
        named = ", ".join(host.name for host in job.hosts) or "none"
        raise JobError(
            f"no node of the Ray cluster at {address} has the name of a host of the job ({named}). "
            "Start nodes with --resources '{\"NAME\": 1}', NAME being that of [[hosts]]"
        )
    out = Path(out)
    marks = {kind: output.fingerprint(job, load_model(job.model.load, job.base), kind) for kind in kinds}
    one_at_a_time = threading.Lock()

    def tell(kind: str, found: Progress) -> None:
        with one_at_a_time:
            (progress or (lambda *_: None))(kind, found)

    def on(kind: str) -> Decided:
        output.check(out / kind)
        (out / kind).mkdir(parents=True, exist_ok=True)
        task = Task(msgspec.json.encode(job), kind, effort or Effort.within(job.search.budget_minutes * 60), time.time())
        with Journal.open(out / kind / journal.NAME, marks[kind]) as kept:
            return _searched(ray, task, kept, out / kind, lambda found: tell(kind, found))

    with ThreadPoolExecutor(len(kinds)) as each:
        found = list(each.map(on, kinds))
    found.sort(key=lambda decided: (decided.report["chosen"] is None, decided.usd_per_month or 0.0))
    if found[0].report["chosen"] is None:
        raise ObjectiveNotMet("; ".join(f"{each.host}: {each.report['decision']['sentence']}" for each in found))
    return found


class Task(msgspec.Struct, frozen=True):
    """What a node is told of a search besides what is known already."""

    job: bytes
    host: str
    effort: Effort
    began: float  # seconds of the system's clock

    def search(self, known: list[Line]) -> Search:
        """The search as it stands, in this process; its work lies in a directory of the node's own."""
        from burnish.capture import load_model

        key = output.digest(self.job + self.host.encode())[:16]
        if key not in _subjects:
            job = msgspec.json.decode(self.job, type=Job)
            work = Path(tempfile.gettempdir()) / f"burnish-ray-{key}" / "work"
            work.mkdir(parents=True, exist_ok=True)
            _subjects[key] = Subject(job, work, load_model(job.model.load, job.base), self.host)
        subject = _subjects[key]
        spent = time.time() - self.began
        search = Search(
            subject, Lines(list(known)), space(subject.job.search, subject.job.accuracy), lambda _: None, time.monotonic() - spent
        )
        search.effort = self.effort
        return search


def _searched(ray: Any, task: Task, kept: Journal, out: Path, tell: Callable[[Progress], object]) -> Decided:
    """One kind of machines: the baseline first, then trials wherever one of its nodes is free, then the decision."""
    pinned = {"resources": {task.host: 1}, "num_cpus": 0, "max_retries": DEATHS}
    baseline, attempt, finish = (ray.remote(each).options(**pinned) for each in (_baseline, _attempt, _finish))

    def known() -> list[Line]:
        return kept.lines[1:]

    def keep(lines: list[Line]) -> None:
        for line in lines:
            if kept.find(line.step, line.trial) is None:
                kept.add(line)

    tell(Progress(0.0, "the model as it came"))
    keep(ray.get(baseline.remote(task, known())))
    job = msgspec.json.decode(task.job, type=Job)
    trials = {attempt.remote(task, known(), trial): trial for trial in space(job.search, job.accuracy)}
    count = len(trials)
    while trials:
        (done,), _ = ray.wait(list(trials), num_returns=1)
        trial = trials.pop(done)
        try:
            keep(ray.get(done))
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        except ray.exceptions.RayError as error:
            keep([Line("build", trial.id, rejected=f"the process ended {DEATHS + 1} times: {type(error).__name__}")])
        tell(Progress(0.1 + 0.7 * (1 - len(trials) / count), f"{trial.id} is done"))
    tell(Progress(0.9, "load tests, and the comparison"))
    lines, files = ray.get(finish.remote(task, known(), str(out)))
    keep(lines)
    for name in RESULTS:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
    with tarfile.open(fileobj=io.BytesIO(files)) as packed:
        packed.extractall(out, filter="data")
    return Decided(task.host, out, output.read_report(out))


def _baseline(task: Task, known: list[Line]) -> list[Line]:
    search = task.search(known)
    search.subject.check()
    search.baseline()
    return search.journal.lines[len(known) :]


def _attempt(task: Task, known: list[Line], trial: Trial) -> list[Line]:
    search = task.search(known)
    search.attempt(trial)
    return search.journal.lines[len(known) :]


def _finish(task: Task, known: list[Line], out: str) -> tuple[list[Line], bytes]:
    """What follows the trials, and the files that optimize writes, as a tar archive."""
    search = task.search(known)
    search.command = ["burnish", "optimize", search.job.path, "--out", str(Path(out).parent), "--ray", "auto"]
    folder = search.subject.work.parent
    with contextlib.suppress(ObjectiveNotMet):  # the report says so
        search.run(folder)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in RESULTS:
            if (folder / name).exists():
                archive.add(folder / name, name)
    search.subject.close()
    return search.journal.lines[len(known) :], packed.getvalue()
