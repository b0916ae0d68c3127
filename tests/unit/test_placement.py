"""Where a ranker should run: constraints first, then price; estimates are marked, and a measurement takes their place."""

import json

import numpy as np
import pytest

from burnish.errors import JobError
from burnish.job import HostTable, Placing, Reserve
from burnish.place.placement import Asked, Subject, place
from burnish.place.work import Work, work
from burnish.testing import dcn_v2

SERVICE = tuple(np.random.default_rng(0).gamma(100, 3, 300))  # us, mean 300
WORK = Work(
    request_macs=20_000, candidate_macs=100_000, request_bytes=100, candidate_bytes=80, answer_bytes=4, cut_bytes=400, request_weights=0.4
)
HERE = HostTable("this machine", 0.10, 2)
PHONE = HostTable("app", device="phone")


def subject(**changed):
    base = {
        "service_us": SERVICE, "qps_per_replica": 2800.0, "qps": 50_000.0, "p99_ms": 60.0, "candidates": 128, "threads": 1, "cores": 2,
        "isa": "avx512vnni", "weight_bytes": 5_000_000, "resident_bytes": 8_000_000, "work": WORK, "reserve": Reserve(),
    }  # fmt: skip
    return Subject(**base | changed)


def places(*hosts, base, rules=None, **changed):
    found, verdict = place(Asked.of(subject(**changed), rules or Placing(), base), hosts)
    return {each.name: each for each in found}, verdict


def test_the_cheapest_that_nothing_stands_against_is_chosen_and_the_reason_told(tmp_path):
    found, verdict = places(HERE, PHONE, HostTable("c7g.large"), base=tmp_path, rules=Placing(devices=100_000))
    assert set(found) == {"this machine", "app", "c7g.large", "app + this machine"}
    assert [each.name for each in found.values() if each.chosen] == [verdict.chosen]
    paid = {name: each.usd_per_month for name, each in found.items() if not each.obstacles}
    assert verdict.chosen == min(paid, key=paid.get)
    assert "a month is the least of all that can be" in verdict.sentence
    assert len(verdict.would_change) == 3 and all(name.split(",")[0] != verdict.chosen for name in verdict.would_change)


def test_a_device_costs_its_updates(tmp_path):
    found, _ = places(HERE, PHONE, base=tmp_path, rules=Placing(devices=1_000_000, updates_per_day=2))
    gb = 5e6 * 2 * 365 / 12 / 1e9
    assert found["app"].update_gb_per_month == pytest.approx(gb)
    assert found["app"].usd_per_month == pytest.approx(gb * 1e6 * 0.09)
    assert found["app + this machine"].update_gb_per_month == pytest.approx(0.6 * gb)
    free, verdict = places(HERE, PHONE, base=tmp_path)
    assert free["app"].usd_per_month == 0 and verdict.chosen == "app"


@pytest.mark.parametrize(("rule", "reason"), [("offline", "it must answer offline"), ("private", "may not leave the device")])
def test_offline_and_privacy_are_hard(tmp_path, rule, reason):
    found, verdict = places(HERE, HostTable("c7g.large"), PHONE, base=tmp_path, rules=Placing(**{rule: True}, devices=10**9))
    assert verdict.chosen == "app"  # whatever it costs
    for name in ("this machine", "c7g.large", "app + this machine"):
        assert any(reason in told for told in found[name].obstacles)
    assert "it is the only one that can be" in verdict.sentence and reason in verdict.sentence


def test_memory_and_package_limits_bar_a_device_with_their_numbers(tmp_path):
    found, verdict = places(HERE, HostTable("page", device="browser"), base=tmp_path, weight_bytes=20_000_000, resident_bytes=300_000_000)
    assert found["page"].obstacles[:2] == (
        "it takes 300 MB of memory, and 256 MB are there",
        "its package has 20 MB, and 10 MB are allowed",
    )
    assert verdict.chosen == "this machine"
    assert any(told.startswith("page, if not for this: it takes 300 MB") for told in verdict.would_change)
    assert "its package has 12 MB" in " ".join(found["page + this machine"].obstacles)


def test_the_network_counts_with_its_tail_and_the_payload(tmp_path):
    near, _ = places(HERE, base=tmp_path)
    far, verdict = places(HERE, PHONE, base=tmp_path, rules=Placing(link="4g"))
    assert near["this machine"].p99_ms < 5 and not near["this machine"].obstacles
    assert far["this machine"].network_p99_ms == pytest.approx(250, rel=0.1)
    assert far["this machine"].obstacles[0].endswith("ms end to end, and 60 ms are allowed")
    assert verdict.chosen == "app"
    own, _ = places(HERE, base=tmp_path, rules=Placing(link="4g", rtt_ms=(10.0, 20.0)))
    assert 20 < own["this machine"].network_p99_ms < 35  # and 10 KB at 8 Mbit/s
    split, _ = places(HERE, PHONE, base=tmp_path, rules=Placing(link="3g", p99_ms=5000.0))
    assert split["app + this machine"].network_p99_ms < split["this machine"].network_p99_ms  # sends the request and not its candidates


