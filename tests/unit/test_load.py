"""The simulated queue against queueing theory, and LoadGen's Server scenario: what a result holds and why a run is invalid."""

import gc
import math
import os
import re
import signal
import sys
import threading
import time

import msgspec
import numpy as np
import pytest

from burnish.errors import MeasureError
from burnish.inputs import Input
from burnish.measure import harness, load, queueing
from burnish.measure.generator import Order
from burnish.measure.traffic import Traffic
from burnish.trace import Trace


def traffic(calls=16):
    return Traffic.from_rows([Input("x", "float32", (2,))], {"x": np.random.default_rng(0).random((64, 2), np.float32)}, None, 4, calls)


def scoring(request, candidates):
    return candidates["x"].sum(1)


# the queue


def exponential(n=200_000, mean=100.0):
    """Service times whose distribution is exponential to the resolution of n quantiles."""
    return -mean * np.log1p(-(np.arange(n) + 0.5) / n)


@pytest.mark.parametrize("utilization", [0.3, 0.6, 0.8])
def test_one_exponential_server_has_the_latencies_of_mm1(utilization):
    found = load.simulate(exponential(), utilization * 1e4, queries=1_000_000)
    rate = (1 - utilization) / 100  # latency in M/M/1 is exponential
    assert found.utilization == pytest.approx(utilization, rel=0.001)
    assert found.mean_us == pytest.approx(1 / rate, rel=0.03)
    assert found.p50_us == pytest.approx(math.log(2) / rate, rel=0.03)
    assert found.p99_us == pytest.approx(math.log(100) / rate, rel=0.05)
    assert abs(found.p99_us - math.log(100) / rate) < 4 * found.p99_error_us


@pytest.mark.parametrize("utilization", [0.3, 0.6, 0.8])
def test_one_constant_server_has_the_mean_of_pollaczek_and_khinchine(utilization):
    found = load.simulate(np.array([100.0]), utilization * 1e4, queries=1_000_000)
    assert found.mean_us == pytest.approx(100 + 100 * utilization / (2 * (1 - utilization)), rel=0.02)


def test_one_constant_server_has_the_distribution_of_erlang():
    found = load.simulate(np.array([100.0]), 0.6 * 1e4, queries=1_000_000)
    wait, rate = found.p99_us - 100, 0.6 / 100  # P(wait <= t), Erlang 1909
    terms = [(rate * (k * 100 - wait)) ** k / math.factorial(k) * math.exp(-rate * (k * 100 - wait)) for k in range(int(wait // 100) + 1)]
    assert 0.4 * sum(terms) == pytest.approx(0.99, abs=0.001)


@pytest.mark.parametrize("servers", [2, 4])
def test_several_exponential_servers_wait_as_erlang_c_says(servers):
    utilization = 0.75
    offered = servers * utilization
    queued = offered**servers / math.factorial(servers) / (1 - utilization)
    waits = queued / (sum(offered**k / math.factorial(k) for k in range(servers)) + queued)
    found = load.simulate(exponential(), servers * utilization * 1e4, servers, queries=300_000)
    assert found.mean_us == pytest.approx(100 + waits * 100 / (servers * (1 - utilization)), rel=0.03)


def test_the_recursion_of_several_servers_is_that_of_one_when_there_is_one():
    random = np.random.default_rng(0)
    arrivals, service = np.cumsum(random.exponential(1, 5000)), random.exponential(0.8, 5000)
    one = queueing.departures(arrivals, service, 1)
    free = 0.0
    for i in range(5000):
        free = max(free, arrivals[i]) + service[i]
        assert one[i] == pytest.approx(free)
    # two servers, of which one is taken for ever by the first query
    blocked = queueing.departures(np.append(0.0, arrivals + 1), np.append(1e9, service), 2)
    np.testing.assert_allclose(blocked[1:], queueing.departures(arrivals + 1, service, 1))


def test_more_load_than_can_be_served_has_infinite_latency():
    found = load.simulate(np.array([100.0]), 1.01e4)
    assert found.p99_us == math.inf and found.utilization == pytest.approx(1.01)


def test_bursts_of_a_trace_wait_longer_than_poisson_arrivals():
    random = np.random.default_rng(0)
    gaps = random.exponential(1, 50_000) * np.repeat(random.choice([20, 380], 500), 100)
    bursty = load.simulate(np.array([100.0]), 1, arrivals_us=np.cumsum(gaps))
    assert bursty.qps == pytest.approx(49_999 / gaps[1:].sum() * 1e6)
    assert bursty.p99_us > 5 * load.simulate(np.array([100.0]), bursty.qps).p99_us


def test_the_highest_load_keeps_the_objective_and_a_little_more_does_not():
    qps = load.highest_load(exponential(), p99_us=1000)
    assert qps == pytest.approx(1e4 * (1 - math.log(100) / 10), rel=0.03)  # M/M/1
    assert load.highest_load(np.array([100.0]), p99_us=50) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([], 10), "simulate needs measured service times: at least one, finite, not negative"),
        (([1.0], 0), "simulate needs at least 1 server and a load above 0; met 1 servers and 0 queries per second"),
        (([1.0], 1, 1, 0, 10, [0.0, 2.0, 1.0]), "the arrival trace goes back at entry 2; give at least 2 times in ascending order"),
        (([1.0], 1, 1, 0, 10, [0.0]), "the arrival trace has 1 entries; give at least 2 times in ascending order"),
    ],
)
def test_a_queue_that_makes_no_sense_gets_one_sentence(arguments, sentence):
    with pytest.raises(MeasureError, match=f"^{re.escape(sentence)}$"):
        load.simulate(*arguments)


