"""What a scorer takes, refuses and gives back. On the interpreter as a backend."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import burnish
from burnish.backends.table import BACKENDS
from burnish.errors import ArtifactError, InputError
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, scalar
from burnish.graph.ops import Op
from burnish.inputs import Input
from burnish.recipe import Recipe
from burnish.runtime.scorer import Scorer
from burnish.testing import as_request, dcn_v2, mmoe, one_request, rows
from burnish.testing.interpreter_backend import InterpreterEngine

SPECS = (
    Input("dense", "float32", (3,), ("request", "candidate", "request")),
    Input("user", "int64", (), "request", 10),
    Input("item", "int32", (2,), "candidate", (5, None)),
    Input("flag", "bool", (), "candidate"),
)


@pytest.fixture(autouse=True, scope="module")
def interpreter():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, "interpreter", "burnish.testing.interpreter_backend:Interpreter")
        yield


def scorer_of(graph):
    return Scorer(burnish.compile(graph, Recipe(backend="interpreter")))


@pytest.fixture(scope="module")
def scorer():
    """Adds up everything it is given."""
    values = [Node(Op.CAST, (input_node(spec),), dtype="float32") for spec in SPECS]
    sums = [Node(Op.SUM, (v,), axes=(0,)) if v.shape else v for v in values]
    total = sums[0]
    for value in sums[1:]:
        total = Node(Op.ADD, (total, value))
    return scorer_of(Graph(SPECS, {"score": Node(Op.RESHAPE, (total,), shape=(1,))}))


def table(n=4):
    return {
        "dense": np.ones((n, 3), np.float32),
        "user": np.full(n, 2, np.int64),
        "item": np.tile(np.array([[4, 100]], np.int32), (n, 1)),
        "flag": np.arange(n) % 2 == 0,
    }


def call(n=4):
    request = {"dense": np.ones(2, np.float32), "user": np.int64(2)}
    return request, {"dense": np.ones((n, 1), np.float32), "item": table(n)["item"], "flag": table(n)["flag"]}


def test_rows_and_a_request_score_alike(scorer):
    want = np.array([110, 109, 110, 109], np.float32)
    for scores in (scorer.rows(table()), scorer(*call()), scorer(request=call()[0], candidates=call()[1])):
        assert scores.dtype == np.float32 and scores.shape == (4,)
        np.testing.assert_array_equal(scores, want)


def test_it_says_what_it_takes_and_gives(scorer):
    assert scorer.inputs == SPECS
    assert [(output.name, output.dtype, output.shape) for output in scorer.outputs] == [("score", "float32", (1,))]


def test_what_becomes_a_fitting_array_is_taken(scorer):
    request, candidates = call()
    assert scorer({"dense": request["dense"], "user": np.array(2)}, candidates).tolist() == scorer(request, candidates).tolist()
    strided = {name: np.repeat(array, 2, axis=0)[::2] for name, array in table().items()}
    assert not strided["dense"].flags.c_contiguous
    np.testing.assert_array_equal(scorer.rows(strided), scorer.rows(table()))
    fortran = {**table(), "dense": np.asfortranarray(table()["dense"])}
    np.testing.assert_array_equal(scorer.rows(fortran), scorer.rows(table()))
    assert scorer.rows({**table(), "flag": [True, False, True, False]}).shape == (4,)


def test_no_candidates_no_scores(scorer):
    for scores in (scorer.rows(table(0)), scorer(*call(0))):
        assert scores.shape == (0,) and scores.dtype == np.float32
    assert {name: array.shape for name, array in scorer_of(mmoe(2, 3, 2, 2, (3,), (2,), cardinality=9)).rows(
        {"dense": np.zeros((0, 2), np.float32), "cat": np.zeros((0, 3), np.int64)}
    ).items()} == {"click": (0,), "buy": (0,)}  # fmt: skip


def test_several_outputs_come_back_by_name():
    graph = mmoe(2, 3, 2, 2, (3,), (2,), cardinality=9)
    given = rows(graph, 6)
    scores = scorer_of(graph).rows(given)
    assert list(scores) == ["click", "buy"]
    for name, want in interpret(graph, given).items():
        np.testing.assert_array_equal(scores[name], want.reshape(6))


def test_an_output_of_several_values_keeps_its_shape_and_float64_becomes_float32():
    x = input_node(Input("x", "float64", (3,)))
    graph = Graph([Input("x", "float64", (3,))], {"y": Node(Op.MUL, (x, scalar(2.0, "float64")))})
    scores = scorer_of(graph).rows({"x": np.ones((5, 3))})
    assert scores.shape == (5, 3) and scores.dtype == np.float32


def test_a_model_of_the_request_alone_gives_one_score():
    x = input_node(Input("x", "float32", (3,), "request"))
    scorer = scorer_of(Graph([Input("x", "float32", (3,), "request")], {"y": Node(Op.SUM, (x,), axes=(0,))}))
    assert scorer(request={"x": np.ones(3, np.float32)}).tolist() == [3.0]
    assert scorer.rows({"x": np.ones((2, 3), np.float32)}).tolist() == [3.0, 3.0]


ROWS = {
    "missing": (lambda t: t.pop("flag"), r"^the rows lack input 'flag'; they have 'dense', 'user', 'item'$"),
    "extra": (
        lambda t: t.update(age=np.zeros(4)),
        r"^the rows have 'age', which is not an input there; the inputs are 'dense', 'user', 'item', 'flag'$",
    ),
    "misnamed": (lambda t: t.update(item_id=t.pop("item")), r"^the rows lack input 'item'; they have 'dense', 'user', 'flag', 'item_id'$"),
    "dtype": (
        lambda t: t.update(dense=t["dense"].astype(np.float64)),
        r"^input 'dense' has dtype float64, expected float32\. Convert it with \.astype\('float32'\)$",
    ),
    "shape": (lambda t: t.update(dense=t["dense"][:, :2]), r"^input 'dense' has shape \(4, 2\), expected \(rows, 3\)$"),
    "no rows": (lambda t: t.update(user=np.int64(1)), r"^input 'user' has shape \(\), expected \(rows\)$"),
    "counts": (
        lambda t: t.update(user=t["user"][:3]),
        r"^the rows have different numbers of rows: dense 4, user 3\. Give every input the same number of rows$",
    ),
    "id above": (lambda t: t["item"].__setitem__((2, 0), 5), r"^input 'item' has id 5 at row 2, column 0; ids there lie in \[0, 5\)$"),
    "id below": (lambda t: t["user"].__setitem__(3, -1), r"^input 'user' has id -1 at row 3; ids there lie in \[0, 10\)$"),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_that_do_not_fit_get_one_sentence(scorer, case):
    spoil, sentence = ROWS[case]
    given = table()
    spoil(given)
    with pytest.raises(InputError, match=sentence):
        scorer.rows(given)


REQUESTS = {
    "missing": (lambda r, c: r.pop("user"), r"^the request values lack input 'user'; they have 'dense'$"),
    "candidates missing": (lambda r, c: c.pop("item"), r"^the candidates lack input 'item'; they have 'dense', 'flag'$"),
    "on the wrong side": (
        lambda r, c: c.update(user=np.full(4, 2, np.int64)),
        r"^the candidates have 'user', which is not an input there; the inputs are 'dense', 'item', 'flag'$",
    ),
    "request with rows": (
        lambda r, c: r.update(user=np.array([2], np.int64)),
        r"^input 'user' has shape \(1,\) in the request values, expected \(\): a request has one row for all$",
    ),
    "all columns": (
        lambda r, c: r.update(dense=np.ones(3, np.float32)),
        r"^input 'dense' has shape \(3,\) in the request values, expected \(2,\)",
    ),
    "counts": (lambda r, c: c.update(flag=c["flag"][:2]), r"^the candidates have different numbers of rows: dense 4, item 4, flag 2\."),
    "id": (lambda r, c: r.update(user=np.int64(10)), r"^input 'user' has id 10 at row 0; ids there lie in \[0, 10\)$"),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_requests_that_do_not_fit_get_one_sentence(scorer, case):
    spoil, sentence = REQUESTS[case]
    request, candidates = call()
    spoil(request, candidates)
    with pytest.raises(InputError, match=sentence):
        scorer(request, candidates)


def test_a_column_without_bounds_takes_any_number(scorer):
    given = table()
    given["item"][:, 1] = [-1, 2**31 - 1, -(2**31), 0]
    assert scorer.rows(given).shape == (4,)


def test_ids_are_left_to_an_engine_that_checks_them(scorer, monkeypatch):
    monkeypatch.setattr(InterpreterEngine, "checks_ids", True, raising=False)
    with Scorer(scorer.artifact) as trusting:
        given = {**table(), "user": np.full(4, 99, np.int64)}
        assert trusting.rows(given).shape == (4,)


def test_engines_that_cannot_run_side_by_side_are_called_in_turn(scorer, monkeypatch):
    inside, most = 0, 0

    def slow(self, given, n):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.01)
        inside -= 1
        return {"score": np.zeros((n, 1), np.float32)}

    monkeypatch.setattr(InterpreterEngine, "rows", slow)
    for concurrent in (True, False):
        monkeypatch.setattr(InterpreterEngine, "concurrent", concurrent)
        most = 0
        with Scorer(scorer.artifact) as shared:
            threads = [threading.Thread(target=shared.rows, args=(table(),)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert (most > 1) == concurrent


def test_a_mixed_input_is_given_in_both_mappings():
    graph = dcn_v2(4, 5, 2, 1, (3,), 20, mixed=True)
    given = one_request(graph, rows(graph, 7))
    request, candidates = as_request(graph, given)
    assert request["cat"].shape == (2,) and candidates["cat"].shape == (7, 3)
    scorer = scorer_of(graph)
    np.testing.assert_allclose(scorer(request, candidates), scorer.rows(given), rtol=1e-6)


def test_threads_are_at_least_one(scorer):
    with pytest.raises(InputError, match=r"^a scorer cannot have 0 threads\. Give at least 1$"):
        Scorer(scorer.artifact, threads=0)


def test_loading_nothing_says_so(tmp_path):
    with pytest.raises(ArtifactError, match="there is no artifact"):
        burnish.load(tmp_path / "nothing")


def test_arrays_at_odd_addresses_are_copied_before_an_engine_sees_them(scorer, monkeypatch):
    """As a view into a network buffer may be; the engines' loads would be undefined there. Found by fuzzing."""
    met = []
    rows_of_engine = InterpreterEngine.rows
    monkeypatch.setattr(
        InterpreterEngine, "rows", lambda self, table, n: met.extend(table.values()) or rows_of_engine(self, table, n), raising=True
    )
    given = table()
    want = scorer.rows(given)
    odd = {k: np.frombuffer(b"x" + v.tobytes(), np.uint8)[1:].view(v.dtype).reshape(v.shape) for k, v in given.items()}
    assert not all(array.flags.aligned for array in odd.values())
    np.testing.assert_array_equal(scorer.rows(odd), want)
    assert met and all(array.flags.aligned and array.flags.c_contiguous for array in met)
