"""The report as text: every part is there, what is missing is left out, and nothing that a report says becomes markup."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from burnish.errors import BurnishError
from burnish.report import figures, page

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
SAMPLE = Path(__file__).parents[1] / "golden" / "report.json"  # invented numbers


@pytest.fixture
def report() -> dict[str, Any]:
    return json.loads(SAMPLE.read_text())


class Text(HTMLParser):
    """The text of a page and the ids of its elements, as a browser would find them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.script = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self._inside = tag
        self.tags.append(tag)
        told = dict(attributes)
        self.ids.append(told.get("id", ""))
        self._specs = told.get("id") == "specs"

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.script += data if self._specs else ""
        elif self._inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_a_time_of_zero_is_no_point_of_a_figure(report):
    """Times of a busy machine are taken from the processor's clock, which may not tick within a call."""
    latency = report["chosen"]["latency_us"]
    latency["curve"] = [[share, 0.0] for share, _ in latency["curve"]]
    drawn = figures.latency(report)
    assert drawn is not None and "0.0" not in str(drawn["encoding"]["y"]["scale"]["domain"][:1])


def test_every_part_is_on_the_page(report):
    found = Text(page.render(report))
    sections = ["decision", "compare", "frontier", "trials", "latency", "load", "capacity", "method", "repeat"]
    assert [id_ for id_ in found.ids if id_ in sections] == sections
    for sentence in (report["decision"]["sentence"], *report["decision"]["sentences"], report["command"]):
        assert sentence in found.text
    for trial in report["trials"]:
        assert f"trial-{trial['id']}" in found.ids
        assert (trial["reason"] or "") in found.text
    for words in (
        "60,000",
        "4,096",
        "AMD EPYC 9R14",
        "avx512_vnni",
        "2026.2.1",
        "6.4×",
        "−0.008 %",
        "−0.032 to +0.017",
        "$3,599",
        "95 % interval",
    ):
        assert words in found.text, words


def test_what_a_report_says_is_never_markup(report):
    nasty = "<script>alert('x')</script> & </style> {{ 7 * 7 }} \"'"
    report["title"] = report["command"] = report["decision"]["sentence"] = nasty
    report["host"]["cpu"] = report["versions"]["numpy"] = nasty
    for trial in report["trials"]:
        trial["recipe"] = trial["reason"] = nasty
        trial["steps"] = [nasty]
    text = page.render(report)
    assert nasty not in text
    found, plain = Text(text), Text(page.render(json.loads(SAMPLE.read_text())))
    assert found.tags.count("script") == plain.tags.count("script")
    assert found.text.count(nasty) > 3 * len(report["trials"])
    assert json.loads(found.script)["frontier"]["layer"][2]["data"]["values"][0]["trial"].startswith(nasty)


def without(report: dict[str, Any], path: str) -> dict[str, Any]:
    """The report without what `path` names ("*" is each entry of a list); the rest untouched."""
    left = copy.deepcopy(report)

    def remove(at: Any, keys: list[str]) -> None:
        for inner in at if keys[0] == "*" else [at]:
            rest = keys[1:] if keys[0] == "*" else keys
            if not isinstance(inner, dict) or rest[0] not in inner:
                continue
            if len(rest) == 1:
                del inner[rest[0]]
            else:
                remove(inner[rest[0]], rest[1:])

    remove(left, path.split("."))
    return left


OPTIONAL = [
    "title", "decision", "decision.sentences", "baseline", "chosen", "chosen.quality", "ratios", "ratios.best_peer", "capacity",
    "capacity.usd_per_month", "trials", "objective", "accuracy", "accuracy.max_drop", "data", "host", "host.flags", "versions",
    "command", "seconds", "created", "trials.*.quality", "trials.*.latency_us", "trials.*.load", "trials.*.steps",
    "trials.*.candidates_per_second_per_core", "trials.*.quality.auc", "trials.*.latency_us.curve", "trials.*.quality.auc.low",
    "trials.*.weight_bytes", "trials.*.reason", "trials.*.stage",
]  # fmt: skip


@pytest.mark.parametrize("path", OPTIONAL)
def test_what_is_missing_is_left_out(report, path):
    changed = without(report, path)
    assert changed != report
    found = Text(page.render(changed))
    assert {"decision", "method"} <= set(found.ids)
    assert "None" not in found.text


def test_a_search_that_chose_nothing_says_why_and_shows_its_trials(report):
    sentence = "nothing meets p99 1 ms at 128 candidates"
    report["decision"] = {"recipe": None, "backend": None, "sentence": sentence, "sentences": [sentence]}
    report |= {"chosen": None, "capacity": None, "ratios": {}}
    report["trials"][5] |= {"status": "rejected", "stage": "latency", "reason": "p99 of one call alone is 2 ms"}
    found = Text(page.render(report))
    assert found.text.count(sentence) == 1
    assert "p99 of one call alone is 2 ms" in found.text
    assert "capacity" not in found.ids and "compare" not in found.ids
    assert "None" not in found.text


