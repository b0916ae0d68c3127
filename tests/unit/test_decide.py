import pytest

from burnish.job import Job
from burnish.recipe import Recipe
from burnish.search import decide
from burnish.search.trial import Measurement, Rejected, Trial

JOB = Job.from_dict(
    {
        "model": {"load": "ranker.py:load"},
        "inputs": {"x": {}},
        "data": {"validation": "v.parquet", "label": "y"},
        "objective": {"p99_ms": 10, "qps": 50_000, "candidates": 100},
    }
)


def metric(relative=0.0):
    half = 0.0002
    return {
        "metrics": {"auc": {"relative": relative, "relative_low": relative - half, "relative_high": relative + half}},
        "rows": 10_000,
        "verdict": {"sentence": "fine"},
    }


def trial(name, speedup=1.0, qps=None, bytes_=1000, backend="native", simulated=False, rejected=None, p99=2000.0):
    load = {"qps": qps, "simulated": simulated} if qps else None
    latency = {"p50": 1000.0, "p99": p99, "speedup": speedup}
    return Trial(name, Recipe(backend=backend, name=name), Measurement(bytes_, 0, metric(), latency, 1e5, load), rejected)


def test_only_what_passed_everything_is_feasible_and_the_fastest_beside_the_baseline_is_first():
    slow, fast = trial("slow", 2.0), trial("fast", 5.0)
    assert decide.feasible([slow, trial("off", 9.0, rejected=Rejected("quality", "lost")), Trial("new", Recipe()), fast]) == [fast, slow]


def test_the_one_that_carries_most_at_the_objective_is_cheapest():
    assert decide.cheapest([trial("a", 5.0, 900), trial("b", 4.0, 1200)], JOB).id == "b"


def test_of_those_alike_the_one_with_the_fewest_bytes_is_chosen():
    assert decide.cheapest([trial("a", qps=1000, bytes_=9), trial("b", qps=970, bytes_=5), trial("c", qps=900, bytes_=1)], JOB).id == "b"


def test_of_those_whose_load_is_not_told_apart_a_faster_one_wins():
    small, fast = trial("small", 5.0, qps=1000, bytes_=5), trial("fast", 5.3, qps=980, bytes_=9)
    assert decide.cheapest([small, fast], JOB).id == "fast"
    assert decide.cheapest([trial("small", 5.25, qps=1000, bytes_=5), fast], JOB).id == "small"


def test_simulated_loads_do_not_compare_with_measured_ones():
    assert decide.cheapest([trial("a", 5.0, 900), trial("b", 4.0, 1200, simulated=True)], JOB).id == "a"


def test_the_model_as_it_came_and_our_own_backend_are_no_peers():
    assert [t.id for t in decide.peers([trial("a"), trial("b", backend="eager"), trial("c", backend="openvino")])] == ["c"]


def test_ratios_are_of_one_run_and_of_loads_of_one_kind():
    ours, peer, base = trial("a", qps=1000), trial("b", qps=500, backend="openvino"), trial("c", qps=100, simulated=True, backend="eager")
    run = {"faster": {"b": {"value": 2.5, "low": 2.4, "high": 2.6}, "c": {"value": 9.0, "low": 8.0, "high": 9.5}}}
    told = decide.ratios(ours, peer, run, base, JOB)
    assert told == {
        "best_peer": "b",
        "throughput_vs_baseline": 9.0,
        "throughput_vs_baseline_interval": [8.0, 9.5],
        "at_objective_vs_baseline": None,
        "throughput_vs_best_peer": 2.5,
        "throughput_vs_best_peer_interval": [2.4, 2.6],
        "at_objective_vs_best_peer": 2.0,
    }


CAPACITY = {
    "qps": 50_000.0,
    "candidates": 100,
    "p99_ms": 10.0,
    "replicas": 8,
    "machines": 2,
    "spare_machines": 1,
    "cores_per_machine": 4,
    "headroom": 0.2,
    "usd_per_month": None,
    "usd_per_million_candidates": None,
}


def test_the_plan_is_told_in_three_sentences():
    ours, peer, base = trial("int8", qps=1000), trial("bf16", qps=500, backend="openvino"), trial("original", qps=100, backend="eager")
    run = {"faster": {"bf16": {"value": 2.5, "low": 2.4, "high": 2.6}, "original": {"value": 9.0, "low": 8.0, "high": 9.5}}}
    told = decide.sentences(JOB, [base, ours, peer], ours, peer, decide.ratios(ours, peer, run, base, JOB), CAPACITY)
    assert told == (
        "Chosen: int8 on native, one core: AUC changes by +0.0000% [-0.0200%, +0.0200%] on 10,000 rows (0.100% is allowed), "
        "and one call of 100 candidates takes 1 ms at p50, 2 ms at p99 (10 ms is allowed).",
        "It is 9 times faster than the model as it came and 2.5 times faster than the best other tool (bf16 on openvino), side by side on "
        "one core; at the objective it is 10 and 2 times cheaper.",
        "50,000 requests a second of 100 candidates at p99 10 ms take 8 replicas on 2 machines of 4 cores "
        "(20% head-room, 1 of them spare).",
    )


def test_where_the_model_as_it_came_is_chosen_the_fastest_that_failed_is_named():
    base = trial("original", qps=100, backend="eager")
    lost = trial("int8", 6.0, rejected=Rejected("quality", "auc changed by -0.3 %"))
    told = decide.sentences(JOB, [base, lost], base, None, decide.ratios(base, None, {"faster": {}}, base, JOB), CAPACITY)
    assert told[1] == (
        "Nothing that was tried is cheaper than the model as it came and keeps its accuracy: int8 on native is 6 times faster, and "
        "auc changed by -0.3 %."
    )


@pytest.mark.parametrize(
    ("trials", "sentence"),
    [
        (
            [
                trial("int8", p99=12_000.0, rejected=Rejected("latency", "slow")),
                trial("bad", p99=1.0, rejected=Rejected("quality", "lost")),
            ],
            "nothing meets p99 10 ms at 100 candidates within the accuracy that must be kept: int8 on native comes nearest with p99 12 ms. "
            "Allow that, or give fewer candidates a request",
        ),
        (
            [trial("int8", p99=9_000.0, rejected=Rejected("load", "it was overloaded"))],
            "nothing meets p99 10 ms at 100 candidates within the accuracy that must be kept: int8 on native comes nearest with p99 9 ms "
            "for one call alone, but under load it was overloaded",
        ),
        (
            [Trial("int8", Recipe(), rejected=Rejected("build", "no compiler"))],
            "nothing meets p99 10 ms at 100 candidates within the accuracy that must be kept; no recipe could be built and measured. "
            "The report has the reason of each",
        ),
    ],
)
def test_an_objective_that_nothing_meets_is_told_with_the_nearest(trials, sentence):
    assert decide.nearest(trials, JOB) == sentence


def test_the_best_of_other_tools_is_the_fastest_of_the_run_that_compares_them():
    slow, fast = trial("slow", backend="openvino"), trial("fast", backend="onnxruntime")
    latencies = {"slow": {"candidates_per_second_per_core": 300.0}, "fast": {"candidates_per_second_per_core": 330.0}}
    assert decide.fastest([slow, fast], latencies) is fast
    assert decide.fastest([], latencies) is None
