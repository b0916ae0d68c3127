"""refresh: the decided recipe on another checkpoint, gated against its own original; and what is said when it does not do."""

import json
import shutil
import subprocess

import msgspec
import numpy as np
import pytest
import tiny_job

from burnish import cli
from burnish.errors import CaptureError, JobError
from burnish.recipe import Int8, LowRank, Recipe
from burnish.runtime.artifact import Artifact
from burnish.search import refresh as refreshing
from burnish.search.loop import optimize
from burnish.search.refresh import refresh
from burnish.search.steps import Effort

torch = pytest.importorskip("torch")
pytest.importorskip("ziglang")

QUICK = Effort(latency=0.05, compare=0.1, load=0.6)
JOB = tiny_job.JOB.replace('backends = ["native", "openvino", "onnxruntime"]', 'backends = ["native"]\nrecipes = ["int8-tables"]')


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(Effort, "within", classmethod(lambda cls, budget: QUICK))
    monkeypatch.setattr(refreshing, "EFFORT", QUICK)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The folder of a job whose search is done: out/ beside today.pt, another checkpoint of its model."""
    folder = tmp_path_factory.mktemp("job")
    job = tiny_job.write(folder, JOB)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Effort, "within", classmethod(lambda cls, budget: QUICK))
        optimize(job, folder / "out")
    torch.save({"epoch": 2, "state": retrained(folder).state_dict()}, folder / "today.pt")
    return folder


def retrained(folder):
    """The job's model after some more training, as far as shapes and numbers go."""
    from burnish.capture import load_model

    model = load_model("ranker.py:load", folder)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def out(searched, tmp_path):
    """A copy of what the search left."""
    return shutil.copytree(searched / "out", tmp_path / "out")


def test_another_checkpoint_is_refreshed_without_compiling(searched, out, monkeypatch):
    from burnish.native import toolchain

    build = toolchain.build

    def looked_up(*arguments):
        monkeypatch.setattr(toolchain, "subprocess", None)  # whoever calls the compiler now fails
        try:
            return build(*arguments)
        finally:
            monkeypatch.setattr(toolchain, "subprocess", subprocess)

    state = retrained(searched).state_dict()  # in which a table has grown, as tables of ids do
    state["tables.3.weight"] = torch.cat([state["tables.3.weight"], torch.zeros(17, 8)])
    torch.save(state, out.parent / "grown.pt")
    before = Artifact.read(out / "artifact")
    library = (out / "artifact" / before.program.files[0]).read_bytes()
    (_, scores), *_ = before.golden()[1].items()
    monkeypatch.setattr(toolchain, "build", looked_up)
    found = refresh(out, out.parent / "grown.pt")
    assert found.kept
    assert found.sentence == "int8-tables on native passed again on this checkpoint"
    after = Artifact.read(out / "artifact")
    after.verify()
    assert (out / "artifact" / after.program.files[0]).read_bytes() == library
    assert after.manifest.recipe == before.manifest.recipe
    assert not np.array_equal(next(iter(after.golden()[1].values())), scores)
    report = json.loads((out / "report.json").read_text())
    assert report["refresh"] == {"of": str(out), "kept": True, "sentence": found.sentence}
    assert [row["id"] for row in report["trials"]] == ["eager-original", "again-native-int8-tables"]
    assert report["chosen"]["quality"]["auc"]["relative_low"] >= -0.01
    assert report["model"]["load"].endswith(f"ranker.py:load@{out.parent / 'grown.pt'}")
    assert sorted(path.name for path in out.parent.iterdir()) == ["grown.pt", "out"]


def test_a_refreshed_directory_is_refreshed_again_and_scores_are_the_new_checkpoints(searched, tmp_path):
    import burnish
    from burnish.job import Job

    found = refresh(searched / "out", searched / "today.pt", tmp_path / "new")
    assert found.result.artifact.path == tmp_path / "new" / "artifact"
    table = Job.read(searched / "job.toml").rows("validation", 200).table
    with torch.inference_mode():
        want = retrained(searched)(*(torch.from_numpy(array) for array in table.values())).numpy()
    with burnish.load(tmp_path / "new" / "artifact") as scorer:
        assert np.abs(scorer.rows(table) - want).max() < 0.05
    assert cli.main(["refresh", str(tmp_path / "new"), "--json"]) == 0  # the job's own model, loaded again
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert report["chosen"]["id"] == "again-native-int8-tables"
    assert report["model"]["load"] == f"{searched}/ranker.py:load"
    assert cli.main(["verify", str(tmp_path / "new")]) == 0
    assert cli.main(["plan", str(tmp_path / "new"), "--qps", "100000"]) == 0


