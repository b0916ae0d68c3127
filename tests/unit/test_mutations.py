"""The table of deliberate faults names text and tests that are there; `python tests/mutations.py` puts the faults in."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("mutations", ROOT / "tests" / "mutations.py")
assert _spec and _spec.loader
mutations = importlib.util.module_from_spec(_spec)
sys.modules["mutations"] = mutations
_spec.loader.exec_module(mutations)


@pytest.mark.parametrize("fault", mutations.FAULTS, ids=lambda fault: fault.name)
def test_a_deliberate_fault_can_be_put_in_and_its_tests_exist(fault):
    text = (ROOT / "src" / "burnish" / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.right) == 1
    for test in fault.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8") if name else (ROOT / file).is_file()