# LoadGen


loadgen = pytest.importorskip("mlperf_loadgen", reason="load tests need mlcommons-loadgen")


def test_a_run_reports_what_was_asked_and_measured_and_leaves_nothing_changed():
    before = os.sched_getaffinity(0), sys.getswitchinterval(), gc.isenabled()
    found = load.server(scoring, traffic(), qps=1500, seconds=0.5, p99_us=1e6)
    assert (found.valid, found.cause, found.reason, found.loadgen) == (True, "", "", "VALID")
    assert found.early_stopping and found.queries >= 459 and found.qps == 1500 and found.slo_us == 1e6
    assert found.achieved_qps == pytest.approx(found.queries / found.seconds)
    assert found.p50_us <= found.p90_us <= found.p99_us <= found.p999_us <= found.max_us
    assert 0 < found.service_p50_us <= found.service_p99_us < found.max_us
    assert found.checked > 0 and found.wrong == 0
    assert (found.servers, found.candidates) == (1, 4)
    assert "mlcommons-loadgen" in found.versions
    if len(before[0]) > 1:
        assert len(found.cores) == 2 and set(found.cores[0]).isdisjoint(found.cores[1])
    assert (os.sched_getaffinity(0), sys.getswitchinterval(), gc.isenabled()) == before
    assert msgspec.json.decode(msgspec.json.encode(found), type=load.LoadResult) == found


def test_our_percentiles_are_loadgens_own(monkeypatch):
    logged, latencies = {}, []
    summary, samples = load._summary, load._samples
    monkeypatch.setattr(load, "_summary", lambda path: logged.update(summary(path)) or logged)
    monkeypatch.setattr(load, "_samples", lambda path: latencies.append(samples(path)) or latencies[0])
    found = load.server(scoring, traffic(), qps=1000, seconds=0.5, p99_us=1e6)
    for name, key in (("p50_us", "50.00"), ("p90_us", "90.00"), ("p99_us", "99.00")):
        ascending = np.sort(latencies[0][2]).tolist()
        at = ascending.index(getattr(found, name))  # LoadGen takes this rank or the next
        assert logged[f"result_{key}_percentile_latency_ns"] / 1000 in ascending[at : at + 2]
    assert found.max_us == pytest.approx(logged["result_max_latency_ns"] / 1000)


def test_the_time_of_a_query_counts_from_its_intended_start():
    stalled = []

    def stalls_once(request, candidates):
        if len(stalled) == 20:
            time.sleep(0.3)
        stalled.append(None)
        return scoring(request, candidates)

    found = load.server(stalls_once, traffic(), qps=1000, seconds=0.8, p99_us=100_000, expected=[scoring(*call) for call in traffic()])
    # a third of all queries arrive during the stall; a closed loop would have had one slow call of 800
    assert found.p90_us > 50_000 and found.p99_us > 100_000 and not found.valid
    cause, sentence = load._judge(msgspec.structs.replace(found, late_p99_us=0.0))  # whatever else ran on the machine
    assert cause == "p99"
    assert re.fullmatch(r"p99 was [\d,]+ us at 1,000 queries per second; 100,000 us are allowed", sentence)


