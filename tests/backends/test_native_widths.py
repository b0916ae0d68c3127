"""Linears of every small width, on every instruction set of this machine: a tile's last vectors may hold no output at all."""

from __future__ import annotations

import numpy as np
import pytest

from burnish.backends.native import Native
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, input_node
from burnish.host import ISAS, Host
from burnish.inputs import Input
from burnish.testing import Weights, linear, rows
from burnish.testing.backend_cases import opened

WIDTHS = (1, 2, 3, 4, 6, 8, 9, 12, 15, 16, 17, 20, 24, 31, 32, 40, 48, 64, 72)


@pytest.mark.parametrize("isa", [isa for isa in ISAS if Host.here().runs(isa)])
def test_a_linear_of_any_width_writes_its_own_outputs_and_no_others(isa, tmp_path):
    """Widths that are whole vectors but no whole panel once wrote zeros over the rows after them."""
    absent = Native().missing()
    if absent:
        pytest.skip(absent)
    spec = Input("x", "float32", (7,))
    w, x = Weights(0), input_node(spec)
    graph = Graph([spec], {f"of {n}": linear(x, n, w) for n in WIDTHS})

    class Target(Native):
        def build(self, graph, host, out, threads=1):
            return super().build(graph, Host.target(isa), out, threads)

    with opened(Target(), graph, tmp_path) as engine:
        for n in (1, 2, 5, 48, 64):
            table = rows(graph, n)
            got, want = engine.rows(table, n), interpret(graph, table)
            for name, value in want.items():
                np.testing.assert_allclose(got[name], value, atol=1e-5, err_msg=f"{name}, {n} rows")
