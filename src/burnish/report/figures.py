"""The report's figures as Vega-Lite specifications. Colours are CSS variables of the page, so that one figure serves light and dark.

Each function takes report.json's content and returns a specification, or None where there is nothing to draw.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair

Spec = dict[str, Any]
STATUSES = {"chosen": "chosen", "feasible": "passes", "rejected": "rejected", "baseline": "as it came"}
_MARKS = {"chosen": "diamond", "feasible": "circle", "rejected": "cross", "baseline": "square"}
COLOURS = ("baseline", "chosen", "feasible")  # of the trials that `compared` sets side by side
_DEEPEST = 6  # allowed drops below zero where the frontier ends: one ruined trial shall not flatten the others
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def change(trial: Mapping[str, Any], accuracy: Mapping[str, Any]) -> dict[str, float] | None:
    """What the gate looks at, in per cent (relative) or percentage points (absolute): value, low and high; None where unmeasured."""
    quality = (trial.get("quality") or {}).get(accuracy.get("metric", "auc"))
    if not quality:
        return None
    if accuracy.get("drop_type", "relative") == "relative":
        keys = ("relative", "relative_low", "relative_high")
    else:
        keys = ("delta", "low", "high")
    value = quality.get(keys[0])
    if value is None:
        return None
    low, high = (quality.get(key) for key in keys[1:])
    return {"value": 100 * value, "low": 100 * (value if low is None else low), "high": 100 * (value if high is None else high)}


def frontier(report: Mapping[str, Any]) -> Spec | None:
    """Cost against quality: each trial by its core-microseconds a candidate and the gate's metric with its interval.

    A trial far below the gate is drawn at the lower edge; its tooltip has the number.
    """
    accuracy = report.get("accuracy") or {}
    drop = accuracy.get("max_drop")
    floor = -100 * drop * _DEEPEST if drop else -math.inf
    points: list[dict[str, Any]] = []
    for trial in report.get("trials") or ():
        rate, moved = trial.get("candidates_per_second_per_core"), change(trial, accuracy)
        if rate and moved:
            drawn = {f"y_{end}": max(moved[end], floor) for end in ("value", "low", "high")}
            name = f"{trial['recipe']} · {trial['backend']}"
            point = {"id": trial["id"], "trial": name, "status": STATUSES[trial["status"]], "cost": 1e6 / rate, **moved, **drawn}
            points.append(point | {"p99": (trial.get("latency_us") or {}).get("p99")})
    if not points:
        return None
    low, high = _around([point["cost"] for point in points])
    for point in points:  # names near an edge grow away from it
        where = math.log(point["cost"] / low) / math.log(high / low)
        point["align"] = "left" if where < 0.25 else "right" if where > 0.6 else "center"
    import altair as alt

    unit = "% relative" if accuracy.get("drop_type", "relative") == "relative" else "percentage points"
    metric = str(accuracy.get("metric", "auc")).upper().replace("_", " ")
    title = f"{metric} change, {unit}, with its {100 * accuracy.get('confidence', 0.95):g} % interval"
    x = alt.X("cost:Q", title="core-µs a candidate (log scale; left is cheaper)")
    x = x.scale(type="log", domain=[low, high], nice=False).axis(format=",.3~r", tickCount=6)
    colour = alt.Color("status:N", legend=None).scale(domain=list(STATUSES.values()), range=[f"var(--{name})" for name in STATUSES])
    shape = alt.Shape("status:N", legend=None).scale(domain=list(STATUSES.values()), range=list(_MARKS.values()))
    base = alt.Chart(alt.Data(values=points)).encode(x=x, color=colour)
    bottom = min([point["y_low"] for point in points] + ([-100 * drop] if drop else []))
    top = max([point["y_high"] for point in points] + [0.0])
    air = (top - bottom) or 1.0
    y = alt.Y("y_low:Q", title=title).scale(domain=[bottom - 0.1 * air, top + 0.15 * air], nice=False)
    bars = base.mark_rule(strokeWidth=1.5, opacity=0.55).encode(y=y, y2="y_high:Q")
    marks = base.mark_point(filled=True, cursor="pointer", opacity=1, strokeWidth=2).encode(
        y="y_value:Q",
        shape=shape,
        size=alt.condition("datum.id === picked || datum.status === 'chosen'", alt.value(190), alt.value(80)),
        stroke=alt.condition("datum.id === picked", alt.value("var(--ink)"), alt.value("transparent")),
        tooltip=[
            alt.Tooltip("trial:N", title="trial"),
            alt.Tooltip("status:N", title="verdict"),
            alt.Tooltip("cost:Q", title="core-µs a candidate", format=".3~s"),
            alt.Tooltip("value:Q", title=f"{metric} change, {unit}", format="+.4f"),
            alt.Tooltip("low:Q", title="interval from", format="+.4f"),
            alt.Tooltip("high:Q", title="to", format="+.4f"),
            alt.Tooltip("p99:Q", title="p99 of one call, µs", format=",.4~g"),
        ],
    )
    named = base.transform_filter("datum.status === 'chosen' || datum.status === 'as it came'")
    names = named.mark_text(dy=-12, fontSize=12, fontWeight=600, align=alt.ExprRef("datum.align"))
    layers: list[Any] = [bars, marks, names.encode(y="y_high:Q", text="trial:N")]
    if drop:
        layers = [*_limit(alt, -100 * drop, f"allowed drop, {100 * drop:g} {unit}", "top", "right"), *layers]
    return _finished(alt.layer(*layers).add_params(alt.param("picked", value="")), 340)


def latency(report: Mapping[str, Any]) -> Spec | None:
    """Quantiles of one call at a time: the model as it came, the chosen trial and the best other tool."""
    rows = []
    for name, trial in compared(report):
        for share, us in (trial.get("latency_us") or {}).get("curve") or ():
            # the slowest call of all is no quantile of the distribution; a clock that ticked not once is no point of a log scale
            if share < 100 and us > 0:
                # "nines": 90 % at 1, 99 % at 2, 99.9 % at 3, so that the tail has room
                rows.append({"trial": name, "nines": -math.log10(1 - share / 100), "share": share, "us": us})
    if not rows:
        return None
    import altair as alt

    last = max(row["nines"] for row in rows)
    ticks = [at for at in (math.log10(2), 1.0, 2.0, 3.0, 4.0) if at <= last + 1e-6]
    x = alt.X("nines:Q", title="share of calls answered within")
    y = alt.Y("us:Q", title="µs a call (log scale)").scale(type="log", domain=list(_around([row["us"] for row in rows])), nice=False)
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=alt.OverlayMarkDef(size=24), strokeWidth=2)
        .encode(
            x=x.axis(values=ticks, labelExpr="format(100 * (1 - pow(10, -datum.value)), '.4~g') + ' %'", labelFlush=True),
            y=y.axis(format=",.3~r", tickCount=6),
            **_lines(report),
            tooltip=[
                alt.Tooltip("trial:N", title="trial"),
                alt.Tooltip("share:Q", title="share of calls, %", format=".4~g"),
                alt.Tooltip("us:Q", title="µs", format=",.4~g"),
            ],
        )
    )
    return _finished(chart, 280)


def load(report: Mapping[str, Any]) -> Spec | None:
    """p99 by load on one core, up to beyond the objective; a ring is the highest load that kept it, which capacity is computed from."""
    rows, kept = [], []
    for name, trial in compared(report):
        found = trial.get("load") or {}
        for qps, p99_us in found.get("curve") or ():
            rows.append({"trial": name, "qps": qps, "p99_ms": p99_us / 1000})
        if found.get("curve") and found.get("qps"):
            kept.append({"trial": name, "qps": found["qps"], "p99_ms": found["p99_us"] / 1000})
    if not rows:
        return None
    import altair as alt

    allowed = (report.get("objective") or {}).get("p99_ms")
    # beyond the objective a queue grows without bound, and only that it does is of interest
    top = 1.5 * allowed if allowed else max(row["p99_ms"] for row in rows)
    x = alt.X("qps:Q", title="requests a second on one core").axis(format=",.3~r", tickCount=6, labelFlush=True)
    y = alt.Y("p99_ms:Q", title="p99, ms, from the intended start").scale(domain=[0, top], clamp=True)
    tooltip = [
        alt.Tooltip("trial:N", title="trial"),
        alt.Tooltip("qps:Q", title="requests a second", format=",.4~g"),
        alt.Tooltip("p99_ms:Q", title="p99, ms", format=".3~g"),
    ]
    lines = alt.Chart(alt.Data(values=rows)).mark_line(point=alt.OverlayMarkDef(size=30), strokeWidth=2)
    rings = alt.Chart(alt.Data(values=kept)).mark_point(size=170, strokeWidth=2, filled=False)
    layers: list[Any] = [
        lines.encode(x=x, y=y.axis(tickCount=5), tooltip=tooltip, **_lines(report)),
        rings.encode(x=x, y=y, tooltip=tooltip, color=_lines(report)["color"]),
    ]
    if allowed:
        layers = [*_limit(alt, allowed, f"objective, {allowed:g} ms", "bottom", "left"), *layers]
    return _finished(alt.layer(*layers), 280)


def compared(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The trials that the report sets side by side, with their names: as it came, chosen, best other tool (where known)."""
    found = [("as it came", report.get("baseline")), ("chosen", report.get("chosen")), ("best other tool", best_peer(report))]
    shown: list[tuple[str, Mapping[str, Any]]] = []
    for name, trial in found:
        if trial and all(trial.get("id") != other.get("id") for _, other in shown):
            shown.append((f"{name}: {trial['recipe']} · {trial['backend']}", trial))
    return shown


