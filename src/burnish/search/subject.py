"""What a search measures on: a job's model, rows and traffic, each made on first use and kept, so that a resumed run makes only what it
needs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.errors import CalibrationWarning, JobError
from burnish.host import Host
from burnish.job import HERE, Job
from burnish.measure.gate import ABSOLUTE, LEAST
from burnish.measure.quality import PER_REQUEST
from burnish.measure.traffic import Traffic
from burnish.passes.evidence import LEAST_ROWS
from burnish.rows import Rows, check_ids, read
from burnish.runtime.artifact import Artifact
from burnish.runtime.scorer import Scorer
from burnish.search.known_ids import check_shared, id_columns, rarity
from burnish.train import Progress as TrainingProgress
from burnish.train import Training

if TYPE_CHECKING:
    from burnish.decided import Kept
    from burnish.graph.node import Graph
    from burnish.recipe import Recipe, Step
    from burnish.trace import Trace

CALIBRATION_ROWS = 20_000
TRAIN_ROWS = 200_000  # more take longer than they gain: the demo's DCN-v2 trains 1,500 rows a second on one core
KNOWN_ROWS = 1_000_000  # in which the ids of the validation rows are looked for
TRAFFIC_CALLS = 256
CHUNK = 8192  # rows scored at once where only the scores matter, not the time


class Subject:
    """One job as the search sees it. `work` is where artifacts and scores lie until the decision; `host` the name that the job gives to the
    machine that measures."""

    def __init__(self, job: Job, work: Path, model: Any, host: str = HERE) -> None:
        self.job, self.work, self.model, self.host = job, work, model, host
        self.trained: Callable[[TrainingProgress], object] = lambda _: None  # told how a training goes
        self._calibrated: Kept = {}
        self._layers: dict[tuple[Step, ...], list[dict[str, Any]]] = {}
        self._unsettled: dict[tuple[Step, ...], str] = {}  # what calibration warned of, for these steps

    @cached_property
    def graph(self) -> Graph:
        """The captured model, equal to it at several batch sizes."""
        from burnish.capture import capture

        graph = capture(self.model, self.job.signature)
        path = self.job.split_path("validation")
        assert path is not None
        check_ids(path, graph.inputs, self.job.columns, self.file_rows.table)  # the model may know bounds that the job does not say
        return graph

    def check(self) -> None:
        """Read the validation rows, and refuse what the search cannot use."""
        if self.job.search.retrain and self.job.data.train is None:
            raise JobError(f"{Path(self.job.path).name}: search.retrain is true, and there are no train rows. Name a file in data.train")
        rule, name = self.job.accuracy, Path(self.job.path).name
        if rule.metric in PER_REQUEST and self.job.data.request is None:
            raise JobError(
                f"{name}: accuracy.metric {rule.metric!r} is measured within requests. Name the column of the request in data.request"
            )
        if rule.metric in ABSOLUTE and rule.drop_type == "relative":
            raise JobError(
                f"{name}: accuracy.metric {rule.metric!r} is 0 for a calibrated model but for noise, so there is no relative drop of it. "
                'Set accuracy.drop_type = "absolute", and max_drop to such as 0.001'
            )
        self._check_calibration()

    def _check_calibration(self) -> None:
        """Refuse calibration rows from which no range can be taken: too few, or of ids that the validation rows do not have."""
        rows, path = self.file_rows, self.job.split_path("calibration")
        if path is None:
            return
        known = self.job.rows("calibration", CALIBRATION_ROWS)
        if len(known) < LEAST_ROWS:
            raise JobError(
                f"{path.name}: {len(known)} calibration rows are too few to know the range of a value; {LEAST_ROWS} are the least. "
                "Give some ten thousand rows of the training data"
            )
        inputs, columns, judged = self.job.signature, self.job.columns, self.job.split_path("validation")
        assert judged is not None  # a needed key
        check_shared(judged.name, id_columns(inputs, columns, rows.table), path.name, id_columns(inputs, columns, known.table))

    @cached_property
    def file_rows(self) -> Rows:
        """The validation rows in the file's order."""
        rows = self.job.rows("validation")
        check_labels(self.job, rows)
        return rows

    @cached_property
    def rows(self) -> Rows:
        """The validation rows, whole requests in random order: so the first rows are a fair sample of all of them."""
        rows = self.file_rows
        random = np.random.default_rng(self.job.search.seed)
        if rows.requests is None:
            return rows.take(random.permutation(len(rows)))
        shuffled = random.permutation(int(rows.requests.max()) + 1)
        return rows.take(np.argsort(shuffled[rows.requests], kind="stable"))

    @cached_property
    def slices(self) -> dict[str, np.ndarray]:
        """The job's slices, and those of cold and rare ids, as far as the job names rows to tell them by."""
        path = self.job.split_path("train") or self.job.split_path("calibration")
        if path is None:
            return self.rows.slices
        inputs, columns = self.job.signature, self.job.columns
        known = read(path, inputs, columns, limit=KNOWN_ROWS)
        if not len(known):
            return self.rows.slices
        ids = id_columns(inputs, columns, self.rows.table)
        return self.rows.slices | rarity(ids, path.name, id_columns(inputs, columns, known.table))

    @cached_property
    def calibration(self) -> dict[str, np.ndarray] | None:
        """Rows that quantization may look at, never those it is judged on; None when the job names none."""
        if self.job.split_path("calibration") is None:
            return None
        return self.job.rows("calibration", CALIBRATION_ROWS, self.graph.inputs).table

    @cached_property
    def training(self) -> Training | None:
        """Rows that steps may train on; None unless the job says `retrain`."""
        if not self.job.search.retrain:
            return None
        rows = self.job.rows("train", TRAIN_ROWS, self.graph.inputs)
        return Training(rows.table, rows.labels, self.job.model.output, self.work / "training", lambda found: self.trained(found))

    @cached_property
    def traffic(self) -> Traffic:
        """Calls of the objective's size, made of validation rows."""
        job, rows = self.job, self.rows
        given = job.objective.candidates
        counts: Any = given if isinstance(given, int) else self.trace.counts  # type: ignore[union-attr]  # a column's name needs a trace
        return Traffic.from_rows(job.signature, rows.table, rows.requests, counts, TRAFFIC_CALLS, job.search.seed)

    @cached_property
    def trace(self) -> Trace | None:
        """Requests as they came, where the job names them."""
        return self.job.trace

    @cached_property
    def original(self) -> np.ndarray:
        """Scores (N,) of the model as it came on all validation rows; kept in a file, for a resumed run."""
        kept = self.work / "original.npy"
        if kept.exists():
            return np.load(kept)
        from burnish.search.space import BASELINE

        with Scorer(self.artifact(BASELINE.id, BASELINE.recipe), Host.here().cores) as scorer:
            found = self.score(scorer, len(self.rows))
        self.close()  # torch's number of threads is the whole process's: the baseline is opened anew
        part = self.work / ".original.part.npy"
        np.save(part, found)
        os.replace(part, kept)
        return found

    @cached_property
    def baseline(self) -> Scorer:
        """The model as it came, in PyTorch eager mode, on one thread."""
        from burnish.search.space import BASELINE

        return Scorer(self.artifact(BASELINE.id, BASELINE.recipe))

    def artifact(self, name: str, recipe: Recipe) -> Artifact:
        """The artifact of a trial, built when it is not there yet (or no longer)."""
        from burnish.build import build

        path = self.work / name
        if (path / "manifest.json").exists():
            return Artifact.read(path)
        return build(self.graph, recipe, self.calibration, source=self.job.source, apply=self.apply).save(path)

    def apply(self, graph: Graph, recipe: Recipe, calibration: Mapping[str, np.ndarray] | None) -> tuple[Graph, Recipe]:
        """`decide`, with the graphs that calibration or training made kept: the int8 recipes begin alike, and those steps take longest.
        What follows (narrow tables, which are large) is done again for each."""
        from burnish.decided import decide

        with warnings.catch_warnings(record=True) as met:
            warnings.simplefilter("always", CalibrationWarning)
            made = decide(graph, recipe, calibration, self.training, self._calibrated)
        for warning in met:
            if issubclass(warning.category, CalibrationWarning):
                self._unsettled[_quantizing(recipe)] = str(warning.message)
            else:
                warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
        return made

    def unsettled(self, recipe: Recipe) -> str | None:
        """The sentence, where the calibration rows were too few to settle the ranges that this recipe took from them."""
        return self._unsettled.get(_quantizing(recipe))

    def layers(self, recipe: Recipe) -> list[dict[str, Any]] | None:
        """What each linear loses when Int8 makes it alone int8, the guiltiest first, and in what it was kept; None of a recipe without."""
        from burnish.quantize import sensitivity
        from burnish.recipe import Int8, Recipe

        at = next((i for i, step in enumerate(recipe.steps) if isinstance(step, Int8)), None)
        if at is None or self.calibration is None:
            return None
        steps = recipe.steps[: at + 1]
        if steps not in self._layers:
            before, after = (self.apply(self.graph, Recipe(part), self.calibration)[0] for part in (steps[:-1], steps))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CalibrationWarning)  # told of the recipe already
                found = sensitivity.layers(before, after, self.calibration)
            self._layers[steps] = [
                {"name": layer.name, "loss": layer.loss, "macs": layer.macs, "kept": "float32" if layer.kept else "int8"} for layer in found
            ]
        return self._layers[steps]

    def score(self, scorer: Scorer, rows: int, start: int = 0) -> np.ndarray:
        """Scores of the validation rows from `start` to `rows`, of the output that the label judges."""
        table = self.rows.table
        parts = [
            self.output(scorer.rows({name: array[at : min(at + CHUNK, rows)] for name, array in table.items()}))
            for at in range(start, rows, CHUNK)
        ]
        return np.concatenate(parts)

    def output(self, scores: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
        """(N,) of one call's scores; JobError when the model has several outputs and the job does not say which."""
        name = self.job.model.output
        if isinstance(scores, dict):
            if name not in scores:
                met = f"there is no {name!r}" if name else "the job does not say which one the label judges"
                raise JobError(f"the model has the outputs {', '.join(scores)}, and {met}. Set model.output")
            scores = scores[name]
        elif name is not None:
            raise JobError(f"the model has one output, and model.output is {name!r}. Leave it out")
        if scores.ndim != 1:
            raise JobError(f"the model puts out {scores.shape[1:]} values a row; the label judges one. Name an output with one value a row")
        return scores

    def close(self) -> None:
        """Release the baseline's engine, if it was opened."""
        if "baseline" in self.__dict__:
            self.__dict__.pop("baseline").close()


def check_labels(job: Job, rows: Rows) -> None:
    """Refuse validation labels from which the gate cannot conclude anything: all of one class, or too few of one."""
    path, labels = job.split_path("validation"), rows.labels
    assert path is not None and labels is not None  # data.validation and data.label are needed keys
    ones = int(np.count_nonzero(labels))
    zeros = len(labels) - ones
    if not ones or not zeros:
        what = (
            f"every label in column {job.data.label!r} is {1 if ones else 0} ({len(labels):,} rows)" if len(labels) else "there are no rows"
        )
        raise JobError(f"{path.name}: {what}. Accuracy needs rows of both classes")
    units = len(np.unique(rows.requests)) if rows.requests is not None else LEAST
    if min(ones, zeros, units) < LEAST:
        inside = f" in {units} requests" if rows.requests is not None else ""
        raise JobError(
            f"{path.name}: {ones:,} positive and {zeros:,} negative rows{inside} are too few for the accuracy gate. "
            f"Give at least {LEAST} of each"
        )


def _quantizing(recipe: Recipe) -> tuple[Step, ...]:
    """The steps up to the one that takes ranges from rows: recipes that share them are calibrated once."""
    from burnish.recipe import Int8, Qat

    last = max((i for i, step in enumerate(recipe.steps) if isinstance(step, Int8 | Qat)), default=-1)
    return recipe.steps[: last + 1]
