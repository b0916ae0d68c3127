"""The table of deliberate faults names text and tests that are there; `python tests/mutations.py` puts the faults in."""

from __future__ import annotations

from pathlib import Path

import pytest

from mutations import FAULTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_deliberate_fault_can_be_put_in_and_its_tests_exist(fault):
    text = (ROOT / "src" / "burnish" / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.right) == 1
    for test in fault.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8") if name else (ROOT / file).is_file()
