"""Latencies: percentiles that were measured, what a number of calls can claim, fair alternation, and nothing left changed behind."""

import gc
import math
import os
import re
import time

import msgspec
import numpy as np
import pytest

from burnish.errors import MeasureError
from burnish.host import Host
from burnish.inputs import Input
from burnish.measure import latency
from burnish.measure.latency import Latencies
from burnish.measure.traffic import Traffic

HERE = Host(cpu="one", arch="x86_64", cores=2, flags=())


def traffic(calls=8, candidates=4):
    return Traffic.from_rows(
        [Input("x", "float32", (2,))], {"x": np.random.default_rng(0).random((64, 2), np.float32)}, None, candidates, calls
    )


def test_a_percentile_is_a_latency_that_was_measured():
    some = Latencies(tuple(float(x) for x in range(100, 0, -1)), HERE)
    assert [some.percentile(q) for q in (0, 1, 50, 99, 99.9, 100)] == [1, 1, 50, 99, 100, 100]
    with pytest.raises(MeasureError, match="there is no percentile 101; give 0 to 100"):
        some.percentile(101)
    with pytest.raises(MeasureError, match="there are no latencies to take a percentile of"):
        Latencies((), HERE).percentile(50)


def test_459_calls_are_the_least_that_bound_a_p99_at_99_percent():
    assert latency.calls_needed(99) == 459
    assert latency.calls_needed(99.9) == 4603
    assert not Latencies((1.0,) * 458, HERE).confident(99)
    assert Latencies((1.0,) * 459, HERE).confident(99)
    assert Latencies((1.0,) * 299, HERE).confident(99, confidence=0.95)


def test_the_upper_bound_of_a_percentile_is_the_binomial_order_statistic():
    ascending = np.arange(1.0, 1001.0)
    assert latency.upper_bound(ascending[:458], 99) == math.inf
    assert latency.upper_bound(ascending[:459], 99) == 459
    bound = int(latency.upper_bound(ascending, 99))
    above = 1000 - bound  # of 1000 calls, at most this many may lie above the true percentile ...
    chance = [math.comb(1000, j) * 0.01**j * 0.99 ** (1000 - j) for j in range(above + 2)]
    assert sum(chance[: above + 1]) <= 0.01 < sum(chance)  # ... with 1 % at most, and not one more
    assert latency.upper_bound(ascending, 100) == math.inf
    assert latency.upper_bound(ascending, 0) == 1


def test_the_upper_bound_holds_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = [latency.upper_bound(np.sort(random.exponential(1, 700)), 99, 0.95) >= -math.log(0.01) for _ in range(1000)]
    assert 0.94 <= np.mean(held) <= 0.99


def test_latencies_of_two_hosts_are_not_pooled():
    first, second = Latencies((1.0,), HERE), Latencies((2.0,), msgspec.structs.replace(HERE, cpu="another", cores=4))
    with pytest.raises(MeasureError, match="cannot pool latencies of one with those of another: the hosts differ in cpu, cores"):
        first + second
    with pytest.raises(MeasureError, match="cannot pool latencies measured with different threads or versions, "):
        first + msgspec.structs.replace(first, threads=2)
    both = first + Latencies((3.0, 4.0), HERE, rounds=(2,))
    assert both.us == (1.0, 3.0, 4.0) and both.host == HERE


def test_an_unstable_run_says_so_and_what_would_settle_it():
    steady = Latencies((100.0,) * 1000, HERE, (1,) * 1000, (500, 500))
    assert steady.spread == 0 and steady.unstable() is None
    swinging = Latencies((100.0,) * 500 + (130.0,) * 500, HERE, (1,) * 1000, (500, 500))
    assert swinging.round_medians == (100, 130)
    assert swinging.unstable() == (
        "unstable: the medians of 2 rounds go from 100 to 130 us (26 % apart, 5 % is steady). "
        "Stop what else runs on this machine, or measure more and longer rounds"
    )
    robbed = msgspec.structs.replace(steady, cpu_us=(62.0,) * 1000, preemptions=90, waits=3)
    assert robbed.unstable() == (
        "unstable: the engine had its core for 62 % of the time; the rest went to other programs. Stop what else runs on this machine"
    )
    assert msgspec.structs.replace(robbed, threads=2).unstable() is None  # threads may wait for each other
    few = Latencies((100.0,) * 50, HERE, (1,) * 50, (25, 25))
    assert few.unstable() == "50 calls are too few for a p99: 459 bound it with 99 % confidence. Measure longer"


def test_throughput_is_candidates_over_scoring_time_and_ratios_go_round_by_round():
    fast = Latencies((100.0, 100.0, 50.0), HERE, (8, 8, 8), (2, 1))
    slow = Latencies((200.0, 300.0), HERE, (8, 8), (1, 1))
    assert fast.candidates_per_second == pytest.approx(24 / 250e-6)
    ratio = latency.faster(fast, slow)
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((2, 4, 6))
    with pytest.raises(MeasureError, match="only latencies of one run can be compared"):
        latency.faster(fast, Latencies((1.0,), HERE, (8,), (1,)))


