"""docs/adding_an_op.md tells of the tree as it is, and every op has its row wherever the page says so."""

import re
from pathlib import Path

import pytest

from burnish.graph.interpret import EVALUATE
from burnish.graph.ops import OPS, Op
from burnish.testing import op_cases

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"^```diff\n--- (\S+)\n(.*?)^```", (ROOT / "docs" / "adding_an_op.md").read_text(), re.S | re.M)


def test_the_page_shows_changes_of_eight_files():
    assert len(BLOCKS) == len({name for name, _ in BLOCKS}) == 8


@pytest.mark.parametrize(("name", "change"), BLOCKS)
def test_the_lines_that_the_page_changes_are_there_and_those_it_adds_are_not(name, change):
    lines = (ROOT / name).read_text().splitlines()
    for line in change.splitlines():
        kind, text = line[0], line[1:]
        assert (text in lines) is (kind in " -"), f"{name}: {text!r}"


@pytest.mark.parametrize("op", Op, ids=lambda op: op.name)
def test_an_op_has_its_row_its_meaning_a_sentence_and_a_case(op):
    assert OPS[op].doc
    assert op in EVALUATE or op is Op.INPUT
    assert any(node.op is op for graph in op_cases().values() for node in graph.order)


@pytest.mark.parametrize("op", [op for op in Op if op not in (Op.INPUT, Op.WEIGHT)], ids=lambda op: op.name)
def test_an_op_has_its_row_in_the_torch_twin(op):
    source = (ROOT / "src/burnish/graph/to_torch.py").read_text()  # read, not imported: unit tests need no torch
    assert re.search(rf"^    Op\.{op.name}: ", source[source.index("TWIN: dict") :], re.M)
