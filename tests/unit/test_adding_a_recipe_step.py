"""docs/adding_a_recipe_step.md, followed literally on a copy of the sources: its step is read from a file, applied and right."""

from __future__ import annotations

import os
import subprocess
import sys

from follow_page import followed

TRY = """
from pathlib import Path
import numpy as np
from burnish.errors import RecipeError
from burnish.graph.interpret import interpret
from burnish.quantize.mantissa import shortened
from burnish.recipe import apply, recipe
from burnish.testing.builders import rows
from burnish.testing.cases import op_cases

Path("short.toml").write_text('[[steps]]\\nstep = "ShortWeights"\\nbits = 6\\n')
graph = op_cases()["linear"]
table = rows(graph, 37, seed=4)
before, after = interpret(graph, table)["y"], interpret(apply(graph, recipe("short.toml")), table)["y"]
assert 0 < np.abs(after - before).max() < 2.0**-4 * np.abs(before).max()
values = np.random.default_rng(0).standard_normal(1000, np.float32)
assert np.all(np.abs(shortened(values, 6) - values) <= 2.0**-7 * np.abs(values))
np.testing.assert_array_equal(shortened(shortened(values, 6), 6), shortened(values, 6))
np.testing.assert_array_equal(shortened(values, 23), values)
assert [type(step).__name__ for step in recipe("fp32-short").steps][-2:] == ["ShortWeights", "FactorRequest"]
Path("short.toml").write_text('[[steps]]\\nstep = "ShortWeights"\\nbits = 0\\n')
try:
    recipe("short.toml")
except RecipeError as error:
    assert "step ShortWeights has bits 0. Use 1 to 23" in str(error), error
else:
    raise AssertionError("0 bits were taken")
print("read, applied and right")
"""


def test_the_pages_step_is_read_applied_and_right(tmp_path):
    assert followed("adding_a_recipe_step.md", tmp_path) == (1, 2)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    run = subprocess.run([sys.executable, "-c", TRY], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "read, applied and right", run.stderr[-2000:] + run.stdout
