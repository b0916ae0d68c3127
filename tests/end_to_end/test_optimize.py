import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_job

from burnish import cli
from burnish.errors import JobError
from burnish.search import journal
from burnish.search.loop import optimize
from burnish.search.steps import Effort

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

QUICK = Effort(latency=0.05, compare=0.1, load=0.6)
JOB = tiny_job.JOB.replace('backends = ["native", "openvino", "onnxruntime"]', 'backends = ["onnxruntime"]\nrecipes = ["fp32", "int8"]')
RUN = """
import sys
from burnish import cli
from burnish.search.steps import Effort
Effort.within = classmethod(lambda cls, budget: cls(latency=0.05, compare=0.1, load=0.6))
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(Effort, "within", classmethod(lambda cls, budget: QUICK))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A job, and the output of a search that came to its end."""
    folder = tmp_path_factory.mktemp("job")
    job = tiny_job.write(folder, JOB)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Effort, "within", classmethod(lambda cls, budget: QUICK))
        result = optimize(job, folder / "out")
    return job, folder / "out", result


def said(job, out, **options) -> str:
    with pytest.raises(JobError) as caught:
        optimize(job, out, **options)
    return str(caught.value)


def changed(job, tmp_path, *replacements):
    """The job file with other words, beside the same model and rows."""
    text = job.read_text()
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    other = job.with_name(f"{tmp_path.name}.toml")
    other.write_text(text)
    return other


def test_a_search_leaves_artifact_report_and_journal(finished):
    _, out, result = finished
    assert sorted(path.name for path in out.iterdir()) == ["artifact", "report.html", "report.json", "trials.jsonl", "work"]
    assert [path.name for path in (out / "work").iterdir()] == ["original.npy"]
    report = json.loads((out / "report.json").read_text())
    assert report["decision"]["recipe"] == result.plan.chosen.recipe.name
    assert report["decision"]["sentences"] == list(result.plan.sentences)
    assert {row["status"] for row in report["trials"]} <= {"baseline", "chosen", "feasible", "rejected"}
    assert report["chosen"]["quality"]["auc"]["relative_low"] >= -0.01
    assert report["chosen"]["latency_us"]["p50"] > 0
    assert report["capacity"]["replicas"] >= 1
    assert report["capacity"]["usd_per_million_candidates"] > 0
    assert report["ratios"]["throughput_vs_baseline"] > 0
    assert report["data"] == {"validation_rows": 3000, "calibration": "train.parquet", "requests": 150}
    assert not result.reused


def test_the_artifact_is_the_chosen_one_and_ranks_like_the_model(finished):
    import burnish
    from burnish.capture import load_model
    from burnish.job import Job

    job, out, result = finished
    scorer = burnish.load(out / "artifact", verify=True)
    assert scorer.artifact.manifest.recipe["name"] == result.plan.chosen.recipe.name
    assert scorer.artifact.manifest.measured["latency_us"]["p50"] > 0
    rows = Job.read(job).rows("validation", 200)
    with torch.inference_mode():
        want = load_model("ranker.py:load", job.parent)(*(torch.from_numpy(array) for array in rows.table.values())).numpy()
    assert np.abs(scorer.rows(rows.table) - want).max() < 0.05


def test_a_finished_search_is_not_repeated(finished):
    job, out, first = finished
    before = (out / "trials.jsonl").read_bytes()
    again = optimize(job, out)
    assert again.reused
    assert again.plan == first.plan
    assert (out / "trials.jsonl").read_bytes() == before


def test_the_report_names_the_layers_that_int8_costs_most(finished):
    _, out, _ = finished
    trials = {trial["id"]: trial for trial in json.loads((out / "report.json").read_text())["trials"]}
    layers = trials["onnxruntime-int8"]["layers"]
    assert {layer["name"] for layer in layers} == {"cross.weight", "deep.0.weight", "deep.2.weight"}
    assert [layer["loss"] for layer in layers] == sorted((layer["loss"] for layer in layers), reverse=True)
    assert {layer["kept"] for layer in layers} <= {"int8", "float32"} and all(layer["macs"] > 0 for layer in layers)
    assert trials["onnxruntime-fp32"]["layers"] is None


