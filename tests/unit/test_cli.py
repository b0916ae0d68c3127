import json
import os
import subprocess
import sys

import numpy as np
import pytest

from burnish import cli
from burnish.place.plan import capacity


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


COMMANDS = ["optimize", "inspect", "compile", "export", "bench", "serve", "plan", "verify", "report"]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_fits_a_screen_and_ends_with_an_example(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert len(out.splitlines()) <= 30
    assert f"Example: burnish {command} " in " ".join(out.split())


def test_burnish_alone_lists_the_commands(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    assert all(f"  {command} " in out for command in COMMANDS)
    assert "..." not in out.split("Commands:")[1], "a description is cut off"


def test_wrong_usage_is_one_sentence_and_exit_code_2(capsys):
    assert run(capsys, "optimise")[::2] == (
        2,
        "burnish: No such command 'optimise'. Did you mean 'optimize'? `burnish --help` lists the commands.\n",
    )
    code, out, err = run(capsys, "optimize", "job.toml")
    assert (code, out) == (2, "")
    assert err == "burnish: Missing option '--out'. `burnish --help` lists the commands.\n"


def test_bad_input_is_one_sentence_and_exit_code_2(capsys, tmp_path):
    code, out, err = run(capsys, "optimize", tmp_path / "none.toml", "--out", tmp_path / "out")
    assert (code, out, err) == (2, "", f"burnish: no job file {tmp_path / 'none.toml'}.\n")
    assert not (tmp_path / "out").exists()
    assert run(capsys, "verify", tmp_path)[::2] == (
        2,
        f"burnish: there is no artifact at {tmp_path}: it has no manifest.json. `burnish compile` or Artifact.save writes one.\n",
    )
    assert run(capsys, "plan", tmp_path)[::2] == (2, f"burnish: no report.json in {tmp_path}. `burnish optimize` writes one.\n")
    assert run(capsys, "bench", tmp_path, "--candidates", "1,x")[::2] == (
        2,
        "burnish: --candidates is '1,x'. Give whole numbers of at least 1, separated by commas.\n",
    )
    assert run(capsys, "bench")[::2] == (
        2,
        "burnish: Invalid value: give the directory of an artifact, or --floor. `burnish --help` lists the commands.\n",
    )
    assert run(capsys, "inspect", "ranker.bin")[::2] == (
        2,
        "burnish: ranker.bin is neither a job file (.toml) nor a .pt2 or .onnx. A model in Python needs a job, which says its inputs.\n",
    )


def test_a_fault_of_ours_is_exit_code_3_and_asks_for_a_report(capsys, tmp_path, monkeypatch):
    def broken(out):
        raise RuntimeError("gears\nand more")

    monkeypatch.setattr("burnish.search.output.read_report", broken)
    code, _, err = run(capsys, "plan", tmp_path)
    assert code == 3
    assert err == (
        "burnish: a fault of burnish, not of your input: RuntimeError: gears. Please report it with the output under BURNISH_DEBUG=1.\n"
    )
    monkeypatch.setenv("BURNISH_DEBUG", "1")
    assert "Traceback" in run(capsys, "plan", tmp_path)[2]


def test_a_package_that_is_not_installed_is_named_with_what_installs_it(capsys, tmp_path, monkeypatch):
    def without(out):
        raise ModuleNotFoundError("No module named 'polars'", name="polars.io")

    monkeypatch.setattr("burnish.search.output.read_report", without)
    assert run(capsys, "plan", tmp_path) == (
        2,
        "",
        "burnish: this needs the package polars.io, which is not installed: pip install 'burnish[optimize]'.\n",
    )
    monkeypatch.setattr("burnish.search.loop.find_spec", lambda name: None if name == "polars" else name)
    assert run(capsys, "optimize", tmp_path / "job.toml", "--out", tmp_path / "out")[::2] == (
        2,
        "burnish: optimize needs polars, which is not installed. Install all it needs: pip install 'burnish[optimize]'.\n",
    )


def test_ctrl_c_is_one_sentence_and_exit_code_130(capsys, tmp_path, monkeypatch):
    def stopped(out):
        raise KeyboardInterrupt

    monkeypatch.setattr("burnish.search.output.read_report", stopped)
    assert run(capsys, "plan", tmp_path) == (130, "", "burnish: stopped; nothing is half-written.\n")


def test_plan_answers_from_the_report_alone(capsys, tmp_path):
    service = np.random.default_rng(0).gamma(20, 50, 300)
    kept = capacity(service, 750.0, 10.0, qps=50_000, p99_ms=10.0, candidates=128, threads=1, cores=8, price_per_hour=0.4)
    report = {"capacity": kept, "service_us": service.tolist(), "chosen": {"load": {"qps": 750.0}}, "objective": {"p99_ms": 10.0}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    code, out, _ = run(capsys, "plan", tmp_path, "--qps", 100_000, "--p99", 5)
    assert code == 0
    assert out.startswith("100,000 requests a second of 128 candidates at p99 5 ms take ")
    answer = json.loads(run(capsys, "plan", tmp_path, "--json")[1])
    assert answer["replicas"] == kept["replicas"]
    assert answer["usd_per_month"] == pytest.approx(kept["usd_per_month"])


def test_starting_imports_nothing_heavy():
    heavy = ("torch", "polars", "scipy", "onnxruntime", "openvino", "altair")
    code = f"import sys, burnish.cli; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"BURNISH_DEBUG": ""}, check=True)
    assert done.stdout.strip() == "[]"
