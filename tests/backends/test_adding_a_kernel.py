"""docs/adding_a_kernel.md, followed literally on a copy of the sources: the kernel it adds is built, used and right."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from burnish.backends.native import Native
from follow_page import followed

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


def test_the_pages_kernel_is_built_used_and_right(tmp_path):
    if Native().missing():
        pytest.skip(str(Native().missing()))
    assert followed("adding_a_kernel.md", tmp_path) == (1, 1)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    done = subprocess.run([sys.executable, "-c", TRY], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "built, used and right" in done.stdout
