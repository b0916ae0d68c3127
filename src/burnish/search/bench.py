"""`burnish bench`: an artifact's latency, other engines of the same model beside it in the same run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from burnish.errors import BuildError, JobError
from burnish.host import Host
from burnish.job import Job
from burnish.measure import latency, load
from burnish.measure.traffic import Traffic
from burnish.recipe import Recipe, recipe
from burnish.runtime.artifact import Artifact
from burnish.runtime.scorer import Scorer
from burnish.search import output
from burnish.search.space import BASELINE, SPACE
from burnish.search.steps import latencies

if TYPE_CHECKING:
    from burnish.search.subject import Subject

ROWS = 20_000  # of validation, of which the calls are made
CALLS = 256
LOAD_TIMES = 7.5  # as long as for a latency: a search for the highest load


def side_by_side(
    directory: Path,
    vs: Sequence[str],
    job: Path | None,
    candidates: Sequence[int],
    seconds: float,
    p99_ms: float | None = None,
    at: str | None = None,
) -> dict[str, Any]:
    """Latencies of the artifact in `directory` and of the same model on each backend of `vs`, for each number of candidates; with `p99_ms`
    also the highest load that keeps it. `at`: the address of a server that runs the artifact, which is measured over the wire.

    A peer is built by the recipe that served it best in the search, or else by its first in the search's order. `rows` has one entry for
    each engine and number of candidates. JobError when peers are asked for and no job says what to build.
    """
    artifact = Artifact.read(directory / "artifact" if (directory / "artifact").is_dir() else directory)
    report = output.read_report(directory) if (directory / output.REPORT).exists() else None
    path = job or (Path(report["job"]) if report else None)
    if vs and path is None:
        raise JobError(f"--vs builds other engines of the same model, and {directory} does not say its job. Give --job JOB.toml")
    notes = []
    with ExitStack() as opened:
        work = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="burnish-bench-")))
        engines: dict[str, Any] = {"this": opened.enter_context(Scorer(artifact))}
        loaded: dict[str, Any] = dict(engines)
        if at is not None:
            from burnish.serve.client import calls_of

            loaded[at] = calls_of(at, artifact.manifest.inputs)
            engines[at] = loaded[at][0]
        if path is None:
            traffic_of, key = artifact.golden()[0], None
            notes.append("The calls are made of the artifact's golden rows; give --job for calls made of the data.")
        else:
            subject = _subject(_of(Job.read(path), report if job is None else None), work)
            rows = subject.job.rows("validation", ROWS, artifact.manifest.inputs)
            traffic_of, key = rows.table, rows.requests
            for backend in vs:
                chosen = _recipe(backend, report)
                try:
                    built = subject.artifact(f"{backend}-{chosen.name}", chosen)
                except BuildError as error:
                    notes.append(f"{backend} was not measured: {error}")
                    continue
                engines[f"{backend} {chosen.name}"] = loaded[f"{backend} {chosen.name}"] = opened.enter_context(Scorer(built))
        found = []
        for n in candidates:
            traffic = Traffic.from_rows(artifact.manifest.inputs, traffic_of, key, n, CALLS)
            rows_of_n = _rows(latency.quieted(latency.measure(engines, traffic, seconds)), n)
            for row in rows_of_n:
                row["load"] = None if p99_ms is None else _load(loaded[row["engine"]], traffic, p99_ms, LOAD_TIMES * seconds)
            found += rows_of_n
    program = artifact.manifest.programs[0]
    told = [row["latency_us"]["note"] for row in found if row["latency_us"]["note"]]
    notes += [
        f"{row['engine']} at {row['candidates']} candidates: {row['load']['sentence']}"
        for row in found
        if row["load"] and not row["load"]["valid"]
    ]
    return {
        "artifact": {"path": str(artifact.path), "recipe": artifact.manifest.recipe.get("name"), "backend": program.backend},
        "rows": found,
        "notes": notes + list(dict.fromkeys(told))[:1],
        "host": msgspec.to_builtins(Host.here()),
    }


def _of(job: Job, report: dict[str, Any] | None) -> Job:
    """The job with the model that the report is of: after a refresh, another checkpoint."""
    load = (report or {}).get("model", {}).get("load")
    return msgspec.structs.replace(job, model=msgspec.structs.replace(job.model, load=load)) if load else job


def _subject(job: Job, work: Path) -> Subject:
    from burnish.capture import load_model
    from burnish.search.subject import Subject

    return Subject(job, work, load_model(job.model.load, job.base))


def _recipe(backend: str, report: dict[str, Any] | None) -> Recipe:
    """The recipe that served a backend best among those that did not fail, as the search decided it; without a search, its first in the
    search's order."""
    if backend == "eager":
        return BASELINE.recipe
    rows = [row for row in report["trials"] if row["backend"] == backend and row["stage"] in (None, "worth")] if report else []
    if rows:
        best = max(rows, key=lambda row: row["candidates_per_second_per_core"])
        return msgspec.convert(best["decided"], Recipe) if best.get("decided") else recipe(best["recipe"], backend)
    names = [name for other, name in SPACE if other == backend]
    if not names:
        raise BuildError(f"no backend {backend!r}. Use one of {', '.join(dict.fromkeys(other for other, _ in SPACE))}, eager")
    return recipe(names[0], backend)


def _load(calls: Any, traffic: Traffic, p99_ms: float, seconds: float) -> dict[str, Any]:
    """The highest load within p99, as report.json has loads."""
    found = load.peak(calls, traffic, 1000 * p99_ms, seconds=seconds / 12, confirm_seconds=seconds / 4, budget_seconds=seconds)
    run = found.confirmed
    return {
        "qps": found.qps,
        "p99_us": run.p99_us if run else None,
        "bounds_us": run.bounds_us if run else {},
        "queries": run.queries if run else 0,
        "checked": run.checked if run else 0,
        "valid": run is not None,
        "sentence": found.sentence,
    }


def _rows(found: dict[str, latency.Latencies], candidates: int) -> list[dict[str, Any]]:
    first = found["this"]
    return [
        {
            "engine": name,
            "candidates": candidates,
            "latency_us": latencies(each, 1),
            "first_is_faster": None if name == "this" else latency.faster(first, each).value,
        }
        for name, each in found.items()
    ]