def test_calibration_rows_too_few_to_settle_the_ranges_are_told(finished):
    _, out, _ = finished
    lines = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    built = {line["trial"]: line["result"] for line in lines if line["step"] == "build"}
    told = built["onnxruntime-int8"]["unsettled"]
    assert "calibration rows are too few to tell whether the ranges of activations have settled. Give at least 4,096" in told
    assert built["onnxruntime-fp32"]["unsettled"] is None
    report = json.loads((out / "report.json").read_text())
    chosen = next(trial for trial in report["trials"] if trial["status"] == "chosen")
    assert any("have settled. Give at least" in note for note in report["notes"]) is bool(chosen["layers"])


def test_any_metric_of_the_gate_can_decide(finished, tmp_path):
    job, _, _ = finished
    rule = 'metric = "ece"\ndrop_type = "absolute"\nmax_drop = 0.01'
    other = changed(job, tmp_path, ("max_drop = 0.01", rule), ('recipes = ["fp32", "int8"]', 'recipes = ["int8"]'))
    result = optimize(other, tmp_path / "out")
    assert "ECE changes by" in result.plan.sentences[0] and "0.01 is allowed" in result.plan.sentences[0]
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_another_load_and_price_are_decided_from_the_same_measurements(finished, tmp_path):
    job, out, first = finished
    before = (out / "trials.jsonl").read_bytes()
    other = optimize(changed(job, tmp_path, ("qps = 2000", "qps = 400000"), ("price_per_hour = 0.2", "price_per_hour = 0.4")), out)
    assert other.plan.capacity["replicas"] > first.plan.capacity["replicas"]
    assert other.plan.capacity["usd_per_million_candidates"] == pytest.approx(2 * first.plan.capacity["usd_per_million_candidates"])
    assert (out / "trials.jsonl").read_bytes() == before
    optimize(job, out)


def test_what_the_budget_left_out_is_said_and_tried_with_a_larger_one(finished, tmp_path):
    job, *_ = finished
    out = tmp_path / "out"
    first = optimize(changed(job, tmp_path, ("budget_minutes = 2", "budget_minutes = 0.01")), out)
    assert first.plan.chosen.id == "eager-original"
    assert {t.rejected.reason for t in first.trials[1:]} == {"not tried: the budget of 0.01 minutes was used up"}
    assert optimize(job.with_name(f"{tmp_path.name}.toml"), out).reused
    more = optimize(job, out)
    assert not more.reused
    assert all(t.rejected is None or t.rejected.stage != "budget" for t in more.trials)


def test_measurements_of_another_job_are_refused_with_what_changed(finished, tmp_path):
    job, out, _ = finished
    stale = changed(job, tmp_path, ("max_drop = 0.01", "max_drop = 0.001"))
    assert said(stale, out) == (
        f"{out} holds the trials of something else: the job changed since. Choose another --out, or delete that directory"
    )
    rows = changed(job, tmp_path, ('validation = "validation.parquet"', 'validation = "train.parquet"'))
    assert "the job, the validation rows changed since" in said(rows, out)


def test_a_directory_that_is_not_ours_is_refused(finished, tmp_path):
    job, *_ = finished
    (tmp_path / "thesis.tex").write_text("")
    assert said(job, tmp_path) == f"{tmp_path} is not empty and holds no search (it holds thesis.tex). Choose another --out"
    assert said(job, tmp_path / "thesis.tex") == f"{tmp_path / 'thesis.tex'} is a file. Give a directory for --out"
    assert said(job, tmp_path / "thesis.tex" / "out") == f"cannot write to {tmp_path / 'thesis.tex'}. Choose another --out"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]