def test_overload_is_cut_off_and_named():
    def slow(request, candidates):
        time.sleep(0.005)
        return scoring(request, candidates)

    begin = time.monotonic()
    found = load.server(slow, traffic(), qps=2000, seconds=0.4, p99_us=20_000)
    assert found.cause == "overloaded" and not found.valid
    assert re.fullmatch(r"overloaded: 2,000 queries per second were offered and about \d+ could be served", found.reason)
    assert time.monotonic() - begin < 30


def test_too_few_queries_for_a_p99_are_invalid():
    found = load.server(scoring, traffic(), qps=100, seconds=0.5, p99_us=1e6)
    assert found.cause == "too few queries" and found.queries < 459
    assert found.reason == (
        f"{found.queries} queries are too few to claim a p99 within 1,000,000 us with 99 % confidence: LoadGen's early-stopping rule asks "
        f"for at least {459 - found.queries} more. Run longer"
    )
    assert found.loadgen.startswith(f"INVALID: Run unsuccessful. Processed {found.queries} queries. Would need")


def test_wrong_answers_under_load_make_a_run_invalid():
    asked = []

    def drifts(request, candidates):
        asked.append(None)
        return scoring(request, candidates) + (len(asked) > 200)

    found = load.server(drifts, traffic(), qps=2000, seconds=0.4, p99_us=1e6)
    assert found.cause == "wrong answers" and 0 < found.wrong <= found.checked
    assert found.reason.endswith("answers checked during the run were wrong; nothing else it says counts")


@pytest.mark.parametrize("share", [0.5, 1.02, 3.0])
def test_our_early_stopping_is_loadgens_own(share):
    found = load.server(scoring, traffic(), qps=1500, seconds=0.7, p99_us=1e6)
    again = load.server(scoring, traffic(), qps=1500, seconds=0.7, p99_us=share * found.p99_us)
    bound = again.bounds_us["99"]
    assert again.early_stopping == (bound is not None and bound <= again.slo_us)


def test_each_percentile_has_a_bound_as_far_as_the_queries_go():
    found = load.server(scoring, traffic(), qps=1500, seconds=0.7, p99_us=1e6)
    assert set(found.bounds_us) == {"50", "90", "99", "99.9"}
    assert found.bounds_us["50"] > found.p50_us and found.bounds_us["90"] > found.p90_us and found.bounds_us["99"] >= found.p99_us
    assert found.bounds_us["99.9"] is None  # 4,603 queries are needed


def stream(burst, seconds=4, seed=0):
    """Arrivals at 300 a second on average, `burst` times as many in every fourth quarter of a second as in the others."""
    random = np.random.default_rng(seed)
    rates = np.tile([1.0, 1.0, 1.0, burst], seconds)
    parts = [np.sort(random.random(random.poisson(300 * rate / rates.mean() / 4))) / 4 + i / 4 for i, rate in enumerate(rates)]
    return Trace(np.concatenate(parts) * 1e6)


def test_a_trace_is_replayed_with_its_bursts_and_by_the_same_rules():
    def takes_two_milliseconds(request, candidates):
        time.sleep(0.002)
        return scoring(request, candidates)

    options = {"qps": 300, "seconds": 2.0, "p99_us": 1e6}
    steady = load.server(takes_two_milliseconds, traffic(), **options, trace=stream(1))
    bursts = load.server(takes_two_milliseconds, traffic(), **options, trace=stream(9))
    assert (steady.arrivals, steady.loadgen) == ("trace", "not LoadGen's")
    assert steady.valid and steady.checked > 0 and steady.wrong == 0 and steady.queries > 459
    assert bursts.p99_us > 2 * steady.p99_us  # in a burst more comes than two milliseconds each can serve
    missed = load.server(takes_two_milliseconds, traffic(), **options | {"p99_us": 1000}, trace=stream(1))
    assert missed.cause in ("p99", "late generator") and not missed.early_stopping


def test_a_request_of_a_trace_is_a_call_of_as_many_candidates():
    asked = []

    def counted(request, candidates):
        asked.append(len(candidates["x"]))
        return scoring(request, candidates)

    random = np.random.default_rng(0)
    counts = random.choice([2, 30], 600, p=[0.8, 0.2])
    one = Trace(np.cumsum(random.exponential(2000, 600)), counts)
    rows = {"x": np.random.default_rng(0).random((64, 2), np.float32)}
    mixed = Traffic.from_rows([Input("x", "float32", (2,))], rows, None, counts, 32)
    found = load.server(counted, mixed, qps=one.qps, seconds=one.seconds, p99_us=1e6, trace=one)
    assert found.queries == 600
    assert asked[-600:] == counts.tolist()


