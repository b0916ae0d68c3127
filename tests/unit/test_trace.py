"""A trace of the user's: read, refused with a sentence, and offered at other loads with its bursts as long as they were."""

import re

import numpy as np
import pytest

from burnish import trace
from burnish.errors import JobError, MeasureError
from burnish.trace import Trace

pl = pytest.importorskip("polars")


def bursty(seconds=60.0, low=50.0, high=500.0, seed=0):
    """Seconds of arrivals at `low` a second, every tenth second at `high`."""
    random = np.random.default_rng(seed)
    rates = np.where(np.arange(int(seconds)) % 10 == 3, high, low)
    return Trace(np.concatenate([np.sort(random.random(random.poisson(rate))) + i for i, rate in enumerate(rates)]) * 1e6)


def per_second(times_us):
    return np.bincount((times_us / 1e6).astype(int))


def test_at_its_own_rate_a_trace_is_replayed_as_it_is():
    one = bursty()
    times, counts = one.at(one.qps)
    np.testing.assert_array_equal(times, one.times_us)
    assert counts is None


@pytest.mark.parametrize("share", [0.2, 0.5, 1.7, 12.0])
def test_at_another_load_bursts_come_when_they_came_and_last_as_long(share):
    one = bursty()
    times, _ = one.at(share * one.qps, seed=1)
    assert len(times) == pytest.approx(share * len(one), rel=0.15)
    assert (np.diff(times) >= 0).all() and times[-1] < (one.seconds + 1) * 1e6
    was, now = per_second(one.times_us)[:60], np.bincount((times / 1e6).astype(int), minlength=61)[:60]
    in_burst = np.arange(60) % 10 == 3
    assert now[in_burst].mean() / now[~in_burst].mean() == pytest.approx(was[in_burst].mean() / was[~in_burst].mean(), rel=0.3)


def test_a_share_of_a_poisson_stream_is_a_poisson_stream():
    gaps = np.random.default_rng(0).exponential(100, 200_000)
    times, _ = Trace(np.cumsum(gaps)).at(2000)
    thinned = np.diff(times)
    assert thinned.mean() == pytest.approx(500, rel=0.02)
    assert thinned.std() / thinned.mean() == pytest.approx(1, rel=0.03)


def test_a_trace_is_repeated_until_it_has_lasted_long_enough():
    one = bursty(10)
    times, _ = one.at(one.qps, seconds=35)
    assert len(times) == 4 * len(one) or len(times) == 3 * len(one)
    assert (np.diff(times) >= 0).all()


def test_each_request_keeps_its_number_of_candidates():
    random = np.random.default_rng(0)
    one = Trace(np.cumsum(random.exponential(1e4, 5000)), random.integers(1, 100, 5000))
    times, counts = one.at(one.qps / 2, seed=3)
    assert len(times) == len(counts)
    where = np.searchsorted(one.times_us, times)
    np.testing.assert_array_equal(counts, one.counts[where])
    _, more = one.at(one.qps * 3)
    assert np.bincount(more).argmax() == np.bincount(np.repeat(one.counts, 3)).argmax()


def test_the_busiest_stretch_is_the_burst():
    one = bursty()
    found = one.busiest(1.0)
    assert found.qps > 8 * np.median(per_second(one.times_us))
    assert one.busiest(1000.0) is one
    assert one.burst > 2 > Trace(np.arange(1000.0)).burst


def test_times_that_go_back_are_refused():
    with pytest.raises(MeasureError, match=r"^the arrival trace goes back at entry 2; give at least 2 times in ascending order$"):
        Trace(np.array([0.0, 2.0, 1.0]))
    with pytest.raises(MeasureError, match=r"^the arrival trace has no two different times; give at least 2 times in ascending order$"):
        Trace(np.zeros(5))


def frame(**columns):
    n = 400
    base = {"timestamp": np.cumsum(np.random.default_rng(0).exponential(0.01, n)), "n": np.full(n, 64)}
    return pl.DataFrame({name: values for name, values in (base | columns).items() if values is not None})


def test_seconds_and_dates_are_read_alike(tmp_path):
    seconds = np.round(frame()["timestamp"].to_numpy(), 6)
    frame(timestamp=seconds).write_parquet(tmp_path / "a.parquet")
    dates = pl.Series(np.datetime64("2026-03-01T12:00:00", "us") + (seconds * 1e6).round().astype("timedelta64[us]"))
    frame(timestamp=dates).write_parquet(tmp_path / "b.parquet")
    a, b = trace.read(tmp_path / "a.parquet", "n"), trace.read(tmp_path / "b.parquet")
    np.testing.assert_allclose(a.times_us, b.times_us, atol=1)
    assert a.counts.tolist() == [64] * 400 and b.counts is None


def times(change):
    values = frame()["timestamp"].to_numpy().copy()
    return change(values)


def with_gap(values):
    values[150:] += 300
    return values


def with_step_back(values):
    values[200:] -= 1.0
    return values


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            {"timestamp": times(with_gap)},
            r"t\.parquet: nothing came for 300 s after row 149, [\d,]+ times the distance there, so records are missing\. "
            r"The longest stretch without a gap is rows 150 to 399: give that",
        ),
        (
            {"timestamp": times(with_step_back)},
            r"t\.parquet: time goes back by [\d.]+ s at row 200, and 1 times in all\. Sort it by timestamp",
        ),
        ({"timestamp": None, "when": np.zeros(400)}, r"t\.parquet: no column 'timestamp'\. It has n, when"),
        ({"timestamp": np.full(400, 5.0)}, r"t\.parquet: all requests came at the same time\. Give times as they were.*"),
        ({"timestamp": ["now"] * 400}, r"t\.parquet: column 'timestamp' has String values\. Give dates with times, or seconds"),
        ({"n": np.zeros(400, int)}, r"t\.parquet: column 'n' has values that count no candidates\. Give whole numbers from 1 on"),
        ({"n": [None] + [1] * 399}, r"t\.parquet: column 'n' has no value in 1 of 400 rows"),
        ({"timestamp": np.r_[np.nan, np.arange(399.0)]}, r"t\.parquet: row 0 has a time that is no finite number"),
    ],
)
def test_a_trace_that_cannot_be_one_gets_a_sentence(tmp_path, columns, sentence):
    frame(**columns).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(JobError) as caught:
        trace.read(tmp_path / "t.parquet", "n")
    assert re.fullmatch(sentence, str(caught.value)), caught.value


def test_a_short_trace_and_one_that_is_not_there_get_a_sentence(tmp_path):
    frame().head(5).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(JobError, match=r"^t\.parquet: 5 requests do not tell how they come\. Give at least 100, or no trace$"):
        trace.read(tmp_path / "t.parquet")
    with pytest.raises(JobError, match=r"^no trace .*none\.parquet, which objective\.trace names$"):
        trace.read(tmp_path / "none.parquet")


def test_a_quiet_night_is_no_gap(tmp_path):
    random = np.random.default_rng(0)
    gaps = np.concatenate([random.exponential(0.01, 2000), random.exponential(0.5, 200), random.exponential(0.01, 2000)])
    pl.DataFrame({"timestamp": np.cumsum(gaps)}).write_parquet(tmp_path / "t.parquet")
    assert len(trace.read(tmp_path / "t.parquet")) == 4200