def test_an_empty_report_is_a_page_that_says_so():
    found = Text(page.render({"schema": 1}))
    assert "No decision was made." in found.text
    assert {"frontier", "trials", "latency", "capacity", "compare"}.isdisjoint(found.ids)
    assert len(page.render({})) < 50_000  # no figures, no drawing script


def test_a_gate_in_percentage_points_is_told_in_percentage_points(report):
    report["accuracy"] |= {"drop_type": "absolute", "max_drop": 0.002}
    found = Text(page.render(report))
    assert "AUC change pp" in found.text
    assert "−0.006 pp" in found.text  # the delta, not the relative change
    assert "0.2 percentage points" in found.text


def test_a_ruined_trial_does_not_flatten_the_others(report):
    report["trials"][3]["quality"]["auc"] |= {"relative": -0.3, "relative_low": -0.31, "relative_high": -0.29}
    points = figures.frontier(report)["layer"][2]["data"]["values"]
    ruined = next(point for point in points if point["id"] == "t04")
    assert ruined["value"] == pytest.approx(-30)
    assert ruined["y_value"] == ruined["y_low"] == pytest.approx(-0.6)  # six allowed drops


def test_the_figures_have_the_reports_numbers(report):
    points = {point["id"]: point for point in figures.frontier(report)["layer"][2]["data"]["values"]}
    assert set(points) == {trial["id"] for trial in report["trials"]} - {"t12"}  # it was not built
    assert points["t06"]["cost"] == pytest.approx(1e6 / 317400)
    assert points["t06"]["value"] == pytest.approx(100 * report["chosen"]["quality"]["auc"]["relative"])
    lines = figures.latency(report)["data"]["values"]
    assert {line["trial"].split(":")[0] for line in lines} == {"as it came", "chosen", "best other tool"}
    p99 = next(line for line in lines if line["trial"].startswith("chosen") and line["share"] == 99)
    assert (p99["nines"], p99["us"]) == (pytest.approx(2), pytest.approx(report["chosen"]["latency_us"]["p99"], rel=0.01))


def test_the_load_figure_ends_where_the_objective_is_lost(report):
    figure = figures.load(report)
    assert figure["layer"][2]["encoding"]["y"]["scale"] == {"clamp": True, "domain": [0, 15]}
    assert figure["layer"][0]["data"]["values"][0]["limit"] == 10


def test_a_simulated_load_says_so_wherever_it_stands(report):
    for trial in (report["chosen"], report["trials"][5]):
        trial["load"] |= {"simulated": True, "valid": False, "curve": []}
    found = Text(page.render(report))
    assert "2,264 (simulated)" in found.text
    assert "at 2,264 requests/s a core, simulated" in found.text
    assert "one core, within the objective, simulated where no load test was valid" in found.text


def test_a_trial_tells_its_worst_slices_and_its_notes(report):
    report["trials"][5]["latency_us"]["note"] = "297 calls are too few for a p99"
    found = Text(page.render(report)).text
    assert "is_cold_item = 1 (5,790 rows)" in found
    assert "297 calls are too few for a p99" in found


def test_when_nothing_beats_the_model_as_it_came_it_is_shown_once(report):
    report["chosen"] = report["baseline"]
    del report["ratios"]["best_peer"]
    assert [name for name, _ in figures.compared(report)] == ["as it came: original · eager"]
    assert "compare" not in Text(page.render(report)).ids


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (page.number(317400.0), "317,400"), (page.number(8.314), "8.31"), (page.number(29), "29"), (page.number(None), "–"),
        (page.time_of(402.0), "402 µs"), (page.time_of(9210.0), "9.21 ms"), (page.time_of(1.5e6), "1.5 s"), (page.time_of(999.9), "1 ms"),
        (page.signed(-0.0081), "−0.008"), (page.signed(0.01), "+0.010"), (page.signed(-0.0001), "0.000"),
        (page.size(5619712), "5.6 MB"), (page.size(196608), "196.6 kB"), (page.size(3.2e9), "3.2 GB"),
        (page.usd(3599.0), "$3,599"), (page.usd(1.25), "$1.25"), (page.usd(0.00021), "$0.00021"), (page.usd(0), "$0"),
        (page.usd(0.17), "$0.17"), (page.usd(9.8e-5), "$0.000098"),
        (page.duration(243), "4 min 3 s"), (page.duration(42.2), "42 s"),
    ],
)  # fmt: skip
def test_numbers_are_told_for_people(told, expected):
    assert told == expected


def test_the_page_is_written_whole_and_names_no_address(report, tmp_path):
    path = page.write(report, tmp_path)
    assert path == tmp_path / "report.html"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    text = path.read_text()
    assert len(text) < 1_500_000
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", text.replace(figures.script(), ""))


def test_opening_a_page_that_is_not_there_has_a_sentence(report, tmp_path, monkeypatch):
    with pytest.raises(BurnishError, match=r"there is no report\.html at .*\. `burnish optimize` writes one into its --out directory"):
        page.open_page(tmp_path)
    opened = []
    monkeypatch.setattr(page.webbrowser, "open", opened.append)
    written = page.write(report, tmp_path)
    assert page.open_page(tmp_path) == page.open_page(written) == written
    assert opened == [written.as_uri()] * 2
