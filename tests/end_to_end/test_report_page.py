"""The report in a real browser (Debian's chromium): it draws without errors or network, sorts, filters, and fits a phone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from burnish.report import page

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("altair")
CHROMIUM = Path(os.environ.get("BURNISH_CHROMIUM", "/usr/bin/chromium"))
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}: apt-get install chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SAMPLE = Path(__file__).parents[1] / "golden" / "report.json"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    report = json.loads(SAMPLE.read_text())
    report["title"] = "Ranker <img src=x onerror=alert(1)> & co"
    return page.write(report, tmp_path_factory.mktemp("report")).as_uri()


@pytest.fixture
def show(browser, url):
    """Opens the page as `options` say; fails on anything said on the console and on any request but the page itself."""
    contexts, said = [], []

    def opened(**options: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        shown = contexts[-1].new_page()
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.on("request", lambda request: said.append(request.url) if request.url != url else None)
        shown.goto(url)
        shown.wait_for_selector("html[data-drawn]")
        return shown

    yield opened
    for context in contexts:
        context.close()
    assert said == []


def names(shown: Any) -> list[str]:
    return shown.locator("#trials-table tbody:visible .name").all_inner_texts()


def column(shown: Any, name: str) -> list[str]:
    at = [text.split()[0] for text in shown.locator("#trials-table thead button").all_inner_texts()].index(name)
    return [row.locator("th, td").nth(at).inner_text().split("\n")[0] for row in shown.locator("#trials-table tr.row:visible").all()]


def test_the_page_draws_its_figures_without_errors_or_network(show):
    shown = show()
    assert shown.locator("#frontier-figure svg").count() == shown.locator("#latency-figure svg").count() == 1
    assert shown.locator("#load-figure svg").count() == 1
    assert shown.locator("#frontier-figure svg .mark-symbol path").count() >= 11
    assert "Ranker <img src=x onerror=alert(1)> & co" in shown.locator(".kicker").inner_text()
    assert shown.locator("img").count() == 0


def test_a_column_sorts_both_ways_and_what_was_not_measured_stays_last(show):
    shown = show()
    button = shown.get_by_role("button", name="p99")
    for direction, sign in (("ascending", 1), ("descending", -1)):
        button.click()
        assert shown.locator("#trials-table th", has=button).get_attribute("aria-sort") == direction
        told = column(shown, "p99")
        assert told[-1] == "–"
        values = [sign * int(text.replace(",", "")) for text in told[:-1]]
        assert values == sorted(values)
    shown.get_by_role("button", name="Recipe").click()
    assert names(shown) == sorted(names(shown), key=str.lower)
    assert shown.locator('#trials-table th[aria-sort="none"]').count() == 6


def test_trials_are_found_by_words_and_by_verdict(show):
    shown = show()
    assert shown.get_by_role("status").inner_text() == "12 of 12 trials"
    shown.get_by_role("searchbox").fill("OpenVINO")
    assert shown.get_by_role("status").inner_text() == "3 of 12 trials"
    shown.get_by_role("checkbox", name="rejected").uncheck()
    assert names(shown) == ["bf16", "int8 (smooth quant)"]
    shown.get_by_role("searchbox").fill("240,000 rows would settle it")
    assert names(shown) == []
    shown.get_by_role("checkbox", name="rejected").check()
    assert names(shown) == ["int4-tables"]


def test_a_mark_of_the_figure_opens_its_trial(show):
    shown = show()
    marks = shown.locator('#frontier-figure path[aria-roledescription="point"]')
    marks.nth(5).click()
    opened = shown.locator("#trial-t06")
    assert opened.locator(".more").is_visible()
    assert opened.locator(".open").evaluate("button => button === document.activeElement")
    assert "picked" in opened.get_attribute("class")


def test_a_trial_shows_its_steps_with_what_was_decided_its_layers_and_its_measurements(show):
    shown = show()
    shown.locator("#trial-t06 .open").click()
    told = shown.locator("#trial-t06 .more").inner_text()
    assert "cross.0.weight and deep.0.weight (one scale a channel); deep.2.weight (one scale)" in told
    assert "deep.0.weight" in told and "0.0034 % · 192 of 1024" in told
    for words in ("Quality", "Sample", "One call at a time", "Under load", "Memory"):
        assert words in told


def test_layers_that_lose_most_come_first_and_lead_to_their_trial(show):
    shown = show()
    names = [each.inner_text() for each in shown.locator("#layers table").first.locator("tbody th").all()]
    assert names == ["deep.0.weight", "cross.0.weight", "deep.2.weight", "head.weight"]
    shown.locator("#layers a").nth(1).click()
    assert shown.url.endswith("#trial-t04")


def test_places_tell_what_speaks_against_them_and_estimates_are_marked(show):
    shown = show()
    rows = [" ".join(row.inner_text().split()) for row in shown.locator("#placement tbody tr").all()]
    assert rows[0].startswith("this machine chosen measured 6.8 ms")
    assert "estimate: scaled by its roofline" in rows[1] and "estimate" in rows[2]
    assert rows[2].endswith("p99 is 21 ms, and 10 ms are allowed; takes 5.6 MB of 4 MB")
    assert "no number does" in shown.locator("#capacity").inner_text()
    assert "p99 of 21 ms or more allowed: the phone" in shown.locator("#placement").inner_text()


def test_the_load_that_was_chosen_has_a_ring(show):
    assert (
        show().locator("#load-figure svg .mark-symbol path[fill='transparent'], #load-figure svg .mark-symbol path[fill='none']").count()
        == 3
    )


def test_the_keyboard_alone_reaches_and_opens_a_trial(show):
    shown = show()
    shown.keyboard.press("Tab")
    assert shown.locator(":focus").inner_text() == "Skip to the decision"
    shown.get_by_role("button", name="Weights").focus()
    shown.keyboard.press("Tab")
    assert shown.locator(":focus .name").inner_text() == "original"
    shown.keyboard.press("Enter")
    assert shown.locator("#trial-t01 .open").get_attribute("aria-expanded") == "true"
    assert "Highest load" not in shown.locator("#trial-t01 .more").inner_text()
    assert "2.54 ms" in shown.locator("#trial-t01 .more").inner_text()
    shown.keyboard.press("Enter")
    assert not shown.locator("#trial-t01 .more").is_visible()


def test_landmarks_headings_and_tables_are_named(show):
    shown = show()
    for role in ("banner", "main", "navigation", "contentinfo", "search"):
        assert shown.get_by_role(role).count() == 1, role
    assert shown.get_by_role("heading", level=1).count() == 1
    columns = {
        "trials": 7,
        "before and after": 3 + 1,
        "layers, twice": 4 + 4,
        "sensitivity": 3,
        "places": 7,
    }  # one is a corner with a hidden name
    assert shown.get_by_role("columnheader").count() == sum(columns.values())
    assert shown.locator("button:visible").evaluate_all("all => all.every(b => b.innerText.trim())")
    targets = shown.locator("nav a").evaluate_all("all => all.map(a => document.querySelector(a.getAttribute('href')) !== null)")
    assert len(targets) == 11 and all(targets)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground_in_light_and_dark(show, scheme):
    shown = show(color_scheme=scheme)
    # WCAG 2.2 relative luminance and contrast; 4.5 is its level AA for text
    ratios = shown.evaluate(
        """() => {
          const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
          const light = (colour) => {
            canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
            const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((c) => c / 255)
              .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
          };
          const ground = (element) => {
            for (let at = element; at; at = at.parentElement) {
              const colour = getComputedStyle(at).backgroundColor;
              if (!/^rgba\\(.*, 0\\)$/.test(colour)) return colour;
            }
            return 'white';
          };
          return ['.kicker span', 'h1', '.badge.chosen', '.badge.feasible', '.badge.rejected', '.badge.baseline',
            '.verdict p', '.trials small',
            'nav a', '.lead', '.facts dt', '.find input'].map((selector) => {
            const element = document.querySelector(selector);
            const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
            return [selector, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
          });
        }"""
    )
    assert {selector: round(ratio, 2) for selector, ratio in ratios if ratio < 4.5} == {}
    ground = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")


def test_a_phone_scrolls_down_only(show):
    shown = show(viewport={"width": 360, "height": 740}, device_scale_factor=2, is_mobile=True, has_touch=True)
    assert shown.evaluate("document.documentElement.scrollWidth") == 360
    for name in ("frontier", "latency", "load"):
        assert shown.locator(f"#{name}-figure svg").bounding_box()["width"] <= 360


def test_without_scripts_the_page_still_says_everything(browser, url):
    context = browser.new_context(java_script_enabled=False)
    shown = context.new_page()
    shown.goto(url)
    assert shown.locator("#trials-table tbody").count() == 12
    assert "need JavaScript" in shown.locator("noscript").inner_text()
    context.close()
