"""Observers see every row, remember a bounded sample, and name rows they cannot use."""

import warnings

import numpy as np
import pytest

from burnish.errors import CalibrationWarning, InputError, RecipeError
from burnish.graph.node import Graph, Node, input_node
from burnish.graph.ops import Op
from burnish.inputs import Input
from burnish.quantize import observe as module
from burnish.quantize.observe import Observer, observe

rng = np.random.default_rng(0)


def test_an_observer_fed_in_pieces_knows_what_one_fed_at_once_knows():
    values = rng.normal(size=(10_007, 5)).astype(np.float32)
    whole, pieces = Observer(5), Observer(5)
    whole.see(values)
    for piece in np.array_split(values, 13):
        pieces.see(piece)
    for one in (whole, pieces):
        assert one.count == 10_007
        assert (one.low == values.min(axis=0)).all() and (one.high == values.max(axis=0)).all()
    assert (whole.sample == pieces.sample).all() and module.SAMPLE / 2 < len(whole.sample) <= module.SAMPLE


def test_the_sample_is_out_of_step_with_rows_that_repeat():
    observer = Observer(1)
    observer.see((np.arange(40_000, dtype=np.float32) % 128)[:, None])
    share = np.bincount(observer.sample[:, 0].astype(int), minlength=128) / len(observer.sample)
    assert share.max() < 2 / 128 and share.min() > 0.5 / 128


def test_the_sample_of_a_wide_value_is_bounded_in_bytes():
    observer = Observer(20_000)
    for _ in range(3):
        observer.see(np.ones((200, 20_000), np.float32))
    assert 64 <= len(observer.sample) <= module.SAMPLE_BYTES // (4 * 20_000)


def test_vectors_behind_the_rows_are_observed_by_their_last_axis():
    observer = Observer(2)
    observer.see(np.arange(12, dtype=np.float32).reshape(2, 3, 2))
    assert observer.count == 6 and observer.high.tolist() == [10, 11]


def _graph() -> tuple[Graph, Node]:
    x = Input("x", "float32", (3,))
    node = Node(Op.LOG, (input_node(x),))
    return Graph([x], {"y": node}), node


def test_observe_taps_a_value_inside_the_graph_over_all_batches():
    graph, node = _graph()
    x = rng.uniform(1, 2, (2 * module.BATCH + 5, 3)).astype(np.float32)
    seen = observe(graph, [node], {"x": x})[node]
    assert seen.count == len(x) and (seen.high == np.log(x).max(axis=0)).all()


def test_too_few_rows_are_refused():
    graph, node = _graph()
    with pytest.raises(
        RecipeError, match=r"5 calibration rows are too few to know the range of a value; 16 are the least\. Give a few thousand"
    ):
        observe(graph, [node], {"x": np.ones((5, 3), np.float32)})


def test_rows_too_few_to_settle_the_ranges_are_warned_of():
    graph, node = _graph()
    with pytest.warns(
        CalibrationWarning,
        match=r"^4,000 calibration rows are too few to tell whether the ranges of .* have settled\. Give at least 4,096$",
    ):
        assert not observe(graph, [node], {"x": np.ones((4000, 3), np.float32)}).settled


def test_ranges_that_go_on_growing_are_warned_of_and_those_that_settle_are_not():
    graph, node = _graph()
    growing = rng.uniform(1, 2, (9000, 3)).astype(np.float32)
    growing[3], growing[7] = np.exp(3), np.exp(40)  # of the fourth and the eighth of nine strides
    with pytest.warns(
        CalibrationWarning, match=r"have not settled: twice as many rows, up to 9,000, still widened them by \d+% on average"
    ):
        assert not observe(graph, [node], {"x": growing}).settled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert observe(graph, [node], {"x": rng.uniform(1, 2, (9000, 3)).astype(np.float32)}).settled


def test_a_row_that_is_not_finite_is_named_with_its_input():
    graph, node = _graph()
    x = np.ones((3000, 3), np.float32)
    x[2500, 1] = np.nan
    with pytest.raises(InputError, match=r"calibration row 2500 of input 'x' holds NaN or an infinity\. Remove such rows, or fill them"):
        observe(graph, [node], {"x": x})


def test_a_value_that_turns_infinite_inside_the_model_is_told_from_a_bad_input():
    graph, node = _graph()
    x = np.ones((20, 3), np.float32)
    x[7] = 0
    with pytest.raises(
        InputError, match=r"calibration row 7 makes LOG\[3\] float32 candidate NaN or infinite, though its inputs are finite"
    ):
        observe(graph, [node], {"x": x})


def test_rows_that_do_not_fit_the_inputs_are_refused():
    graph, node = _graph()
    with pytest.raises(InputError, match=r"the rows lack input 'x'"):
        observe(graph, [node], {})
