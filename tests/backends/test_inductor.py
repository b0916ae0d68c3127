"""Inductor's packages, held against the interpreter. A build takes a C++ compiler tens of seconds, so there are few."""

from __future__ import annotations

import pytest

import burnish
from burnish.backends.inductor import Inductor
from burnish.errors import BuildError
from burnish.recipe import Recipe
from burnish.testing import op_cases
from burnish.testing.backend_cases import BackendCases

pytest.importorskip("torch", reason="torch is not installed")


class TestInductor(BackendCases):
    refused = {
        "linear in bfloat16": r"inductor has no bfloat16 linear that accumulates in float32 on a CPU; the graph asks for it at LINEAR\[9\]",
        "linear in float16": r"inductor has no float16 linear",
        "cast to bfloat16": r"inductor drops the rounding of CAST\[7\] bfloat16 candidate, a CAST to bfloat16",
    }
    test_models_agree_with_the_interpreter_at_every_batch_as_rows_and_as_a_request = None
    test_int8_models_agree_with_the_interpreter = test_random_graphs_agree_with_the_interpreter = None

    @pytest.fixture
    def backend(self):
        return Inductor()


def test_a_missing_compiler_is_one_sentence(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("burnish.backends.inductor.shutil.which", lambda name: None)
    with pytest.raises(
        BuildError, match=r"^the backend inductor needs a C\+\+ compiler, and there is no g\+\+ or clang\+\+ here\. Install one"
    ):
        burnish.compile(op_cases()["relu"], Recipe(backend="inductor"))
