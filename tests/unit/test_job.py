from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from burnish.errors import JobError
from burnish.job import Job, Metric, reference
from burnish.measure.gate import BETTER
from burnish.rows import Rows
from burnish.search.subject import check_labels

pl = pytest.importorskip("polars")

GOOD = """
[model]
load = "ranker.py:load"

[inputs.cat]
dtype = "int64"
columns = ["user", "item"]
side = ["request", "candidate"]
cardinality = [10, 20]

[inputs.price]

[data]
validation = "rows.parquet"
label = "label"
request = "user"
slices = ["cold"]

[objective]
p99_ms = 10
qps = 50000
"""


def frame(**changed):
    columns = {
        "user": [1, 1, 2, 3],
        "item": [5, 19, 0, 7],
        "price": [1.5, 2.0, 0.25, -1.0],
        "label": [0, 1, 0, 1],
        "cold": [True, False, True, True],
    }
    return pl.DataFrame({name: column for name, column in (columns | changed).items() if column is not None})


def job_file(tmp_path: Path, text: str = GOOD, rows: "pl.DataFrame | None" = None) -> Path:
    (tmp_path / "job.toml").write_text(text)
    (frame() if rows is None else rows).write_parquet(tmp_path / "rows.parquet")
    return tmp_path / "job.toml"


def rows(tmp_path, text=GOOD, limit=None, **changed):
    return Job.read(job_file(tmp_path, text, frame(**changed))).rows("validation", limit)


def said(call, *args, **kwargs) -> str:
    with pytest.raises(JobError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def test_every_metric_of_the_gate_can_be_the_jobs():
    assert set(get_args(Metric)) == set(BETTER) - {"auc_by_rows"}


def test_a_job_reads_into_inputs_in_the_files_order(tmp_path):
    job = Job.read(job_file(tmp_path))
    cat, price = job.signature
    assert (cat.name, cat.dtype, cat.shape, cat.side, cat.cardinality) == ("cat", "int64", (2,), ("request", "candidate"), (10, 20))
    assert (price.name, price.dtype, price.shape, price.side, price.cardinality) == ("price", "float32", (), "candidate", None)
    assert job.objective.candidates == 128
    assert job.accuracy.max_drop == 0.001
    assert job.base == tmp_path


def test_rows_become_the_arrays_the_model_takes(tmp_path):
    got = rows(tmp_path)
    assert got.table["cat"].dtype == np.int64
    assert got.table["cat"].tolist() == [[1, 5], [1, 19], [2, 0], [3, 7]]
    assert got.table["price"].dtype == np.float32
    assert got.table["price"].shape == (4,)
    assert got.labels.tolist() == [0, 1, 0, 1]
    assert got.requests.tolist() == [0, 0, 1, 2]
    assert got.slices["cold"].tolist() == [True, False, True, True]


def test_csv_files_give_the_same_rows(tmp_path):
    from_parquet = rows(tmp_path)
    frame().write_csv(tmp_path / "rows.csv")
    from_csv = Job.read(job_file(tmp_path, GOOD.replace("rows.parquet", "rows.csv"))).rows("validation")
    assert np.array_equal(from_parquet.table["cat"], from_csv.table["cat"])
    assert np.array_equal(from_parquet.labels, from_csv.labels)


def test_a_limit_spreads_over_the_file(tmp_path):
    assert rows(tmp_path, limit=2).table["cat"][:, 1].tolist() == [5, 0]


def test_columns_of_lists_become_histories(tmp_path):
    text = GOOD.replace("[inputs.price]", "[inputs.history]\ndtype = 'int32'\nshape = [3]\ncardinality = 20")
    got = rows(tmp_path, text, history=[[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 0, 0]])
    assert got.table["history"].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 0, 0]]
    assert got.table["history"].dtype == np.int32


def test_lists_of_another_length_are_told_with_their_row(tmp_path):
    text = GOOD.replace("[inputs.price]", "[inputs.history]\ndtype = 'int32'\nshape = [3]")
    assert said(rows, tmp_path, text, history=[[1, 2, 3], [4, 5], [7, 8, 9], [0, 0, 0]]) == (
        "rows.parquet: column 'history' has a list of 2 items at row 1; input 'history' takes 3 behind each row (shape [3]). "
        "Pad or cut the lists to one length"
    )


