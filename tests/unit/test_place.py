import numpy as np
import pytest

from burnish.errors import JobError, MeasureError
from burnish.measure.queueing import simulate
from burnish.place.capacity import replicas
from burnish.place.plan import capacity, capacity_sentence, replan
from burnish.place.price import usd_per_million, usd_per_month

SERVICE = np.random.default_rng(0).gamma(20, 50, 500)  # microseconds, mean 1000


def test_the_planned_load_keeps_p99_with_the_spare_machines_down():
    found = replicas(SERVICE, 50_000, 10_000, cores=8)
    assert found.replicas == found.machines * 8
    working = (found.machines - found.spare_machines) * 8
    assert simulate(SERVICE, 50_000 / working).p99_us <= 10_000
    assert 50_000 / working <= found.qps_per_replica * 0.8
    assert found.p99_us <= 10_000


def test_replicas_grow_with_the_load_and_with_a_tighter_objective():
    base = replicas(SERVICE, 50_000, 10_000)
    assert replicas(SERVICE, 100_000, 10_000).replicas > 1.9 * base.replicas
    assert replicas(SERVICE, 50_000, 3_000).replicas > base.replicas
    assert replicas(SERVICE, 50_000, 10_000, headroom=0.5).replicas > base.replicas
    assert replicas(SERVICE, 50_000, 10_000, correction=0.5).replicas > 1.9 * (base.replicas - 1)


def test_the_correction_is_what_a_load_test_found():
    simulated = replicas(SERVICE, 1000, 10_000).qps_per_replica
    report = capacity(SERVICE, 0.9 * simulated, 10.0, qps=1000, p99_ms=10.0, candidates=128, threads=1, cores=2, price_per_hour=None)
    assert report["qps_per_replica"] == pytest.approx(0.9 * simulated, rel=1e-6)
    assert report["usd_per_month"] is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"p99_us": 500}, "one call alone takes .* ms at p99; no number of replicas answers within 0.5 ms"),
        ({"headroom": 1.0}, "head-room is 1.0; give a share of at least 0 and below 1, such as 0.2"),
        ({"qps": 0}, "cannot plan for 0 queries per second at p99 10 ms; give numbers above 0"),
        ({"threads": 4}, "a replica takes 4 cores, and a machine has 1"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(change, sentence):
    with pytest.raises(MeasureError, match=sentence):
        replicas(**({"service_us": SERVICE, "qps": 50_000, "p99_us": 10_000} | change))


def test_a_price_is_that_of_busy_cores():
    assert usd_per_million(0.36, 2, 50_000) == pytest.approx(0.001)  # 0.36 $/h = 1e-4 $/s for 100,000 candidates a second
    assert usd_per_month(1.0, 3) == pytest.approx(2190)
    with pytest.raises(MeasureError):
        usd_per_million(0.36, 2, 0)


def report():
    kept = capacity(SERVICE, 750.0, 10.0, qps=50_000, p99_ms=10.0, candidates=128, threads=1, cores=8, price_per_hour=0.4)
    return {
        "capacity": kept,
        "service_us": SERVICE.tolist(),
        "chosen": {"load": {"qps": 750.0}},
        "objective": {"p99_ms": 10.0},
        "decision": {"sentence": "nothing"},
    }


def test_a_plan_is_made_again_from_the_report_alone():
    kept = report()
    same = replan(kept)
    assert {key: same[key] for key in kept["capacity"]} == kept["capacity"]
    assert same["sentence"] == (
        "50,000 requests a second of 128 candidates at p99 10 ms take 96 replicas on 12 machines of 8 cores "
        "(20% head-room, 1 of them spare): "
        "$3,504 a month, $0.00014 per million candidates."
    )
    double = replan(kept, qps=100_000, price_per_hour=0.8, cores=16)
    assert double["machines"] == 12
    assert double["usd_per_month"] == pytest.approx(12 * 0.8 * 730)
    assert capacity_sentence(double | {"usd_per_month": None}).endswith("(20% head-room, 1 of them spare).")


def test_there_is_no_plan_where_nothing_was_chosen():
    with pytest.raises(JobError, match="the search chose nothing, so there is nothing to plan with: nothing"):
        replan(report() | {"capacity": None})