def test_bad_rows_are_told_before_anything_is_written(finished, tmp_path):
    job, *_ = finished
    few = changed(job, tmp_path, ('validation = "validation.parquet"', 'validation = "few.parquet"'))
    import polars as pl

    pl.read_parquet(job.parent / "train.parquet").head(25).write_parquet(job.parent / "few.parquet")
    assert "are too few for the accuracy gate. Give at least 30 of each" in said(few, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_objective_nothing_meets_is_told_with_the_nearest_that_can_be_met(finished, tmp_path, capsys):
    job, *_ = finished
    hard = changed(job, tmp_path, ("p99_ms = 100", "p99_ms = 0.0005"), ('recipes = ["fp32", "int8"]', 'recipes = ["fp32"]'))
    assert cli.main(["optimize", str(hard), "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("burnish: nothing meets p99 0.0005 ms at 16 candidates within the accuracy that must be kept: ")
    assert re.search(r"fp32 on onnxruntime( with 2 cores)? comes nearest with p99 ", last)  # which of them is a matter of microseconds
    assert " ms. Allow that, or give fewer candidates a request. The nearest plan: 2,000 requests a second of 16 candidates at p99 " in last
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["chosen"] is None
    assert report["decision"]["sentence"] in last
    assert (tmp_path / "out" / "report.html").exists()
    assert not (tmp_path / "out" / "artifact").exists()


def test_what_is_printed_has_each_trial_and_the_plan(finished, capsys):
    job, out, result = finished
    assert cli.main(["optimize", str(job), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "Nothing changed since" in text
    for trial in result.trials:
        assert trial.recipe.backend in text
    for sentence in result.plan.sentences:
        assert sentence in text
    assert text.rstrip().endswith(f"Report: {out / 'report.html'}")
    assert cli.main(["optimize", str(job), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1


def test_the_other_commands_work_on_the_output(finished, capsys):
    job, out, _ = finished
    assert cli.main(["verify", str(out)]) == 0
    assert "golden rows are as they were built" in capsys.readouterr().out
    assert cli.main(["plan", str(out), "--qps", "100000"]) == 0
    assert capsys.readouterr().out.startswith("100,000 requests a second of 16 candidates")
    assert cli.main(["bench", str(out), "--vs", "eager,onnxruntime", "--candidates", "1,7", "--seconds", "0.05", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 6
    assert {row["engine"].split()[0] for row in rows} == {"this", "eager", "onnxruntime"}
    assert cli.main(["inspect", str(job)]) == 0
    told = capsys.readouterr().out
    assert "ids" in told and "With what depends on the request alone computed once a request:\nper request " in told
    assert cli.main(["inspect", str(job), "--json"]) == 0
    costs = json.loads(capsys.readouterr().out)
    assert costs["factored"]["candidate"]["macs"] <= costs["candidate"]["macs"]


def test_compile_makes_one_artifact(finished, tmp_path, capsys):
    job, *_ = finished
    assert cli.main(["compile", str(job), "--recipe", "int8", "--backend", "onnxruntime", "--out", str(tmp_path / "a")]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"{tmp_path / 'a'}: onnxruntime, ")
    assert re.fullmatch(r"Note: [\d,]+ calibration rows are too few to tell .* Give at least 4,096\.\n", told.err)
    assert cli.main(["verify", str(tmp_path / "a")]) == 0


def start(job, out, *options):
    command = [sys.executable, "-c", RUN, "optimize", str(job), "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def wait_for_lines(process, path, count):
    """Until the journal has `count` lines, or the process ended."""
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < count):
        time.sleep(0.02)


def test_a_search_killed_anywhere_goes_on_and_measures_nothing_twice(finished, tmp_path):
    job, _, first = finished
    out, draw = tmp_path / "out", random.Random(0)
    kept = out / "trials.jsonl"
    kills = 0
    for lines in (1, 5, 10):
        process = start(job, out, "--resume")
        wait_for_lines(process, kept, lines)
        time.sleep(draw.random() / 4)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        before = journal.read(kept)
    assert kills == 3
    if not any(line.step == "decided" for line in before):
        assert said(job, out) == f"{out} holds a search that was stopped. Go on with --resume, or delete that directory"
    process = start(job, out, "--resume")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    after = journal.read(kept)
    assert after[: len(before)] == before
    done = [(line.trial, line.step) for line in after]
    assert len(done) == len(set(done)), "a step was done twice"
    result = optimize(job, out)
    assert result.reused
    assert {trial.id for trial in result.trials} == {"eager-original", "onnxruntime-fp32", "onnxruntime-int8"}

    def losses(trials):
        return {trial.id: trial.measured.quality["metrics"]["auc"]["delta"] for trial in trials if trial.measured.quality}

    assert losses(result.trials) == pytest.approx(losses(first.trials), abs=1e-6), "the same seed judges on the same rows"
    assert cli.main(["verify", str(out)]) == 0


def test_ctrl_c_says_how_to_go_on_and_keeps_the_journal(finished, tmp_path):
    job, *_ = finished
    out = tmp_path / "out"
    process = start(job, out)
    wait_for_lines(process, out / "trials.jsonl", 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    again = f"burnish optimize {job} --out {out} --resume"
    assert err.splitlines()[-1] == f"burnish: stopped; what was measured is kept. Go on with: {again}."
    assert len(journal.read(out / "trials.jsonl")) >= 2
    assert not (out / "report.json").exists()


MODEL = """
import torch
from torch import nn


class Ranker(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(200, 4)
        self.head = nn.Linear(8, 1)

    def forward(self, {arguments}):
        x = torch.cat([self.table(ids[:, 3]), dense], dim=1)
        {line}
        return torch.sigmoid(self.head(x)).squeeze(1)


def load():
    return Ranker().eval()
"""


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            MODEL.format(arguments="ids, dense", line="return undefined")[:-60] + "(",
            r"odd\.py does not import: SyntaxError: .* at odd\.py:\d+",
        ),
        (MODEL.format(arguments="ids, dense, week", line="pass"), r"forward .*'week'"),
        (MODEL.format(arguments="ids, dense", line="x = x - x.mean(0)"), r"a mean over the rows at odd\.py:14 mixes the rows"),
        (
            MODEL.format(arguments="ids, dense", line="x = torch.special.bessel_j0(x)"),
            r"no burnish op for aten\.special_bessel_j0.* at odd\.py:\d+",
        ),
    ],
    ids=["does not import", "other names", "mixes rows", "unknown op"],
)
def test_a_model_that_cannot_be_used_is_one_sentence(finished, tmp_path, capsys, model, sentence):
    job, *_ = finished
    (job.parent / "odd.py").write_text(model)
    odd = changed(job, tmp_path, ("ranker.py:load", "odd.py:load"))
    assert cli.main(["optimize", str(odd), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err.strip()
    assert re.search(sentence, err), err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_engine_that_crashes_three_times_is_passed_over(finished, tmp_path):
    job, *_ = finished
    one = changed(job, tmp_path, ('recipes = ["fp32", "int8"]', 'recipes = ["fp32"]'))
    crash = RUN.replace(
        "sys.exit(", "from burnish.search import steps\nimport os\nsteps.STEPS = (('build', lambda *_: os.abort()),)\nsys.exit("
    )
    for _ in range(3):
        command = [sys.executable, "-c", crash, "optimize", str(one), "--out", str(tmp_path / "out"), "--resume"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGABRT
    result = optimize(one, tmp_path / "out", resume=True)
    assert result.plan.chosen.id == "eager-original"
    assert result.trials[1].rejected.reason == (
        "the process ended 3 times during this step: the engine crashes, or needs more memory than there is"
    )
