"""A few thousand cases of benchmarks/serving_fuzz.py; and that it would see a server that answers badly."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("serving_fuzz", BENCHMARKS / "serving_fuzz.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_damaged_requests_of_both_protocols_are_answered_with_a_sentence(fuzz):
    found = fuzz.run(60.0, 4000, seed=11)
    assert found["cases"] == 4000
    assert found["answers"]["REST 200"] > 0 and found["answers"]["REST 400"] > 1000


def test_an_answer_that_is_no_sentence_ends_the_run(fuzz, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("burnt")

    monkeypatch.setattr(fuzz.protocol, "outline", broken)
    with pytest.raises(SystemExit, match="answered 500"):
        fuzz.run(60.0, 4000)
