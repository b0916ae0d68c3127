import numpy as np
import pytest

from burnish.errors import JobError, MeasureError, ObjectiveNotMet
from burnish.job import Reserve
from burnish.measure.queueing import highest_load, simulate
from burnish.place.capacity import fleet, replicas
from burnish.place.plan import capacity, capacity_sentence, replan
from burnish.place.price import Prices, usd_per_million, usd_per_month

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
    assert replicas(SERVICE, 50_000, 10_000, reserve=Reserve(headroom=0.5)).replicas > base.replicas
    assert replicas(SERVICE, 50_000, 10_000, correction=0.5).replicas > 1.9 * (base.replicas - 1)


def test_the_correction_is_what_a_load_test_found():
    simulated = replicas(SERVICE, 1000, 10_000).qps_per_replica
    report = capacity(SERVICE, 0.9 * simulated, 10.0, qps=1000, p99_ms=10.0, candidates=128, threads=1, cores=2, price_per_hour=None)
    assert report["qps_per_replica"] == pytest.approx(0.9 * simulated, rel=1e-6)
    assert report["usd_per_month"] is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"p99_us": 500},
            r"one call alone takes 1.* ms at p99; no number of replicas answers within 0\.5 ms\. "
            r"The least p99 that can be met is about 2\.\d+ ms",
        ),
        ({"reserve": Reserve(headroom=1.0)}, "head-room is 1.0; give a share of at least 0 and below 1, such as 0.2"),
        ({"reserve": Reserve(swap=1.0)}, "swap is 1.0; give the share of machines that are away, at least 0 and below 1, such as 0.1"),
        ({"reserve": Reserve(growth=-0.5)}, "growth is -0.5 and spare machines are 1; give numbers of at least 0"),
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
        "50,000 requests a second of 128 candidates at p99 10 ms take 96 replicas [88 to 104] on 12 machines of 8 cores "
        "(20% head-room, 1 of them spare): "
        "$3,504 a month, $0.00014 per million candidates."
    )
    double = replan(kept, qps=100_000, price_per_hour=0.8, cores=16)
    assert double["machines"] == 12
    assert double["sensitivity"][0] == {"change": "half the load", "machines": 7, "usd_per_month": pytest.approx(7 * 0.8 * 730)}
    assert double["usd_per_month"] == pytest.approx(12 * 0.8 * 730)
    assert capacity_sentence(double | {"usd_per_month": None}).endswith("(20% head-room, 1 of them spare).")


def test_growth_swaps_and_spare_machines_each_add_their_share():
    def machines(**reserve):
        return replicas(SERVICE, 50_000, 10_000, cores=2, reserve=Reserve(**{"headroom": 0.0, "spare_machines": 0} | reserve)).machines

    base = machines()
    assert machines(spare_machines=3) == base + 3
    assert machines(growth=0.5) == pytest.approx(1.5 * base, abs=1)
    assert machines(swap=0.1) == pytest.approx(base / 0.9, abs=1)
    assert machines(headroom=0.2) == pytest.approx(base / 0.8, abs=1)


def test_with_the_spare_machines_away_p99_is_predicted_too_and_kept():
    found = replicas(SERVICE, 5_000, 10_000, reserve=Reserve(headroom=0.0, swap=0.1))
    assert found.p99_us < found.p99_down_us <= 1.05 * 10_000


def test_the_interval_covers_what_other_samples_of_the_calls_say():
    random = np.random.default_rng(1)
    truth = random.gamma(4, 250, 100_000)  # of which a search has measured 300
    inside = 0
    for seed in range(20):
        sample = np.random.default_rng(seed).choice(truth, 300)
        found = replicas(sample, 50_000, 10_000, load_error=0.0, reserve=Reserve(headroom=0, spare_machines=0), seed=seed)
        exact = 50_000 / highest_load(truth, 10_000)
        inside += found.replicas_low - 1 <= exact <= found.replicas_high
    assert inside >= 17  # of 20, where 19 are expected


def test_a_load_test_and_more_calls_narrow_the_interval():
    told = {"qps": 50_000, "p99_ms": 10.0, "candidates": 128, "threads": 1, "cores": 1, "price_per_hour": None}
    widths = []
    for measured, options in ((None, {}), (750.0, {"missed_qps": 780.0}), (750.0, {"calls": 50_000})):
        low, high = capacity(SERVICE, measured, 10.0, **told, **options)["replicas_interval"]
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2]


def test_a_fleet_behind_a_random_balancer_is_as_many_single_queues():
    one = simulate(SERVICE, 800, queries=400_000)
    many = fleet(SERVICE, 80_000, 100, queries=1_000_000)
    assert many.utilization == pytest.approx(one.utilization, rel=1e-9)
    assert many.p50_us == pytest.approx(one.p50_us, rel=0.05)
    assert many.p99_us == pytest.approx(one.p99_us, rel=0.15)
    assert many.slowest_replica_p99_us > many.p99_us


def test_a_better_balancer_has_a_lower_p99():
    spread, turns, shared = (fleet(SERVICE, 80_000, 100, balancer=name, queries=200_000).p99_us for name in ("random", "in turn", "shared"))
    assert spread > turns > shared
    four = fleet(SERVICE, 3000, 4, balancer="shared", queries=200_000)
    assert four.p99_us == pytest.approx(simulate(SERVICE, 3000, servers=4).p99_us, rel=0.1)


def test_a_fleet_that_is_too_small_says_what_it_can_serve():
    with pytest.raises(MeasureError, match=r"^10 replicas can serve [\d,]+ queries per second; 20,000 came$"):
        fleet(SERVICE, 20_000, 10)