def test_a_cloud_answer_takes_network_queue_and_computation_together(tmp_path):
    found, _ = places(HERE, base=tmp_path, rules=Placing(rtt_ms=(5.0, 5.0)))
    one = found["this machine"]
    assert one.p50_ms > 5 + np.median(SERVICE) / 1000
    assert one.compute_p99_ms + 5 < one.p99_ms < 5 + 6 * one.compute_p99_ms


def test_an_estimate_says_how_it_was_made_and_a_measurement_takes_its_place(tmp_path):
    row = {"candidates": 128, "latency_us": {"p50": 900.0, "p99": 1500.0, "curve": [[1, 800], [50, 900], [99, 1500]]}}
    bench = {"rows": [row | {"candidates": 1}, row], "host": {}, "peak_memory_bytes": 300_000_000}
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    found, _ = places(HERE, PHONE, HostTable("measured app", device="phone", measured="bench.json"), base=tmp_path)
    assert not found["app"].measured
    assert found["app"].estimate == "an estimate: the times of this machine x 3, the ratio of arithmetic peaks"
    assert found["app"].p50_ms == pytest.approx(np.median(SERVICE) * 232 / 77 / 1000, rel=0.01)
    assert found["measured app"].measured and found["measured app"].estimate == ""
    assert found["measured app"].p99_ms == pytest.approx(1.5, rel=0.01)
    assert found["measured app"].obstacles == ("it takes 300 MB of memory, and 256 MB are there",)  # and not what it took here
    assert found["this machine"].measured


def test_a_chosen_place_that_was_not_measured_is_told_so(tmp_path):
    _, verdict = places(HERE, PHONE, base=tmp_path)
    assert verdict.sentence.endswith("It was not measured: measure it there before you rely on that.")


def test_a_host_of_which_nothing_is_known_is_taken_for_one_like_this_and_says_so(tmp_path):
    found, _ = places(HERE, HostTable("rack", price_per_hour=0.2, cores=4), base=tmp_path)
    assert found["rack"].estimate == (
        "an estimate, as if its cores were those of this machine: give rack what `burnish bench --json` wrote there"
    )
    assert found["rack"].usd_per_month == pytest.approx(found["this machine"].usd_per_month, rel=0.1)  # twice the cores at twice the price


def test_a_gpu_is_an_estimate_with_a_floor(tmp_path):
    found, _ = places(HERE, HostTable("g6.xlarge"), base=tmp_path)
    gpu = found["g6.xlarge"]
    assert gpu.where == "cloud gpu" and "an estimate" in gpu.estimate and 0.08 < gpu.compute_p99_ms < 1


def test_where_nothing_meets_everything_the_nearest_is_named(tmp_path):
    found, verdict = places(HERE, HostTable("page", device="browser"), base=tmp_path, rules=Placing(offline=True, p99_ms=0.001))
    assert verdict.chosen is None and not any(each.chosen for each in found.values())
    assert verdict.sentence.startswith("no place meets everything. page comes nearest: its p99 is ")
    assert place(Asked.of(subject(), Placing(), tmp_path), [])[1].sentence == "no hosts were given. Add [[hosts]] to the job"


@pytest.mark.parametrize(
    ("host", "rules", "sentence"),
    [
        (HostTable("app", device="toaster"), Placing(), "hosts: 'app' names the device 'toaster'. Known devices: phone, "),
        (HostTable("rack", measured="none.json"), Placing(), "hosts: cannot read "),
        (HostTable("rack", measured="bad.json"), Placing(), "hosts: "),
        (
            HostTable("rack", measured="one.json"),
            Placing(),
            "hosts: BASE/one.json has no measurement at 128 candidates (it has 1). Run `burnish bench --candidates 128`",
        ),
        (HERE, Placing(link="pigeon"), "placement.link is 'pigeon'. Known links: datacenter, "),
        (HERE, Placing(rtt_ms=(20.0, 10.0)), "placement.rtt_ms is [20.0, 10.0]: the p99 is below the median. Give [median, p99]"),
    ],
)
def test_what_cannot_be_placed_gets_a_sentence(tmp_path, host, rules, sentence):
    (tmp_path / "bad.json").write_text('{"rows": []}')
    (tmp_path / "one.json").write_text('{"rows": [{"candidates": 1, "latency_us": {"p50": 1, "p99": 2}}]}')
    with pytest.raises(JobError) as caught:
        places(host, base=tmp_path, rules=rules)
    assert str(caught.value).startswith(sentence.replace("BASE", str(tmp_path)))


def test_the_work_of_a_model_is_that_of_its_two_sides():
    found = work(dcn_v2(dense=5, ids=6, width=4, cross=1, deep=(16, 8), mixed=True))
    whole = work(dcn_v2(dense=5, ids=6, width=4, cross=1, deep=(16, 8), request=0.0))
    assert found.request_macs > 0 and found.candidate_macs < whole.candidate_macs
    assert (whole.request_macs, whole.request_bytes, whole.cut_bytes, whole.request_weights) == (0, 0, 0, 0.0)
    assert found.request_bytes + found.candidate_bytes == whole.candidate_bytes == 5 * 4 + 6 * 8
    assert 0 < found.cut_bytes < 1000 and 0 < found.request_weights < 1 and found.answer_bytes == 4
