"""A model that the native backend has no kernel for: its sentence names the op and the user's line, and the job goes on with the others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny_job
import torch

import burnish
from burnish.errors import BuildError
from burnish.inputs import Input
from burnish.search.steps import Effort

LINE = "        x0 = x0 + 0 * torch.tanh(x0.double()).float()\n"
JOB = tiny_job.JOB.replace('backends = ["native", "openvino", "onnxruntime"]', 'backends = ["native", "onnxruntime"]\nrecipes = ["fp32"]')


def test_the_sentence_names_the_op_and_the_line():
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.tanh(x.double()).float().sum(1)  # the line that is named

    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith("# the line that is named"))
    graph = burnish.capture(Odd(), [Input("x", "float32", (3,))])
    told = rf"^the native backend has no TANH of float64: TANH\[3\] float64 candidate \(test_refused_by_a_backend\.py:{line}\)\. Cast"
    with pytest.raises(BuildError, match=told):
        burnish.compile(graph, "fp32")


def test_the_job_goes_on_with_the_other_backends(tmp_path, monkeypatch):
    monkeypatch.setattr(Effort, "within", classmethod(lambda cls, budget: Effort(latency=0.05, compare=0.1, load=0.6)))
    torch.set_num_threads(1)
    pytest.importorskip("onnxruntime")
    path = tiny_job.write(tmp_path, JOB, requests=60)
    ranker = tiny_job.RANKER.replace("        x = x0 * self.cross(x0) + x0\n", LINE + "        x = x0 * self.cross(x0) + x0\n")
    (tmp_path / "ranker.py").write_text(ranker)
    line = ranker.splitlines().index(LINE.rstrip("\n")) + 1
    result = burnish.optimize(path, out=tmp_path / "out")
    trials = {trial.id: trial for trial in result.trials}
    refused = trials["native-fp32"].rejected
    assert refused is not None and refused.stage == "build"
    assert re.search(rf"^the native backend has no TANH of float64: TANH\[\d+\] float64 \w+ \(ranker\.py:{line}\)\. Cast", refused.reason)
    assert trials["onnxruntime-fp32"].rejected is None
    assert result.plan.chosen.id in ("onnxruntime-fp32", "eager-original")