def test_the_highest_load_of_a_bursty_trace_is_lower():
    service = np.array([2000.0])
    poisson = queueing.highest_load(service, 20_000, queries=20_000)
    assert queueing.highest_load(service, 20_000, queries=20_000, trace=stream(1)) == pytest.approx(poisson, rel=0.15)
    assert queueing.highest_load(service, 20_000, queries=20_000, trace=stream(9)) < 0.6 * poisson


def test_a_generator_that_dies_ends_the_run_with_a_sentence(tmp_path):
    with harness.Generator() as generator:
        run = harness.Run(generator, [scoring], traffic(), set(), 1.0)
        with pytest.raises(MeasureError, match=r"^the load generator died: .*nothing\.npy"):
            run.go(Order(str(tmp_path), 16, arrivals=str(tmp_path / "nothing.npy")))


def test_a_late_generator_makes_a_run_invalid():
    result = load.server(scoring, traffic(), qps=1000, seconds=0.5, p99_us=1e6)
    late = msgspec.structs.replace(result, late_p99_us=100_001.0)
    assert load._judge(late)[0] == "late generator"
    assert load._judge(late)[1] == (
        "the load generator itself was late: its p99 delay was 100,001 us, against an objective of 1,000,000 us. "
        "Give it a core of its own, or lower the load"
    )
    other = msgspec.structs.replace(result, loadgen="INVALID: Min duration not met")
    assert load._judge(other) == ("loadgen", "LoadGen calls the run INVALID: Min duration not met")
    tight = msgspec.structs.replace(result, late_p99_us=150.0, slo_us=1000.0, p99_us=900.0)
    assert load._judge(tight)[0] == ""


def test_a_run_that_other_programs_disturbed_says_nothing_of_the_engine():
    result = load.server(scoring, traffic(), qps=1000, seconds=0.5, p99_us=1e6)
    missed = msgspec.structs.replace(result, cpu_share=0.62, p99_us=2e6)
    assert load._judge(missed, robbed=True) == (
        "disturbed",
        "other programs had the servers' cores for 38 % of the time, so that p99 was 2,000,000 us says nothing of this engine. "
        "Stop what else runs on this machine",
    )
    assert load._judge(missed)[0] == "p99"
    assert load._judge(msgspec.structs.replace(result, cpu_share=0.62, late_p99_us=0.0), robbed=True) == ("", "")  # met all the same


def test_an_engine_that_waits_is_not_taken_for_one_that_is_disturbed():
    def waits(request, candidates):
        time.sleep(0.004)
        return scoring(request, candidates)

    found = load.server(waits, traffic(), qps=200, seconds=0.4, p99_us=500)
    assert found.cpu_share < 0.5 and found.cause in ("p99", "late generator")


def test_lateness_includes_the_wait_for_pythons_lock():
    scheduled, delay = np.array([0.0, 100.0, 200.0]), np.array([5.0, 6.0, 7.0])
    issued_ns = [1_000_000 + 5_000, 1_000_000 + 106_000, 1_000_000 + 1_200_000]  # the third waited a millisecond more
    np.testing.assert_allclose(load._lateness(issued_ns, scheduled, delay), [5, 6, 1000])


def test_several_servers_each_have_their_own_call():
    seen = [set(), set()]

    def numbered(i):
        def call(request, candidates):
            seen[i].add(None)
            time.sleep(0.001)
            return scoring(request, candidates)

        return call

    found = load.server([numbered(0), numbered(1)], traffic(), qps=800, seconds=0.7, p99_us=1e6)
    assert found.servers == 2 and all(seen)


def test_a_dict_of_outputs_is_checked_too():
    found = load.server(lambda request, candidates: {"ctr": scoring(request, candidates)}, traffic(), qps=1500, seconds=0.4, p99_us=1e6)
    assert found.checked > 0 and found.wrong == 0


def test_an_engine_that_fails_under_load_ends_the_run_with_its_error():
    asked = []

    def fails(request, candidates):
        asked.append(None)
        if len(asked) == 50:
            raise ValueError("no such id")
        return scoring(request, candidates)

    with pytest.raises(MeasureError, match=r"^the engine failed under load: ValueError: no such id$"):
        load.server(fails, traffic(), qps=1000, seconds=0.3, p99_us=1e6)
    assert gc.isenabled()