def test_a_curve_has_the_percentiles_that_the_calls_resolve():
    assert [q for q, _ in Latencies((1.0,) * 99, HERE).curve()] == [0, 5, 10, 25, 50, 75, 90, 95, 100]
    assert 99.9 in [q for q, _ in Latencies((1.0,) * 1000, HERE).curve()]


def test_engines_take_turns_on_the_same_calls_and_nothing_stays_changed():
    seen, turns = {"a": [], "b": []}, []

    def engine(name):
        def call(request, candidates):
            if not turns or turns[-1] != name:
                turns.append(name)
            seen[name].append(candidates["x"].ctypes.data)

        return call

    calls = traffic()
    allowed = os.sched_getaffinity(0)
    found = latency.measure({"a": engine("a"), "b": engine("b")}, calls, seconds_each=0.1, rounds=5)
    assert turns == list("abababab")  # warm-up a b, then ab ba ab ba ab
    for name in "ab":
        assert len(set(seen[name])) == len(calls)  # other rows each time
        assert len(found[name].rounds) == 5 and sum(found[name].rounds) == len(found[name].us) == len(found[name].candidates)
        assert found[name].candidates[0] == 4 and found[name].threads == 1
        assert found[name].host == Host.here() and "numpy" in found[name].versions
        assert found[name].cores == (max(allowed),)
    assert os.sched_getaffinity(0) == allowed
    assert gc.isenabled()


def test_time_spent_waiting_is_not_processor_time():
    found = latency.measure({"waits": lambda request, candidates: time.sleep(0.002)}, traffic(), seconds_each=0.1, rounds=1)["waits"]
    assert len(found.cpu_us) == len(found.us) and found.cpu_share < 0.5
    assert found.waits >= len(found.us) and not found.disturbed
    assert latency.quieted({"waits": found}) == {"waits": found}


def test_processor_time_stands_for_the_latency_of_a_disturbed_call():
    found = Latencies((100.0, 5000.0, 100.0), HERE, (8, 8, 8), (3,), cpu_us=(100.2, 110.0, 99.0))
    quiet = found.undisturbed()
    assert quiet.us == (100, 110, 99) and quiet.cpu_us == found.cpu_us and quiet.candidates == found.candidates
    with pytest.raises(MeasureError, match="where one thread computes; these were measured with 2 threads"):
        msgspec.structs.replace(found, threads=2).undisturbed()
    with pytest.raises(MeasureError, match="these latencies were measured without processor times"):
        Latencies((1.0,), HERE).undisturbed()


def test_all_engines_of_a_disturbed_run_are_estimated_or_none():
    fine = Latencies((100.0,) * 3, HERE, (8,) * 3, (3,), cpu_us=(99.0,) * 3)
    robbed = Latencies((100.0, 500.0, 100.0), HERE, (8,) * 3, (3,), cpu_us=(90.0,) * 3, preemptions=1)
    assert latency.quieted({"a": fine}) == {"a": fine}
    found = latency.quieted({"a": fine, "b": robbed})
    assert [each.us for each in found.values()] == [fine.undisturbed().us, robbed.undisturbed().us]
    assert [each.unstable() for each in found.values()] == [
        "other programs ran on this core, which left it to the engines for 39 % of the time; these latencies are processor times, "
        "an estimate of a quiet machine"
    ] * 2
    with pytest.raises(MeasureError, match="or measured with estimated ones"):
        robbed + found["b"]
    several = msgspec.structs.replace(robbed, threads=2)
    assert latency.quieted({"a": several}) == {"a": several}


def test_a_failing_engine_leaves_pinning_and_collection_as_they_were():
    allowed = os.sched_getaffinity(0)
    with pytest.raises(ZeroDivisionError):
        latency.measure({"a": lambda request, candidates: 1 // 0}, traffic(), seconds_each=0.05)
    assert os.sched_getaffinity(0) == allowed and gc.isenabled()


def test_latencies_read_back_from_json():
    found = latency.measure({"a": lambda request, candidates: None}, traffic(), seconds_each=0.01, rounds=2)["a"]
    assert msgspec.json.decode(msgspec.json.encode(found), type=Latencies) == found


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"engines": {}}, "there is no engine to measure"),
        ({"seconds_each": 0}, "cannot measure 5 rounds in 0 s; give at least 1 round and a time above 0"),
        ({"core": 4096}, "cannot pin to core 4096: this process may use "),
    ],
)
def test_bad_measurements_get_one_sentence(change, sentence):
    with pytest.raises(MeasureError, match=f"^{re.escape(sentence)}"):
        latency.measure(**{"engines": {"a": lambda request, candidates: None}, "traffic": traffic()} | change)
