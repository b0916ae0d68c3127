"""The worked example of docs/adding_a_backend.md, held to the suite, and the suite held to a fault."""

from __future__ import annotations

from pathlib import Path

import pytest

import burnish
from burnish.backends.table import BACKENDS, backend
from burnish.errors import BuildError
from burnish.recipe import Recipe
from burnish.testing import interpreter_backend, mmoe
from burnish.testing.backend_cases import BackendCases
from burnish.testing.interpreter_backend import Interpreter, InterpreterEngine

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_backend.md"


@pytest.fixture(autouse=True)
def row(monkeypatch):
    monkeypatch.setitem(BACKENDS, "interpreter", "burnish.testing.interpreter_backend:Interpreter")


class TestInterpreter(BackendCases):
    @pytest.fixture
    def backend(self):
        return Interpreter()


def test_the_page_shows_the_file():
    code = Path(interpreter_backend.__file__).read_text()
    shown = code[code.index("from __future__") :]
    assert shown in PAGE.read_text() and len(shown.splitlines()) < 60


def test_a_wrong_engine_is_stopped_at_build_with_the_numbers(monkeypatch):
    right = InterpreterEngine.request
    monkeypatch.setattr(InterpreterEngine, "request", lambda self, r, c, n: {k: y + 0.01 for k, y in right(self, r, c, n).items()})
    sentence = (
        r"^interpreter does not compute what the graph says for a request: output 'click', \(64,\), differs from the interpreter's by "
        r"0\.01 at most and 0\.01 on average, relative to its largest value; 0\.0001 and 1e-05 are allowed$"
    )
    with pytest.raises(BuildError, match=sentence):
        burnish.compile(mmoe(2, 3, 2, 2, (3,), (2,)), Recipe(backend="interpreter"))


def test_an_engine_that_fails_on_what_it_built_is_one_sentence(monkeypatch):
    def fail(self, table, n):
        raise RuntimeError("no kernel for Erf\nat line 3")

    monkeypatch.setattr(InterpreterEngine, "rows", fail)
    with pytest.raises(BuildError, match=r"^interpreter cannot run what it built: RuntimeError: no kernel for Erf$"):
        burnish.compile(mmoe(2, 3, 2, 2, (3,), (2,)), Recipe(backend="interpreter"))


def test_an_unknown_backend_is_named_with_those_there_are():
    known = "native, onnxruntime, openvino, inductor, executorch, cuda, eager, interpreter"
    with pytest.raises(BuildError, match=rf"^no backend 'tvm'\. Use one of {known}$"):
        backend("tvm")
