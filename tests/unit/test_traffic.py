"""Calls are rows of the data: halves, dtypes, popularity, the candidates of a request first, other rows each time."""

import re

import numpy as np
import pytest

from burnish.errors import InputError, MeasureError
from burnish.inputs import Input
from burnish.measure.traffic import Traffic

INPUTS = [
    Input("dense", "float32", (3,), ["request", "candidate", "request"]),
    Input("user", "int32", (2,), "request"),
    Input("item", "int64", (2,), "candidate", cardinality=1000),
    Input("price", "float64", (), "candidate"),
]


def table(n=600, seed=0):
    random = np.random.default_rng(seed)
    return {
        "dense": random.random((n, 3), np.float32),
        "user": random.integers(0, 50, (n, 2)).astype(np.int32),
        "item": random.integers(0, 1000, (n, 2)),
        "price": random.random(n),
    }


def test_a_call_is_the_halves_of_real_rows_with_their_dtypes():
    rows = table()
    traffic = Traffic.from_rows(INPUTS, rows, candidates=7, calls=20)
    assert len(traffic) == 20
    for i, (request, candidates) in enumerate(traffic):
        assert {name: (a.shape, a.dtype.name) for name, a in request.items()} == {"dense": ((2,), "float32"), "user": ((2,), "int32")}
        assert {name: (a.shape, a.dtype.name) for name, a in candidates.items()} == {
            "dense": ((7, 1), "float32"),
            "item": ((7, 2), "int64"),
            "price": ((7,), "float64"),
        }
        assert all(a.flags.c_contiguous for a in (*request.values(), *candidates.values()))
        of_request, of_candidates = traffic.request_rows[i], traffic.candidate_rows[7 * i : 7 * i + 7]
        np.testing.assert_array_equal(request["dense"], rows["dense"][of_request][[0, 2]])
        np.testing.assert_array_equal(request["user"], rows["user"][of_request])
        np.testing.assert_array_equal(candidates["dense"], rows["dense"][of_candidates][:, [1]])
        np.testing.assert_array_equal(candidates["item"], rows["item"][of_candidates])


def test_the_plain_table_is_the_same_call_with_the_request_repeated():
    rows = table()
    traffic = Traffic.from_rows(INPUTS, rows, candidates=5, calls=4)
    for i in range(4):
        whole = traffic.rows_table(i)
        of_candidates = traffic.candidate_rows[5 * i : 5 * i + 5]
        np.testing.assert_array_equal(whole["dense"][:, [0, 2]], np.tile(rows["dense"][traffic.request_rows[i]][[0, 2]], (5, 1)))
        np.testing.assert_array_equal(whole["dense"][:, 1], rows["dense"][of_candidates][:, 1])
        np.testing.assert_array_equal(whole["user"], np.tile(rows["user"][traffic.request_rows[i]], (5, 1)))
        np.testing.assert_array_equal(whole["price"], rows["price"][of_candidates])
        assert {name: array.dtype for name, array in whole.items()} == {name: array.dtype for name, array in rows.items()}


def test_every_row_is_a_candidate_once_before_any_is_again():
    traffic = Traffic.from_rows(INPUTS, table(600), candidates=50, calls=24)
    np.testing.assert_array_equal(np.bincount(traffic.candidate_rows), np.full(600, 2))


def test_candidates_of_the_same_request_come_first():
    rows = table(600)
    key = np.array([f"basket {i}" for i in np.random.default_rng(1).integers(0, 100, 600)])
    traffic = Traffic.from_rows(INPUTS, rows, request_key=key, candidates=8, calls=100)
    assert len({key[r] for r in traffic.request_rows}) == 100  # each request once
    for i in range(100):
        mine = key[traffic.request_rows[i]]
        own = min(8, int((key == mine).sum()))
        from_table = traffic.candidate_rows[traffic.ends[i] : traffic.ends[i + 1]]
        assert (key[from_table[:own]] == mine).all()
        assert len(set(from_table[:own])) == own


def test_counts_are_drawn_from_those_of_a_trace():
    traffic = Traffic.from_rows(INPUTS, table(), candidates=np.array([1, 1, 1, 40]), calls=400)
    counts = [traffic.count(i) for i in range(400)]
    assert set(counts) == {1, 40} and 60 < counts.count(40) < 140
    assert [len(candidates["price"]) for _, candidates in traffic] == counts


def test_the_same_seed_gives_the_same_calls_and_another_seed_others():
    first, again, other = (Traffic.from_rows(INPUTS, table(), calls=3, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.candidate_rows, again.candidate_rows)
    assert (first.candidate_rows != other.candidate_rows).any()


def test_inputs_all_on_one_side_leave_the_other_empty():
    traffic = Traffic.from_rows([INPUTS[2]], {"item": table()["item"]}, candidates=3, calls=2)
    request, candidates = traffic[-1]
    assert request == {} and list(candidates) == ["item"]
    with pytest.raises(IndexError):
        traffic[2]


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"table": table(0)}, InputError, "there are no rows to make traffic of"),
        ({"candidates": 0}, MeasureError, "traffic needs at least 1 call and 1 candidate in each; met 256 calls and candidates 0"),
        ({"calls": 0}, MeasureError, "traffic needs at least 1 call and 1 candidate in each; met 0 calls and candidates 128"),
        ({"request_key": np.zeros(3)}, InputError, "request_key has shape (3,), expected (600,): one request id a row"),
    ],
)
def test_bad_traffic_gets_one_sentence(change, error, sentence):
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        Traffic.from_rows(**{"inputs": INPUTS, "table": table()} | change)
