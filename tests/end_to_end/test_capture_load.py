"""load_model: what a job file may name as its model, and the one sentence for each way that it cannot be used."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from burnish.capture import capture, load_model  # noqa: E402
from burnish.errors import CaptureError  # noqa: E402
from burnish.inputs import Input  # noqa: E402

RANKER = """
import torch
from parts import Linear

class Ranker(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.out = Linear(3, 1)

    def forward(self, x):
        return self.out(x)

def load():
    return Ranker()

def broken():
    return Ranker(7)

def number():
    return 7
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ranker.py").write_text(RANKER)
    (tmp_path / "parts.py").write_text("from torch.nn import Linear\n")
    return tmp_path


def test_a_function_of_a_file_is_called_with_its_own_folder_importable(folder):
    model = load_model("ranker.py:load", folder)
    assert isinstance(model, torch.nn.Module)
    assert capture(f"{folder}/ranker.py:load", [Input("x", "float32", (3,))]).outputs[0][1].shape == (1,)


def test_an_onnx_file_is_named_and_not_read(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"")
    assert load_model("m.onnx", tmp_path) == tmp_path / "m.onnx"


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("ranker.py:loads", "{0}/ranker.py has no function 'loads'; it has Ranker, load, broken, number"),
        ("ranker.py:torch", "'torch' in {0}/ranker.py is a module, not a function that returns the model"),
        ("ranker.py:number", "ranker.py:number() returned an object of type int, expected an nn.Module"),
        (
            "ranker.py:broken",
            "ranker.py:broken() failed: TypeError: Ranker.__init__() takes 1 positional argument but 2 were given at ranker.py:17",
        ),
        ("ranker.py", "'ranker.py' does not say what to call. Write file.py:function, where function() returns the model"),
        ("gone.py:load", "no model file {0}/gone.py. Relative paths start at {0}"),
        ("model.bin", "'model.bin' is not a model burnish reads. Give a .pt2 or .onnx file, or file.py:function"),
        ("bad.py:load", "{0}/bad.py does not import: ModuleNotFoundError: No module named 'nowhere_to_be_found' at bad.py:2"),
        ("typo.py:load", "{0}/typo.py does not import: SyntaxError: expected ':' at typo.py:1"),
    ],
)
def test_each_way_that_a_model_cannot_be_loaded_has_its_sentence(folder, spec, sentence):
    (folder / "bad.py").write_text("import torch\nimport nowhere_to_be_found\n")
    (folder / "typo.py").write_text("def load()\n")
    with pytest.raises(CaptureError) as caught:
        load_model(spec, folder)
    assert str(caught.value) == sentence.format(folder)


def test_a_damaged_program_is_told(tmp_path):
    (tmp_path / "m.pt2").write_bytes(b"not a program")
    with pytest.raises(CaptureError, match=r"m\.pt2 is not a program that torch\.export\.load reads: "):
        load_model("m.pt2", tmp_path)


def test_what_is_no_model_is_told():
    with pytest.raises(CaptureError, match=r"^capture takes an nn\.Module, an ExportedProgram or a path, met int$"):
        capture(7, [Input("x")])
