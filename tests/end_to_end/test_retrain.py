"""A job that says `retrain`: the recipe that trains is tried like any other, on train rows, and told about while it runs."""

import pytest
import tiny_job

from burnish.recipe import Qat
from burnish.search.loop import optimize
from burnish.search.steps import Effort

torch = pytest.importorskip("torch")

JOB = tiny_job.JOB.replace('backends = ["native", "openvino", "onnxruntime"]', 'backends = ["native"]\nrecipes = ["lean-trained"]').replace(
    "[search]", "[search]\nretrain = true"
)


def test_a_job_that_says_retrain_trains_and_its_artifact_serves(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(Effort, "within", classmethod(lambda cls, budget: Effort(latency=0.05, compare=0.1, load=0.6)))
    told = []
    result = optimize(tiny_job.write(tmp_path, JOB), tmp_path / "out", progress=lambda found: told.append(found.text))
    assert [trial.id for trial in result.trials] == ["eager-original", "native-lean-trained"]
    trial = result.trials[1]
    assert any(isinstance(step, Qat) for step in trial.recipe.steps)
    assert trial.measured.quality["verdict"]["outcome"] == "accepted", trial.verdict
    assert any("Qat, step 0 of " in text and "held-out loss" in text for text in told)
    result.artifact.verify()
