"""Input, its halves, and the checks that stand between a caller's arrays and a model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.errors import InputError
from burnish.inputs import Half, Input, check_array, check_names, rows_of


def whole(spec):
    return Half(spec.name, "candidate", spec.dtype, spec.shape, None)


def test_an_input_of_one_side_is_one_half():
    assert Input("x", shape=3, side="request").halves == (Half("x", "request", "float32", (3,), None),)
    assert Input("x", shape=(2,), side=["candidate"] * 2).halves == (Half("x", "candidate", "float32", (2,), None),)


def test_a_mixed_input_has_the_request_half_first():
    halves = Input("x", "int64", (3, 2), ["candidate", "request", "candidate"]).halves
    assert halves == (Half("x", "request", "int64", (1, 2), (1,)), Half("x", "candidate", "int64", (2, 2), (0, 2)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": ""}, "an input has no name"),
        ({"name": "x", "dtype": "int8"}, "input 'x' has dtype 'int8'. Use one of float32"),
        ({"name": "x", "shape": (2, 0)}, r"input 'x' has shape \(2, 0\): every dimension behind the rows must be at least 1"),
        ({"name": "x", "side": "item"}, "input 'x' has side 'item'. Use 'request' or 'candidate'"),
        ({"name": "x", "shape": (2,), "side": ["request"] * 3}, r"input 'x' has 3 sides for shape \(2,\). Give one for all"),
        ({"name": "x", "cardinality": [3]}, r"input 'x' has 1 cardinalities for shape \(\)"),
        (
            {"name": "x", "dtype": "int64", "cardinality": 0},
            "input 'x' has cardinality 0. It is the number of ids, 0 among them: at least 1",
        ),
    ],
)
def test_an_input_that_makes_no_sense_is_refused_by_a_sentence(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        Input(**arguments)


def test_cardinalities_of_numpy_become_python_numbers():
    assert Input("x", "int64", (2,), cardinality=np.array([3, 4])).cardinality == (3, 4)
    assert type(Input("x", "int64", cardinality=np.int64(3)).cardinality) is int


@settings(derandomize=True, deadline=None)
@given(st.data())
def test_check_array_refuses_exactly_the_ids_outside_their_cardinality(data):
    columns = data.draw(st.integers(1, 4))
    dtype = data.draw(st.sampled_from(["int64", "int32", "float32"]))
    bounds = data.draw(st.lists(st.one_of(st.none(), st.integers(1, 6)), min_size=columns, max_size=columns))
    values = data.draw(st.lists(st.lists(st.integers(-2, 7), min_size=columns, max_size=columns), min_size=0, max_size=5))
    array = np.array(values, dtype).reshape(-1, columns)
    spec = Input("x", dtype, (columns,), cardinality=bounds)
    bad = [(i, j) for i, row in enumerate(values) for j, v in enumerate(row) if bounds[j] is not None and not 0 <= v < bounds[j]]
    if not bad:
        check_array(spec, whole(spec), array)
    else:
        i, j = bad[0]
        with pytest.raises(InputError, match=rf"at row {i}, column {j}; ids there lie in \[0, {bounds[j]}\)"):
            check_array(spec, whole(spec), array)


def test_a_column_is_named_as_in_the_whole_input():
    spec = Input("cat", "int64", (3,), ["candidate", "request", "candidate"], 5)
    with pytest.raises(InputError, match=r"input 'cat' has id 9 at row 1, column 2; ids there lie in \[0, 5\)"):
        check_array(spec, spec.halves[1], np.array([[0, 1], [2, 9]]))


def test_nan_is_no_id_but_a_float_column_without_ids_may_hold_it():
    spec = Input("x", "float32", (2,), cardinality=(None, 5))
    check_array(spec, whole(spec), np.array([[np.nan, 1]], np.float32))
    with pytest.raises(InputError, match="input 'x' has id nan at row 0, column 1"):
        check_array(spec, whole(spec), np.array([[1, np.nan]], np.float32))


def test_a_scalar_input_and_one_with_axes_behind_its_columns_are_checked_too():
    with pytest.raises(InputError, match=r"input 'x' has id -1 at row 1; ids there lie in \[0, 4\)"):
        check_array(Input("x", "int64", cardinality=4), Half("x", "candidate", "int64", (), None), np.array([3, -1]))
    spec = Input("x", "int64", (2, 3), cardinality=[9, 2])
    array = np.ones((2, 2, 3), np.int64)
    check_array(spec, whole(spec), array)
    array[1, 1, 2] = 2
    with pytest.raises(InputError, match="input 'x' has id 2 at row 1, column 1"):
        check_array(spec, whole(spec), array)


def test_wrong_dtypes_and_shapes_are_told_with_what_to_do():
    spec = Input("x", "float32", (2,))
    with pytest.raises(InputError, match=r"input 'x' has dtype float64, expected float32. Convert it with .astype\('float32'\)"):
        check_array(spec, whole(spec), np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"input 'x' has shape \(3,\), expected \(rows, 2\)"):
        check_array(spec, whole(spec), np.zeros(3, np.float32))


def test_a_table_has_every_input_no_other_and_one_number_of_rows():
    specs = (Input("a"), Input("b", shape=2))
    a, b = np.zeros(3, np.float32), np.zeros((3, 2), np.float32)
    assert rows_of(specs, {"a": a, "b": b}) == 3
    with pytest.raises(InputError, match="the rows lack input 'b'; they have 'a'"):
        rows_of(specs, {"a": a})
    with pytest.raises(InputError, match="the request have 'c', which is not an input there; the inputs are 'a', 'b'"):
        check_names(specs, {"a": a, "b": b, "c": a}, "the request")
    with pytest.raises(InputError, match="the inputs have different numbers of rows: a 3, b 2"):
        rows_of(specs, {"a": a, "b": b[:2]})