def test_where_the_gate_fails_the_step_is_named_and_the_recipe_is_eased(searched, out, tmp_path, monkeypatch):
    report = json.loads((out / "report.json").read_text())
    decided = msgspec.convert(report["chosen"]["decided"], Recipe)
    at = next(i for i, step in enumerate(decided.steps) if isinstance(step, Int8))
    poor = (*decided.steps[:at], LowRank(ranks=(("cross.weight", 1),)), Int8(), *decided.steps[at + 1 :])
    report["chosen"]["decided"] = msgspec.to_builtins(msgspec.structs.replace(decided, steps=poor))
    (out / "report.json").write_text(json.dumps(report))
    told = []
    found = refresh(out, searched / "today.pt", progress=told.append)
    assert not found.kept
    assert found.sentence.startswith("int8-tables on native does not do for this checkpoint: step LowRank broke it: ")
    assert found.sentence.endswith(" is allowed. It passed with less to lose")
    assert f"{found.sentence.removesuffix('It passed with less to lose')}It is tried with less to lose" in [step.text for step in told]
    assert found.result.plan.chosen.id == "again-native-int8-tables-eased"
    report = json.loads((out / "report.json").read_text())
    assert report["refresh"]["kept"] is False
    assert {row["id"]: row["status"] for row in report["trials"]} == {
        "eager-original": "baseline", "again-native-int8-tables": "rejected", "again-native-int8-tables-eased": "chosen",
    }  # fmt: skip


def said(*arguments) -> str:
    with pytest.raises((JobError, CaptureError)) as caught:
        refresh(*arguments)
    return str(caught.value)


def test_another_architecture_is_refused_with_the_difference(searched, out, tmp_path):
    before = (out / "report.json").read_bytes()
    wider = tiny_job.RANKER.replace("nn.Linear(52, 32), nn.ReLU(), nn.Linear(32, 16)", "nn.Linear(52, 48), nn.ReLU(), nn.Linear(48, 16)")
    (tmp_path / "wider.py").write_text(wider)
    told = said(out, f"{tmp_path}/wider.py:load")
    assert told == (
        f"the new model is of another architecture than {searched}/ranker.py:load: deep.0.weight is (48, 52) and was (32, 52), "
        "deep.0.bias is (48,) and was (32,), deep.2.weight is (16, 48) and was (16, 32). Run `burnish optimize` for it"
    )
    state = retrained(searched).state_dict()
    state["deep.2.weight"] = torch.zeros(16, 48)
    del state["head.bias"]
    torch.save(state, tmp_path / "other.pt")
    assert said(out, tmp_path / "other.pt") == (
        f"{tmp_path}/other.pt is of another architecture: it lacks head.bias; deep.2.weight is (16, 48), expected (16, 32)"
    )
    assert (out / "report.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_what_is_no_checkpoint_is_told(searched, out, tmp_path):
    (tmp_path / "notes.pt").write_text("hello")
    assert "is not a checkpoint that torch.load reads with weights_only=True" in said(out, tmp_path / "notes.pt")
    assert said(out, tmp_path / "gone.pt") == f"no checkpoint {tmp_path / 'gone.pt'}"
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    assert said(out, tmp_path / "empty.pt").startswith(f"{tmp_path / 'empty.pt'} holds no state dict. Save one")
    assert "no report.json in" in said(tmp_path / "nothing")


def test_an_objective_that_the_new_checkpoint_misses_leaves_what_is_served(searched, out, tmp_path, capsys):
    text = (searched / "job.toml").read_text()
    report = json.loads((out / "report.json").read_text())
    (searched / "hard.toml").write_text(text.replace("p99_ms = 100", "p99_ms = 0.0005"))
    (out / "report.json").write_text(json.dumps(report | {"job": str(searched / "hard.toml")}))
    before = (out / "artifact" / "manifest.json").read_bytes()
    assert cli.main(["refresh", str(out), "--model", str(searched / "today.pt")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("burnish: nothing meets p99 0.0005 ms at 16 candidates")
    assert "The nearest plan: 2,000 requests a second" in last
    report = json.loads((tmp_path / ".out.refresh" / "report.json").read_text())
    assert report["refresh"]["sentence"].endswith(" are allowed. All recipes are tried")
    assert last.endswith(f". {out} is left as it was; the report is {tmp_path / '.out.refresh' / 'report.html'}.")
    assert (out / "artifact" / "manifest.json").read_bytes() == before