def test_an_interrupt_ends_a_run_and_leaves_nothing_running():
    threads = threading.active_count()
    answered = []

    def interrupted(request, candidates):
        if threading.current_thread() is not threading.main_thread():
            answered.append(None)
            if len(answered) == 50:  # in the middle of the run: Python loses an interrupt that meets the collection before it
                os.kill(os.getpid(), signal.SIGINT)
        return scoring(request, candidates)

    with pytest.raises(KeyboardInterrupt):
        load.server(interrupted, traffic(), qps=500, seconds=1.5, p99_us=1e6)
    assert 50 <= len(answered) < 700
    assert threading.active_count() == threads and gc.isenabled()


def test_answers_in_memory_that_is_used_again_are_compared_as_they_were():
    arena = np.empty(4, np.float32)

    def reuses(request, candidates):
        arena[:] = scoring(request, candidates)
        return arena

    found = load.server(reuses, traffic(), qps=1500, seconds=0.4, p99_us=1e6)
    assert found.checked > 0 and found.wrong == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"qps": 0}, "cannot offer 0 queries per second for 1 s with p99 1000 us; give numbers above 0"),
        ({"call": [scoring], "servers": 2}, "1 calls were given for 2 servers; give one for each, or one for all"),
    ],
)
def test_a_bad_load_gets_one_sentence(change, sentence):
    with pytest.raises(MeasureError, match=f"^{re.escape(sentence)}$"):
        load.server(**{"call": scoring, "traffic": traffic(), "qps": 10, "seconds": 1, "p99_us": 1000} | change)


def test_without_loadgen_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(MeasureError, match="not installed: pip install mlcommons-loadgen"):
        load.server(scoring, traffic(), qps=10, seconds=1, p99_us=1000)


def test_the_peak_is_confirmed_by_a_long_run():
    def takes_a_millisecond(request, candidates):
        time.sleep(0.001)
        return scoring(request, candidates)

    found = load.peak(takes_a_millisecond, traffic(), p99_us=40_000, seconds=0.8, confirm_seconds=1.5, budget_seconds=8)
    assert found.tried
    if found.confirmed is None:  # a machine so busy that no load was kept: then the sentence says what was in the way
        assert found.qps == 0 and found.sentence.startswith("no load was found that keeps p99 within 40,000 us; the last run: ")
    else:
        assert found.confirmed.valid and 0 < found.qps < 1000 and found.qps == found.confirmed.qps
        assert found.confirmed == found.tried[-1] and found.confirmed.seconds > 1.2  # the long run
        assert found.sentence.startswith(f"{found.qps:,.0f} queries per second keep p99 at ")


def test_a_long_run_that_the_machine_spoiled_is_tried_again_while_there_is_time(monkeypatch):
    one, long_runs = load.server(scoring, traffic(), qps=500, seconds=0.2, p99_us=1e6), []

    def told(calls, traffic, qps, seconds, p99_us, **options):
        cause = "" if qps < 0.8 * capacity else "p99"
        if seconds == 2.5:
            long_runs.append(qps)
            cause = "late generator" if len(long_runs) == 1 else cause
        return msgspec.structs.replace(one, qps=qps, valid=not cause, cause=cause)

    monkeypatch.setattr(load, "server", told)
    monkeypatch.setattr(load, "_service_times", lambda *_: np.full(1000, 2000.0))
    capacity = 500
    found = load.peak(scoring, traffic(), p99_us=20_000, seconds=1.5, confirm_seconds=2.5, budget_seconds=20)
    assert long_runs[0] == long_runs[1]
    assert 0.75 * capacity < found.qps < 0.8 * capacity <= found.below_qps


def test_loadgens_own_search_finds_a_load_too():
    def takes_five_milliseconds(request, candidates):
        time.sleep(0.005)
        return scoring(request, candidates)

    none = r"^LoadGen's FindPeakPerformance found no load from 50 queries per second on\. Begin with fewer$"
    try:
        found = load.loadgens_peak(takes_five_milliseconds, traffic(), 100_000, start_qps=50, seconds=0.5)
    except MeasureError as error:  # a machine so busy that even this does not hold
        assert re.match(none, str(error))
    else:
        assert 50 <= found < 300
    with pytest.raises(MeasureError, match=none):
        load.loadgens_peak(takes_five_milliseconds, traffic(), 100, start_qps=50, seconds=0.2)


def test_no_load_is_offered_when_a_call_alone_misses_the_objective():
    def slow(request, candidates):
        time.sleep(0.01)

    found = load.peak(slow, traffic(), p99_us=5000, seconds=0.3)
    assert (found.qps, found.confirmed, found.tried) == (0, None, ())
    assert re.fullmatch(r"no load keeps p99: a call alone, without any waiting, has p99 [\d,]+ us; 5,000 us are allowed", found.sentence)
