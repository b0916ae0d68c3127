"""When a version is taken back: pure judgement, without a server."""

from __future__ import annotations

import math

import numpy as np
import pytest

from burnish.serve.metrics import SECONDS
from burnish.serve.rollout import BINS, Arm, Limits, binned, drift, edges, judge, quantile

EVEN = (100.0,) * (BINS - 1) + (0.0,)


def arm(requests: int = 1000, errors: int = 0, ms: float = 1.0, scores: tuple[float, ...] = EVEN) -> Arm:
    at = int(np.searchsorted(SECONDS, ms / 1000))
    compute = [0.0] * (len(SECONDS) + 1)
    compute[at] = requests
    return Arm(requests, errors, tuple(compute), scores)


def test_what_is_alike_stays():
    assert judge(arm(), arm(), Limits(), SECONDS) is None


def test_errors_beyond_those_of_the_version_before_are_told_with_both_rates():
    told = judge(arm(requests=90, errors=10), arm(errors=10), Limits(), SECONDS)
    assert told == "it failed on 10.00% of its requests, the version before on 0.99%; 1.00% more are allowed"
    assert judge(arm(requests=900, errors=100), arm(requests=900, errors=100), Limits(), SECONDS) is None
    assert judge(arm(requests=0, errors=4), arm(), Limits(), SECONDS) is None  # too few to say anything
    assert judge(arm(requests=0, errors=5), arm(requests=0), Limits(), SECONDS) is not None


def test_slower_scoring_is_told_with_both_p99s():
    told = judge(arm(ms=5), arm(ms=1), Limits(latency=2), SECONDS)
    assert told is not None and told.endswith("2 times that is allowed") and "p99 of its scoring is 4.98 ms" in told
    assert judge(arm(ms=5), arm(ms=1), Limits(latency=9), SECONDS) is None
    assert judge(arm(requests=199, ms=5), arm(ms=1), Limits(), SECONDS) is None


def test_scores_that_moved_or_are_no_numbers_are_told():
    moved = judge(arm(scores=(0.0,) * 4 + (800.0,) + (0.0,) * 4), arm(), Limits(), SECONDS)
    assert moved is not None and "its scores have drifted by" in moved and moved.endswith("0.25 is allowed")
    assert judge(arm(scores=(0.0,) * (BINS - 1) + (800.0,)), arm(), Limits(), SECONDS) is not None


def test_drift_is_the_population_stability_index():
    a, b = np.array([30.0, 70, 0, 0, 0, 0, 0, 0, 0]), np.array([50.0, 50, 0, 0, 0, 0, 0, 0, 0])
    p, q = ((x + 0.5) / (x + 0.5).sum() for x in (a, b))
    assert drift(a.tolist(), b.tolist()) == pytest.approx(sum((x - y) * math.log(x / y) for x, y in zip(p, q)))
    assert drift(EVEN) == pytest.approx(0, abs=1e-9)
    assert drift([0.0] * BINS) == 0.0


def test_golden_scores_fill_the_bins_alike_and_what_is_no_number_has_its_own():
    golden = np.random.default_rng(0).normal(size=6400)
    inner = edges(golden)
    counts = binned(golden, np.array(inner))
    assert max(counts[:-1]) - min(counts[:-1]) <= 1 and counts[-1] == 0
    assert binned(np.array([np.nan, np.inf, -1e9, 1e9]), np.array(inner)) == [1.0, *[0.0] * 6, 1.0, 2.0]
    assert len(edges(np.full(3, np.nan))) == BINS - 2


def test_a_quantile_is_linear_within_its_bucket():
    assert quantile([0, 100, 0], (1.0, 2.0), 0.5) == pytest.approx(1.5)
    assert quantile([50, 50, 0], (1.0, 2.0), 0.99) == pytest.approx(1.98)
    assert quantile([0, 0, 10], (1.0, 2.0), 0.99) == 2.0
    assert quantile([0, 0, 0], (1.0, 2.0), 0.99) == 0.0
