"""Capture from torch: every family of ranker gives a graph that computes what the module computes; what cannot be is refused by name."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from capture_models import MODELS, build  # noqa: E402

from burnish.capture import capture  # noqa: E402

torch.set_num_threads(1)


@pytest.mark.parametrize("name", MODELS)
def test_a_captured_ranker_agrees_with_its_module_at_batches_1_2_37_and_128(name):
    model, inputs = build(name)
    graph = capture(model, inputs)  # raises when any batch differs
    assert {spec.name for spec in graph.inputs} == {spec.name for spec in inputs}
    assert graph.outputs and all(node.side == "candidate" for _, node in graph.outputs)
