"""A finished search as a run in MLflow: all of it where a store is named, nothing anywhere otherwise."""

import json
from pathlib import Path

import pytest

from burnish.errors import JobError
from burnish.search import mlflow as tracking

SAMPLE = Path(__file__).parents[1] / "golden" / "report.json"


@pytest.fixture
def report():
    return json.loads(SAMPLE.read_text()) | {"model": {"load": "ranker.py:load"}}


@pytest.fixture
def out(tmp_path):
    """What optimize writes."""
    (tmp_path / "out" / "artifact" / "program").mkdir(parents=True)
    for name in ("report.html", "report.json", "trials.jsonl", "artifact/manifest.json", "artifact/program/ranker.so"):
        (tmp_path / "out" / name).write_text(name)
    return tmp_path / "out"


def test_nothing_is_sent_where_no_store_is_named(report, out, monkeypatch):
    monkeypatch.delenv(tracking.URI, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)  # importing it would fail
    tracking.check()
    assert tracking.track(report, out) is None
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]


def test_a_store_without_mlflow_is_told_before_the_search(monkeypatch):
    monkeypatch.setenv(tracking.URI, "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(JobError) as caught:
        tracking.check()
    assert str(caught.value) == (
        "MLFLOW_TRACKING_URI is set, and MLflow is not installed: pip install mlflow-skinny, or unset MLFLOW_TRACKING_URI"
    )


def test_a_run_has_parameters_metrics_artifact_and_report(report, out, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    store = (tmp_path / "store").as_uri()
    monkeypatch.setenv(tracking.URI, store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    mlflow.set_tracking_uri(store)
    client = mlflow.MlflowClient(store)
    run = client.get_run(tracking.track(report, out))
    assert client.get_experiment(run.info.experiment_id).name == report["title"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["decision"] == report["decision"]["sentence"]
    assert run.data.params["recipe"] == "int8" and run.data.params["backend"] == "native"
    assert run.data.params["objective.qps"] == "50000" and run.data.params["accuracy.metric"] == "auc"
    chosen = report["chosen"]
    assert run.data.metrics["auc.relative_low"] == pytest.approx(chosen["quality"]["auc"]["relative_low"])
    assert run.data.metrics["latency_us.p99"] == chosen["latency_us"]["p99"]
    assert run.data.metrics["usd_per_month"] == report["capacity"]["usd_per_month"]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"artifact", "report.html", "report.json", "trials.jsonl"}
    assert {file.path for file in client.list_artifacts(run.info.run_id, "artifact")} == {"artifact/manifest.json", "artifact/program"}


def test_a_store_that_cannot_be_written_is_one_sentence_and_the_decision_stays(report, out, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    (tmp_path / "file").write_text("")
    store = (tmp_path / "file" / "store").as_uri()
    monkeypatch.setenv(tracking.URI, store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(store)
    with pytest.raises(JobError, match=rf"^the decision is in {out}, and MLflow at {store} did not take it: "):
        tracking.track(report, out)