def test_scaling_advice_is_the_planned_load_of_a_replica():
    told = capacity(SERVICE, 750.0, 10.0, qps=50_000, p99_ms=10.0, candidates=128, threads=1, cores=8, price_per_hour=None)["autoscaling"]
    assert told["scale_out_above"] == pytest.approx(600, rel=1e-6) and told["scale_in_below"] == pytest.approx(300, rel=1e-6)
    assert 0.5 < told["utilization_out_above"] < 0.8
    assert told["prometheus"] == "avg(sum by (instance) (rate(burnish_requests_total[1m]))) / 8"
    assert told["sentence"].startswith("Add machines when a replica gets more than 600 requests a second over a minute (it is busy ")


def test_a_p99_that_nothing_meets_gets_the_nearest_plan():
    with pytest.raises(ObjectiveNotMet) as caught:
        replan(report(), p99_ms=0.5)
    said = str(caught.value)
    assert (
        said.startswith("one call alone takes 1.")
        and "The nearest plan: 50,000 requests a second of 128 candidates at p99 2.2 ms take " in said
    )
    with pytest.raises(MeasureError, match=r"^cannot plan for 0 queries per second at p99 10 ms; give numbers above 0$"):
        replan(report(), qps=0)


def with_places():
    from burnish.host import Host

    kept = report()
    kept["chosen"] = {"load": {"qps": 750.0, "missed_qps": 780.0}, "weight_bytes": 5_000_000, "resident_bytes": 9_000_000}
    kept["chosen"]["latency_us"] = {"count": 5000}
    return kept | {
        "work": {
            "request_macs": 10_000, "candidate_macs": 50_000, "request_bytes": 100, "candidate_bytes": 80,
            "answer_bytes": 4, "cut_bytes": 40, "request_weights": 0.3,
        },
        "hosts": [{"name": "this machine", "price_per_hour": 0.4, "cores": 8}, {"name": "app", "device": "phone"}],
        "placement_rules": {"private": True},
        "host": {name: getattr(Host.target("avx512vnni"), name) for name in Host.__struct_fields__},
    }  # fmt: skip


def test_what_a_report_has_is_not_simulated_again(monkeypatch):
    kept = report()
    asked = []
    monkeypatch.setattr("burnish.place.plan.highest_load", lambda *a, **k: asked.append(a) or 500.0)
    monkeypatch.setattr("burnish.place.capacity.highest_load", lambda *a, **k: asked.append(a) or 500.0)
    changed = replan(kept, qps=80_000, price_per_hour=1.0, headroom=0.1, growth=0.5, cores=4)
    assert asked == [] and changed["machines"] > kept["capacity"]["machines"]
    assert replan(kept, p99_ms=5.0)["qps_per_replica"] and asked  # another objective must be


def test_a_plan_made_again_places_again():
    answer = replan(with_places(), qps=80_000)
    assert [each["name"] for each in answer["placement"]] == ["this machine", "app", "app + this machine"]
    assert answer["placement_verdict"]["chosen"] == "app"
    assert answer["placement"][0]["machines"] == answer["machines"]
    assert answer["placement"][0]["usd_per_month"] == pytest.approx(answer["usd_per_month"])
    dearer = replan(with_places(), qps=80_000, price_per_hour=4.0)
    assert dearer["placement"][0]["usd_per_month"] == pytest.approx(10 * answer["usd_per_month"])


def test_a_plan_for_another_kind_of_machine_is_an_estimate_at_its_price():
    answer = replan(with_places(), host="c7g.large")
    assert (answer["price_per_hour"], answer["cores_per_machine"]) == (0.0725, 2)
    assert answer["qps_per_replica"] == pytest.approx(750 * 330 / 232, rel=0.15)  # a little more: the same p99 is longer for it
    assert answer["sentence"].startswith(
        "On c7g.large, an estimate: the times of this machine x 0.7, the ratio of arithmetic peaks: 50,000 "
    )
    with pytest.raises(JobError, match=r"^no host 'rack'\. The job has this machine, app; the price file has c6i\.large, "):
        replan(with_places(), host="rack")


def test_a_plan_can_be_checked_by_simulating_every_request():
    answer = replan(report(), qps=5_000, check=True)
    found = answer["check"]["random"]
    assert found["replicas"] == answer["replicas"] - 8
    assert found["p99_us"] == pytest.approx(1000 * answer["predicted_p99_ms_spare_down"], rel=0.15)
    assert answer["check"]["in_turn"]["p99_us"] < found["p99_us"] < 10_000
    assert answer["check"]["sentence"].startswith("Simulated with 4,000,000 requests and the spare machines away: p99 ")


def test_the_price_file_is_dated_and_sourced_and_a_users_own_takes_its_place(tmp_path, monkeypatch):
    prices = Prices.read()
    assert len(prices.kinds) >= 10 and all(kind.as_of >= "2024" and kind.source.startswith("https://") for kind in prices.kinds.values())
    own = tmp_path / "own.toml"
    own.write_text('[about]\negress_per_gb = 0\n[kinds.mine]\ncloud = "rack"\nprice_per_hour = 0\ncores = 4\n')
    monkeypatch.setenv("BURNISH_PRICES", str(own))
    with pytest.raises(JobError, match=r"^own\.toml: expected float > 0\.0 - at kinds\[\.\.\.\]\.price_per_hour$"):
        Prices.read()
    monkeypatch.setenv("BURNISH_PRICES", str(tmp_path / "none.toml"))
    with pytest.raises(JobError, match=r"^cannot read .*none\.toml, which BURNISH_PRICES names: No such file or directory$"):
        Prices.read()


def test_there_is_no_plan_where_nothing_was_chosen():
    with pytest.raises(JobError, match="the search chose nothing, so there is nothing to plan with: nothing"):
        replan(report() | {"capacity": None})
