"""What a pass must keep."""

from __future__ import annotations

import numpy as np

from burnish.graph.interpret import interpret, interpret_request
from burnish.graph.node import Graph
from burnish.graph.verify import verify
from burnish.testing.builders import as_request, one_request, rows


def assert_same_function(before: Graph, after: Graph, n: int = 7, seed: int = 3, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Both graphs are valid and give the same outputs, for n random rows and for one request beside n candidates."""
    verify(before)
    verify(after)
    assert before.inputs == after.inputs
    table = rows(before, n, seed)
    want, got = interpret(before, table), interpret(after, table)
    assert list(want) == list(got)
    alone = interpret(before, one_request(before, table))
    beside = interpret_request(after, *as_request(after, table))
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=rtol, atol=atol, err_msg=f"{name}, as rows")
        shown = alone[name][: len(beside[name])]  # a graph without candidates has one row
        np.testing.assert_allclose(beside[name], shown, rtol=rtol, atol=atol, err_msg=f"{name}, as a request")