def test_a_scalar_column_for_a_wider_input_is_told(tmp_path):
    text = GOOD.replace("[inputs.price]", "[inputs.price]\nshape = [3]")
    assert said(rows, tmp_path, text) == (
        "rows.parquet: input 'price' takes shape [3] behind each row, and column 'price' has one value a row. "
        "List the columns, or name one that holds lists"
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ("p99_ms = 10", "p99 = 10"),
            "job.toml: unknown key 'p99' in [objective]. Did you mean 'p99_ms'? Known there: p99_ms, qps, candidates, trace",
        ),
        (
            ("side = [", "sides = ["),
            "job.toml: unknown key 'sides' in [inputs.cat]. Did you mean 'side'? Known there: dtype, columns, shape, side, cardinality",
        ),
        (
            ("[model]", "[modle]"),
            "job.toml: unknown key 'modle' in the top level. Did you mean 'model'? "
            "Known there: model, inputs, data, objective, accuracy, search, reserve, hosts, placement, title",
        ),
        (("qps = 50000", "qps = 'many'"), "job.toml: objective.qps: expected float, got 'many'"),
        (("qps = 50000", "qps = 0"), "job.toml: objective.qps: expected float > 0.0, got 0"),
        (("qps = 50000", "qps = nan"), "job.toml: objective.qps is nan. Give a finite number"),
        (("p99_ms = 10\n", ""), "job.toml: key objective.p99_ms is missing"),
        (('[model]\nload = "ranker.py:load"\n', ""), "job.toml: table model is missing"),
        (
            ('dtype = "int64"', 'dtype = "int8"'),
            "job.toml: inputs.cat.dtype: expected 'float32' or 'float64' or 'int64' or 'int32' or 'bool', got 'int8'",
        ),
        (
            ('side = ["request", "candidate"]', 'side = ["request"]'),
            "job.toml: input 'cat' has 1 sides for shape (2,). Give one for all, or one for each of the 2 columns",
        ),
        (
            ("[inputs.price]", "[[hosts]]\nname = 'a'\nprice_per_hour = -1\n[inputs.price]"),
            "job.toml: hosts[0].price_per_hour: expected float > 0.0, got -1",
        ),
        (
            ("[inputs.price]", "[accuracy]\nmetric = 'mse'\n[inputs.price]"),
            "job.toml: accuracy.metric: expected 'auc' or 'gauc' or 'log_loss' or 'normalized_entropy' or 'calibration' or 'ece' or 'ndcg' "
            "or 'mrr' or 'topk_overlap' or 'kendall_tau', got 'mse'",
        ),
        (("[objective]", "[search]\nretrain = 'no'\n[objective]"), "job.toml: search.retrain: expected bool, got 'no'"),
    ],
)
def test_what_is_wrong_in_the_file_is_one_sentence(tmp_path, change, sentence):
    assert said(lambda: Job.read(job_file(tmp_path, GOOD.replace(*change))).signature) == sentence


def test_a_job_without_inputs_is_told_what_an_input_is(tmp_path):
    text = GOOD[: GOOD.index("[inputs.cat]")] + GOOD[GOOD.index("[data]") :]
    assert said(Job.read, job_file(tmp_path, text)) == (
        "job.toml: key inputs is missing. "
        "Add a table [inputs.NAME] for each argument of the model's forward, or for each key where forward takes a dict"
    )


def test_a_file_that_is_not_there_or_not_toml_is_told(tmp_path):
    assert said(Job.read, tmp_path / "none.toml") == f"no job file {tmp_path / 'none.toml'}"
    (tmp_path / "bad.toml").write_text("[model\n")
    assert said(Job.read, tmp_path / "bad.toml").startswith(f"{tmp_path / 'bad.toml'} is not TOML: ")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"price": None, "prices": [1.0] * 4},
            "rows.parquet: no column 'price'. Did you mean 'prices'? It has user, item, label, cold, prices",
        ),
        (
            {"item": ["a", "b", "c", "d"]},
            "rows.parquet: column 'item' is String, and does not convert exactly to the int64 of input 'cat'. "
            "Convert it where you write the file",
        ),
        (
            {"item": [1.0, 2.0, 3.0, 4.0]},
            "rows.parquet: column 'item' is Float64, and does not convert exactly to the int64 of input 'cat'. "
            "Convert it where you write the file",
        ),
        (
            {"price": [1 << 24, 1, 2, (1 << 24) + 1]},
            "rows.parquet: column 'price' is Int64, and does not convert exactly to the float32 of input 'price'. "
            "Convert it where you write the file",
        ),
        (
            {"price": [1.0, None, None, 2.0]},
            "rows.parquet: column 'price' has 2 nulls, the first at row 1. Fill them with the value the model was trained with",
        ),
        (
            {"item": [5, 19, 20, 7]},
            "rows.parquet: column 'item' has id 20 at row 2; ids there (input 'cat') lie in [0, 20). "
            "Raise the cardinality if the model's table is larger, or map unknown ids to a known one",
        ),
        (
            {"user": [1, 1, 2, -3]},
            "rows.parquet: column 'user' has id -3 at row 3; ids there (input 'cat') lie in [0, 10). "
            "Raise the cardinality if the model's table is larger, or map unknown ids to a known one",
        ),
        ({"label": [0, 1, 2, 1]}, "rows.parquet: label 2 at row 2 of column 'label'. Labels are 0 or 1"),
        ({"label": ["no", "yes", "no", "no"]}, "rows.parquet: label column 'label' is String. Labels are 0 or 1"),
    ],
)
def test_what_is_wrong_with_the_rows_is_one_sentence(tmp_path, changed, sentence):
    assert said(rows, tmp_path, **changed) == sentence