def best_peer(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The trial that `ratios.best_peer` names by its id, if it is among the trials."""
    name = (report.get("ratios") or {}).get("best_peer")
    return next((trial for trial in report.get("trials") or () if name is not None and trial.get("id") == name), None)


@functools.cache
def script() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script (0.9 MB), from the vl-convert package: no network is needed for it."""
    import vl_convert

    return str(vl_convert.javascript_bundle())  # type: ignore[call-arg]  # its stub lacks the default


def _lines(report: Mapping[str, Any]) -> dict[str, Any]:
    """Colour and dash of the compared trials' lines."""
    import altair as alt

    names = [name for name, _ in compared(report)]
    colours, dashes = [f"var(--{colour})" for colour in COLOURS], [[1, 0], [1, 0], [6, 3]]
    return {
        "color": alt.Color("trial:N", legend=None).scale(domain=names, range=colours[: len(names)]),
        "strokeDash": alt.StrokeDash("trial:N", legend=None).scale(domain=names, range=dashes[: len(names)]),
    }


def _limit(alt: Any, value: float, text: str, baseline: str, align: str) -> list[Any]:
    """A dashed line at `value` with its name: above it ("bottom" is the text's baseline there) or below, at the left or right end."""
    limit = alt.Chart(alt.Data(values=[{"limit": value, "text": text}]))
    dx, dy = 4 if align == "left" else -4, 5 if baseline == "top" else -5
    words = limit.mark_text(align=align, baseline=baseline, dx=dx, dy=dy, color="var(--muted)", fontSize=11)
    return [
        limit.mark_rule(strokeDash=[5, 4], color="var(--muted)").encode(y="limit:Q"),
        words.encode(x=alt.value(0 if align == "left" else "width"), y="limit:Q", text="text:N"),
    ]


def _around(values: Sequence[float]) -> tuple[float, float]:
    """A logarithmic domain that has the values with a little air at both ends."""
    air = max(max(values) / min(values), 1.2) ** 0.08
    return min(values) / air, max(values) * air


def _finished(chart: altair.LayerChart | altair.FacetChart | altair.Chart, height: int) -> Spec:
    """The specification, as wide as its place on the page; the legend is the page's, which wraps on a phone."""
    chart = chart.properties(width="container", height=height, background="transparent", autosize={"type": "fit-x", "contains": "padding"})
    lines = dict.fromkeys(("domainColor", "gridColor", "tickColor"), "var(--line)")
    words = dict.fromkeys(("labelColor", "titleColor"), "var(--muted)")
    sizes = {"titleFontWeight": "normal", "titleFontSize": 12, "labelFontSize": 12, "titlePadding": 10, "labelPadding": 8}
    axis = {**lines, **words, **sizes, "domain": False, "ticks": False}
    spec: Spec = chart.to_dict()
    spec["config"] = {"font": _FONT, "view": {"stroke": None}, "text": {"color": "var(--ink)"}, "axis": axis}
    return spec
