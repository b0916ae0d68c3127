import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest

from burnish.errors import CalibrationWarning, JobError
from burnish.graph.node import Graph
from burnish.job import Accuracy, Job, Search
from burnish.recipe import recipe
from burnish.search.subject import Subject

pl = pytest.importorskip("polars")


def subject(folder: Path, output: str | None = None, **data) -> Subject:
    n, per_request = 2000, 10
    random = np.random.default_rng(0)
    pl.DataFrame(
        {
            "x": random.normal(size=n).astype(np.float32),
            "y": (random.random(n) < 0.5).astype(np.int8),
            "request": np.repeat(np.arange(n // per_request), per_request),
            "row": np.arange(n),
        }
    ).write_parquet(folder / "v.parquet")
    job = Job.from_dict(
        {
            "model": {"load": "ranker.py:load"} | ({"output": output} if output else {}),
            "inputs": {"x": {}, "row": {"dtype": "int64"}},
            "data": {"validation": "v.parquet", "label": "y"} | data,
            "objective": {"p99_ms": 10, "qps": 100, "candidates": 7},
        },
        folder / "job.toml",
    )
    return Subject(job, folder / "work", None)


def test_rows_are_whole_requests_in_an_order_drawn_once(tmp_path):
    rows = subject(tmp_path, request="request").rows
    assert np.array_equal(np.sort(rows.table["row"]), np.arange(2000))
    assert not np.array_equal(rows.table["row"], np.arange(2000))
    changes = np.flatnonzero(np.diff(rows.requests)) + 1
    assert np.array_equal(changes, np.arange(10, 2000, 10)), "a request is torn apart"
    assert np.array_equal(rows.table["row"], subject(tmp_path, request="request").rows.table["row"])


def test_what_calibration_warned_of_is_told_of_the_recipes_that_begin_so_and_of_no_other(tmp_path, monkeypatch):
    def decide(graph, recipe, *_):
        if recipe.name == "int8":  # the others find its calibration kept, or have settled ranges
            warnings.warn("too few", CalibrationWarning, stacklevel=2)
        return graph, recipe

    monkeypatch.setattr("burnish.decided.decide", decide)
    one, graph = subject(tmp_path), Graph([], {})
    for name in ("fp32", "int8", "int8-mixed-tables", "lean"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            one.apply(graph, recipe(name), None)
    assert [one.unsettled(recipe(name)) for name in ("fp32", "int8", "int8-mixed-tables", "lean")] == [None, "too few", "too few", None]


def test_without_requests_rows_stand_in_random_order(tmp_path):
    rows = subject(tmp_path).rows
    assert np.array_equal(np.sort(rows.table["row"]), np.arange(2000))
    assert np.abs(np.diff(rows.table["row"])).mean() > 100


def test_traffic_has_the_objectives_number_of_candidates(tmp_path):
    traffic = subject(tmp_path, request="request").traffic
    assert {traffic.count(i) for i in range(len(traffic))} == {7}


def test_scores_of_the_first_rows_come_in_chunks(tmp_path):
    class Doubles:
        def rows(self, table):
            return table["x"] * 2

    it = subject(tmp_path)
    assert np.array_equal(it.score(Doubles(), 1500), it.rows.table["x"][:1500] * 2)


def test_of_several_outputs_the_job_says_which_is_judged(tmp_path):
    scores = {"click": np.zeros(3), "buy": np.ones(3)}
    assert subject(tmp_path, output="buy").output(scores).tolist() == [1, 1, 1]
    with pytest.raises(JobError) as caught:
        subject(tmp_path).output(scores)
    assert str(caught.value) == (
        "the model has the outputs click, buy, and the job does not say which one the label judges. Set model.output"
    )
    with pytest.raises(JobError, match=r"and there is no 'sell'\. Set model\.output"):
        subject(tmp_path, output="sell").output(scores)
    with pytest.raises(JobError, match=r"the model has one output, and model\.output is 'buy'\. Leave it out"):
        subject(tmp_path, output="buy").output(np.zeros(3))
    with pytest.raises(JobError, match=r"the model puts out \(2,\) values a row; the label judges one"):
        subject(tmp_path).output(np.zeros((3, 2)))


def test_train_rows_are_read_only_where_the_job_says_retrain(tmp_path):
    assert subject(tmp_path, train="v.parquet").training is None
    made = subject(tmp_path, train="v.parquet")
    made.job = msgspec.structs.replace(made.job, search=Search(retrain=True))
    made.graph = Graph(made.job.signature, {})
    assert made.training.labels.sum() == made.rows.labels.sum() and made.training.checkpoints == tmp_path / "work" / "training"
    without = subject(tmp_path)
    without.job = msgspec.structs.replace(without.job, search=Search(retrain=True))
    with pytest.raises(JobError, match=r"job\.toml: search\.retrain is true, and there are no train rows\. Name a file in data\.train"):
        without.check()


def test_a_metric_within_requests_needs_the_request_column(tmp_path):
    made = subject(tmp_path)
    made.job = msgspec.structs.replace(made.job, accuracy=Accuracy(metric="gauc"))
    with pytest.raises(JobError) as caught:
        made.check()
    assert str(caught.value) == (
        "job.toml: accuracy.metric 'gauc' is measured within requests. Name the column of the request in data.request"
    )


def test_the_calibration_error_has_no_relative_drop(tmp_path):
    made = subject(tmp_path)
    made.job = msgspec.structs.replace(made.job, accuracy=Accuracy(metric="ece"))
    with pytest.raises(JobError) as caught:
        made.check()
    assert str(caught.value) == (
        "job.toml: accuracy.metric 'ece' is 0 for a calibrated model but for noise, so there is no relative drop of it. "
        'Set accuracy.drop_type = "absolute", and max_drop to such as 0.001'
    )


def test_calibration_rows_too_few_or_of_other_ids_are_refused_before_anything_is_done(tmp_path):
    made = subject(tmp_path, calibration="c.parquet")
    rows = pl.read_parquet(tmp_path / "v.parquet")
    rows.head(20).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(JobError) as caught:
        made.check()
    assert str(caught.value) == (
        "c.parquet: 20 calibration rows are too few to know the range of a value; 64 are the least. "
        "Give some ten thousand rows of the training data"
    )
    rows.with_columns(pl.col("row") + 10_000).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(JobError) as caught:
        subject(tmp_path, calibration="c.parquet").check()
    assert str(caught.value) == (
        "v.parquet and c.parquet have no id in common, in any of 1 columns (row). Map the ids of both files by the table that the model "
        "was trained with"
    )
    rows.with_columns(pl.col("row") + 1_999).write_parquet(tmp_path / "c.parquet")
    subject(tmp_path, calibration="c.parquet").check()


def test_cold_and_rare_ids_are_slices_of_their_own(tmp_path):
    made = subject(tmp_path, train="t.parquet")
    rows = pl.read_parquet(tmp_path / "v.parquet")
    pl.concat([rows.head(1000), *[rows.head(10)] * 9]).write_parquet(tmp_path / "t.parquet")
    words = made.slices["row, met in t.parquet"]
    times = {i: word for i, word in zip(made.rows.table["row"], words)}
    assert (times[5], times[10], times[1000]) == ("10 times or more", "fewer than 10 times", "never")
    assert subject(tmp_path).slices == {}