def test_a_request_side_value_that_differs_within_a_request_is_told(tmp_path):
    text = GOOD.replace("[inputs.price]", '[inputs.price]\nside = "request"')
    assert said(rows, tmp_path, text) == (
        "rows.parquet: column 'price' is on the request side of input 'price', but differs within one request: 1.5 at row 0, 2.0 at row 1. "
        'Say side = "candidate" for it, or name the right columns in data.request'
    )


def test_missing_and_unreadable_files_are_told(tmp_path):
    job = Job.read(job_file(tmp_path))
    (tmp_path / "rows.parquet").write_bytes(b"not parquet at all")
    assert said(job.rows, "validation").startswith("cannot read rows.parquet: ")
    (tmp_path / "rows.parquet").unlink()
    assert said(job.rows, "validation") == f"no file {tmp_path / 'rows.parquet'}, which the job names under [data]"
    assert said(job.rows, "calibration") == "job.toml: no calibration rows. Name a file in data.calibration or data.train"
    odd = Job.read(job_file(tmp_path, GOOD.replace("rows.parquet", "rows.json")))
    (tmp_path / "rows.json").write_text("{}")
    assert said(odd.rows, "validation") == "rows.json: rows are read from .parquet and .csv files, not .json"


def test_labels_that_cannot_settle_the_gate_are_told(tmp_path):
    def check(labels, requests=None):
        job = Job.read(job_file(tmp_path))
        return said(check_labels, job, Rows({"x": labels}, labels, requests))

    labels = np.zeros(1000, np.float32)
    assert check(labels) == "rows.parquet: every label in column 'label' is 0 (1,000 rows). Accuracy needs rows of both classes"
    assert check(labels[:0]) == "rows.parquet: there are no rows. Accuracy needs rows of both classes"
    labels[:20] = 1
    assert check(labels) == ("rows.parquet: 20 positive and 980 negative rows are too few for the accuracy gate. Give at least 30 of each")
    labels[:500] = 1
    assert check(labels, np.arange(1000) % 7) == (
        "rows.parquet: 500 positive and 500 negative rows in 7 requests are too few for the accuracy gate. Give at least 30 of each"
    )


def test_requests_may_be_told_by_two_columns(tmp_path):
    got = rows(tmp_path, GOOD.replace('request = "user"', 'request = ["user", "cold"]'))
    assert len(set(got.requests.tolist())) == 4


def test_the_page_of_the_job_file_is_what_the_types_say():
    page = Path(__file__).parents[2] / "docs" / "job_file.md"
    assert page.read_text() == reference(), "make it again: python -m burnish.job > docs/job_file.md"


def test_candidates_may_be_a_column_of_a_trace(tmp_path):
    text = GOOD.replace("qps = 50000", 'qps = 50000\ntrace = "trace.parquet"\ncandidates = "n"')
    path = job_file(tmp_path, text)
    pl.DataFrame({"timestamp": np.arange(200.0), "n": np.tile([10, 90], 100)}).write_parquet(tmp_path / "trace.parquet")
    job = Job.read(path)
    assert job.candidates == 50 and job.trace.counts[:2].tolist() == [10, 90] and job.trace.qps == pytest.approx(1)
    numbered = Job.read(job_file(tmp_path, text.replace('"n"', "7")))
    assert numbered.candidates == 7 and numbered.trace.counts is None
    assert Job.read(job_file(tmp_path)).trace is None


def test_a_column_of_candidates_needs_a_trace(tmp_path):
    sentence = said(Job.read, job_file(tmp_path, GOOD.replace("qps = 50000", 'qps = 50000\ncandidates = "n"')))
    assert sentence == (
        "job.toml: objective.candidates names the column 'n' of a trace, and there is no trace. "
        "Give a number, or the trace's file in objective.trace"
    )


def test_a_price_of_nothing_is_refused_with_its_place(tmp_path):
    sentence = said(Job.read, job_file(tmp_path, GOOD + '[[hosts]]\nname = "this machine"\nprice_per_hour = 0\n'))
    assert sentence == "job.toml: hosts[0].price_per_hour: expected float > 0.0, got 0"
