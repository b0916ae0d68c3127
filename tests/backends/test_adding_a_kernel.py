"""docs/adding_a_kernel.md, followed literally on a copy of the sources: the kernel it adds is built, used and right."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from burnish.backends.native import Native

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "adding_a_kernel.md").read_text()
FILES = re.findall(r"^```python\n# (\S+)\n(.*?)^```", PAGE, re.S | re.M)
CHANGES = re.findall(r"^```diff\n--- (\S+)\n(.*?)^```", PAGE, re.S | re.M)
TRY = """
import tempfile
from pathlib import Path
import numpy as np
from burnish.backends.native import Native
from burnish.graph.interpret import interpret
from burnish.host import Host
from burnish.testing.builders import rows
from burnish.testing.cases import op_cases

for name in ("cumsum", "cumprod"):
    graph = op_cases()[name]
    out = Path(tempfile.mkdtemp())
    program = Native().build(graph, Host.here(), out)
    assert f"bn_running_f32_{name}" in next(out.rglob("*.cpp")).read_text()
    table = rows(graph, 53, seed=4)
    got = Native().open(out, program, graph.inputs, 1).rows(table, 53)["y"]
    np.testing.assert_allclose(got, interpret(graph, table)["y"], rtol=2e-6, atol=1e-6)
print("built, used and right")
"""


def changed(text: str, change: str) -> str:
    """The text with the page's lines: each run of lines that go or stay is found, and replaced by those that stay or come."""
    lines = text.splitlines()
    at = 0
    for line in change.splitlines():
        kind, told = line[0], line[1:]
        if kind == "+":
            lines.insert(at, told)
            at += 1
        else:
            at = lines.index(told)
            if kind == "-":
                del lines[at]
            else:
                at += 1
    return "\n".join(lines) + "\n"


def test_the_pages_kernel_is_built_used_and_right(tmp_path):
    if Native().missing():
        pytest.skip(str(Native().missing()))
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    assert len(FILES) == 1 and len(CHANGES) == 1
    for name, text in FILES:
        (tmp_path / name).write_text(text)
    for name, change in CHANGES:
        (tmp_path / name).write_text(changed((tmp_path / name).read_text(), change))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    done = subprocess.run([sys.executable, "-c", TRY], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "built, used and right" in done.stdout
