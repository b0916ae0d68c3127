"""The programs in examples/own_model, run as their first lines say."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "own_model"


def run(program: str, *arguments: object) -> list[str]:
    """The lines that an example prints."""
    command = [sys.executable, EXAMPLES / program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    pytest.importorskip("mlperf_loadgen")
    out = tmp_path_factory.mktemp("own")
    return out, run("optimize.py", out)


def test_a_model_of_ones_own_is_optimized(optimized: tuple[Path, list[str]]) -> None:
    out, lines = optimized
    assert lines[-4].startswith("Chosen: int8-tables on native") and lines[-1] == str(out / "out" / "report.html")
    assert (out / "out" / "report.html").exists()


def test_the_artifact_is_scored_and_served_with_the_same_result(optimized: tuple[Path, list[str]]) -> None:
    pytest.importorskip("tritonclient.http")
    artifact = optimized[0] / "out" / "artifact"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scored, called = run("score.py", artifact), run("call.py", artifact, port)
    assert scored[0] == "user: int64 (), request"
    best = [line for lines in (scored, called) for line in lines if line.startswith("best candidates: [")]
    assert len(best) == 2 and best[0] == best[1]


@pytest.mark.parametrize("program", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_is_small(program: str) -> None:
    assert len((EXAMPLES / program).read_text().splitlines()) <= 60
