"""An artifact is replaced under the feet of scorers that have it open: they go on, and new ones get the new one."""

from __future__ import annotations

import numpy as np
import pytest

import burnish
from burnish.backends.table import backend
from burnish.graph.interpret import interpret
from burnish.testing import dcn_v2, rows


@pytest.mark.parametrize("name", ["native", "onnxruntime", "openvino"])
def test_an_open_scorer_keeps_the_artifact_that_was_replaced(name, tmp_path):
    absent = backend(name).missing()
    if absent:
        pytest.skip(absent)
    first, second = dcn_v2(3, 4, 4, 1, (16, 8), 50, seed=1), dcn_v2(3, 4, 4, 2, (9,), 50, seed=2)
    table = rows(first, 20)
    old = burnish.load(burnish.compile(first, "fp32", backend=name).save(tmp_path / "ranker").path)
    burnish.compile(second, "fp32", backend=name).save(tmp_path / "ranker").verify()
    with old, burnish.load(tmp_path / "ranker") as new:
        np.testing.assert_allclose(old.rows(table), interpret(first, table)["score"].ravel(), atol=1e-5)
        np.testing.assert_allclose(new.rows(table), interpret(second, table)["score"].ravel(), atol=1e-5)
