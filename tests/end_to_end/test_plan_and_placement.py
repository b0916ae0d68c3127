"""A job with a trace, hosts and rules of placement: from the file to the report, and again with what `bench` measured elsewhere."""

import json
import re

import numpy as np
import pytest
from tiny_job import JOB, write

from burnish import cli
from burnish.errors import JobError
from burnish.search.loop import optimize

pytest.importorskip("mlperf_loadgen", reason="load tests need mlcommons-loadgen")
pl = pytest.importorskip("polars")
pytest.importorskip("ziglang")

SEARCH = '[search]\nbudget_minutes = 0.5\nrecipes = ["int8"]\nbackends = ["native"]'
MORE = """
[[hosts]]
name = "c7g.large"

[[hosts]]
name = "app"
device = "phone"

[placement]
link = "4g"
p99_ms = 2000
devices = 1000
"""


def job_text(**hosts):
    text = JOB.replace("candidates = 16", 'candidates = "n"\ntrace = "trace.parquet"') + MORE
    text = re.sub(r"\[search\].*?\n\n", SEARCH + "\n\n", text, flags=re.S)
    for name, file in hosts.items():
        text = text.replace(f'name = "{name}"', f'name = "{name}"\nmeasured = "{file}"')
    return text


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("placed")
    random = np.random.default_rng(0)
    pl.DataFrame({"timestamp": np.cumsum(random.exponential(0.001, 5000)), "n": random.choice([8, 24], 5000)}).write_parquet(
        folder / "trace.parquet"
    )
    job = write(folder, job_text())
    return job, folder / "out", optimize(job, folder / "out")


def report_of(out):
    return json.loads((out / "report.json").read_text())


def test_the_report_has_capacity_with_its_interval_and_every_place(finished):
    _, out, _ = finished
    report = report_of(out)
    capacity = report["capacity"]
    assert capacity["candidates"] == round(float(pl.read_parquet(out.parent / "trace.parquet")["n"].mean()))
    low, high = capacity["replicas_interval"]
    assert low <= capacity["replicas"] <= high
    assert {row["change"] for row in capacity["sensitivity"]} >= {"half the load", "twice the load", "half the price"}
    assert [place["name"] for place in report["placement"]] == ["this machine", "c7g.large", "app", "app + this machine"]
    here, cloud, app, split = report["placement"]
    assert here["measured"] and not (cloud["measured"] or app["measured"] or split["measured"])
    assert here["network_p99_ms"] > 100 and app["network_p99_ms"] == 0
    assert here["machines"] == capacity["machines"]
    assert sum(place["chosen"] for place in report["placement"]) == 1
    assert report["placement_verdict"]["sentence"]
    assert report["work"]["cut_bytes"] > 0
    assert any(note.startswith("C7g.large, app: not measured") for note in report["notes"])


def test_a_plan_for_another_load_prints_scaling_sensitivity_and_places(finished, capsys):
    _, out, _ = finished
    assert cli.main(["plan", str(out), "--qps", "100000", "--growth", "0.5", "--spare", "2"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("100,000 requests a second of 16 candidates") and "50% growth, 2 of them spare" in told
    assert "Add machines when a replica gets more than" in told and "half the load" in told and "app + this machine" in told
    assert cli.main(["plan", str(out), "--p99", "0.0001"]) == 1
    assert "The nearest plan: " in capsys.readouterr().err


def test_what_bench_measured_elsewhere_takes_the_place_of_an_estimate(finished, capsys):
    job, out, _ = finished
    assert cli.main(["bench", str(out), "--candidates", "16", "--seconds", "0.2", "--p99", "500", "--json"]) == 0
    bench = json.loads(capsys.readouterr().out)
    load = bench["rows"][0]["load"]
    assert load["sentence"] and (load["qps"] > 0) == load["valid"]
    (job.parent / "phone.json").write_text(json.dumps(bench))
    job.write_text(job_text(app="phone.json"))
    again = optimize(job, out)
    app = next(place for place in report_of(out)["placement"] if place["name"] == "app")
    assert again.reused is False or app["measured"]
    assert app["measured"] and app["estimate"] == ""
    assert app["p99_ms"] == pytest.approx(bench["rows"][0]["latency_us"]["p99"] / 1000, rel=0.5)


def test_a_host_or_a_trace_that_cannot_be_used_is_told_before_anything_is_measured(finished, tmp_path):
    job, *_ = finished
    with pytest.raises(JobError, match=r"^hosts: cannot read .*none\.json, where 'app' was measured: No such file or directory$"):
        optimize(write_in(tmp_path, job, job_text(app="none.json")), tmp_path / "out")
    pl.DataFrame({"timestamp": np.r_[np.arange(150.0), 3.0], "n": np.ones(151, int)}).write_parquet(tmp_path / "trace.parquet")
    with pytest.raises(JobError, match=r"^trace\.parquet: time goes back by 146 s at row 150, and 1 times in all\. Sort it by timestamp$"):
        optimize(write_in(tmp_path, job, job_text()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def write_in(folder, like, text):
    for name in ("ranker.py", "train.parquet", "validation.parquet", *(() if (folder / "trace.parquet").exists() else ("trace.parquet",))):
        (folder / name).write_bytes((like.parent / name).read_bytes())
    (folder / "job.toml").write_text(text)
    return folder / "job.toml"
