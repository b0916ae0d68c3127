"""`report.html`: everything in report.json on one page that opens offline. `figures.py` draws; `page.html`, `.css`, `.js` are the page.

A report may lack parts (a search that found nothing feasible, a trial that was not built): what is not there is left out.
"""

from __future__ import annotations

import math
import webbrowser
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from burnish.errors import BurnishError
from burnish.report import figures

NAME = "report.html"
_HERE = Path(__file__).parent
_TITLES = {
    "auc": "AUC",
    "gauc": "GAUC",
    "log_loss": "Log-loss",
    "calibration": "Calibration ratio",
    "normalized_entropy": "Normalized entropy",
    "ndcg": "NDCG",
    "topk_overlap": "Top-k overlap",
    "kendall_tau": "Kendall's tau",
    "auc_by_rows": "AUC, rows apart",
}
_IN_DETAIL_ONLY = ("auc_by_rows", "kendall_tau")
_LAYERS = 12  # of a trial, those that lose most
_SLICES = 8  # shown of a trial, those that lost most first
_COLUMNS = (  # of the table of trials; the name of the third is the gate's metric
    {"name": "Recipe", "unit": "", "number": False, "right": False},
    {"name": "Verdict", "unit": "", "number": True, "right": False},
    {"name": "", "unit": "", "number": True, "right": True},
    {"name": "p50", "unit": "µs", "number": True, "right": True},
    {"name": "p99", "unit": "µs", "number": True, "right": True},
    {"name": "Candidates", "unit": "/s/core", "number": True, "right": True},
    {"name": "Weights", "unit": "", "number": True, "right": True},
)


def write(report: Mapping[str, Any], out: Path) -> Path:
    """Write `report` (the content of report.json) as out/report.html, whole or not at all; its path."""
    path = Path(out) / NAME
    part = path.with_name(f".{NAME}.part")
    part.write_text(render(report), encoding="utf-8")
    part.replace(path)
    return path


def open_page(path: str | Path) -> Path:
    """Show the report of a finished search, given its directory or the page itself, in the user's browser; the page's path."""
    path = Path(path)
    page = path / NAME if path.is_dir() else path
    if not page.is_file():
        raise BurnishError(f"there is no {NAME} at {path}. `burnish optimize` writes one into its --out directory")
    webbrowser.open(page.resolve().as_uri())
    return page


def render(report: Mapping[str, Any]) -> str:
    """The page as text."""
    import jinja2
    from markupsafe import Markup

    drawn = {"frontier": figures.frontier(report), "latency": figures.latency(report), "load": figures.load(report)}
    specs = msgspec.json.encode(drawn).decode()
    for character in "<>&":  # inside a script element no text may look like its end
        specs = specs.replace(character, f"\\u{ord(character):04x}")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return page.from_string((_HERE / "page.html").read_text(encoding="utf-8")).render(
        _view(report, drawn),
        **drawn,
        specs=Markup(specs),
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        js=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
        vega=Markup(figures.script()) if any(drawn.values()) else "",
    )


def _view(report: Mapping[str, Any], drawn: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows, as text."""
    decision, host = report.get("decision") or {}, report.get("host") or {}
    sentence = decision.get("sentence") or "No decision was made."
    trials = [_trial(trial, report) for trial in report.get("trials") or ()]
    counts = {status: sum(trial["status"] == status for trial in trials) for status in figures.STATUSES}
    comparison, capacity, layers = _comparison(report), _capacity(report), _guilty(report)
    changes, places = _sensitivity(report), _places(report)
    sections = [
        ("decision", "Decision", True),
        ("compare", "Before and after", comparison),
        ("frontier", "Cost and quality", drawn["frontier"]),
        ("trials", "Trials", trials),
        ("layers", "Layers", layers),
        ("latency", "Latency", drawn["latency"]),
        ("load", "Load", drawn["load"]),
        ("capacity", "Capacity", capacity),
        ("placement", "Placement", places),
        ("method", "Method", True),
        ("repeat", "Repeat it", report.get("command")),
    ]
    columns = [dict(column) for column in _COLUMNS]
    columns[2] |= {"name": f"{_metric(report)} change", "unit": "%" if _relative(report) else "pp"}
    return {
        "title": report.get("title") or "A ranker",
        "sentence": sentence,
        "sentences": [told for told in decision.get("sentences") or () if told != sentence] + _refreshed(report),
        "sections": [(id_, name) for id_, name, there in sections if there],
        "figures_of_merit": _figures_of_merit(report),
        "comparison": comparison,
        "compared": [(name, colour) for (name, _), colour in zip(figures.compared(report), figures.COLOURS)],
        "trial_columns": columns,
        "trials": trials,
        "statuses": [(status, figures.STATUSES[status], count) for status, count in counts.items() if count],
        "layers": layers,
        "capacity": capacity,
        "advice": ((report.get("capacity") or {}).get("autoscaling") or {}).get("sentence"),
        "sensitivity": changes,
        "places": places,
        "place_verdict": report.get("placement_verdict") or {},
        "candidates": (report.get("objective") or {}).get("candidates"),
        "method": _method(report),
        "host": {"cpu": host.get("cpu"), "cores": host.get("cores"), "flags": host.get("flags") or ()},
        "version": (report.get("versions") or {}).get("burnish"),
        "command": report.get("command"),
        "created": (report.get("created") or "").replace("T", " ").replace("+00:00", " UTC"),
        "seconds": duration(report["seconds"]) if report.get("seconds") else "",
    }


def _figures_of_merit(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The handful of numbers at the top."""
    ratios, capacity, chosen = report.get("ratios") or {}, report.get("capacity") or {}, report.get("chosen") or {}
    found = []
    for key, who in (("baseline", "the model as it came"), ("best_peer", "the best other tool")):
        times, between = ratios.get(f"throughput_vs_{key}"), ratios.get(f"throughput_vs_{key}_interval")
        if times and chosen.get("id") != (ratios.get("best_peer") if key == "best_peer" else (report.get("baseline") or {}).get("id")):
            span = f" ({between[0]:.3g} to {between[1]:.3g})" if between else ""
            found.append({"name": "Throughput", "value": f"{times:.1f}×", "note": f"of {who}{span}"})
    moved = figures.change(chosen, report.get("accuracy") or {})
    if moved:
        unit = "%" if _relative(report) else "pp"
        told = f"{signed(moved['low'])} to {signed(moved['high'])} {unit}"
        found.append({"name": f"{_metric(report)} change", "value": f"{signed(moved['value'])} {unit}", "note": told})
    load = chosen.get("load") or {}
    if load.get("p99_us"):
        note = f"at {number(load['qps'])} requests/s a core" + (", simulated" if load.get("simulated") else "") if load.get("qps") else ""
        found.append({"name": "p99 under load", "value": time_of(load["p99_us"]), "note": note})
    if capacity.get("usd_per_million_candidates") is not None:
        replicas = f"{number(capacity['replicas'])} replicas" if capacity.get("replicas") else ""
        found.append({"name": "A million candidates", "value": usd(capacity["usd_per_million_candidates"]), "note": replicas})
    return found


def _comparison(report: Mapping[str, Any]) -> dict[str, Any] | None:
    shown = figures.compared(report)
    if len(shown) < 2:
        return None
    trials = [trial for _, trial in shown]
    columns = [tuple(name.split(": ", 1)) for name, _ in shown]
    rows = []

    def row(name: str, note: str, cells: Iterable[tuple[str, str, str]]) -> None:
        told = [{"value": value, "note": remark, "between": between} for value, remark, between in cells]
        if any(cell["value"] != "–" for cell in told):
            rows.append({"name": name, "note": note, "cells": told})

    first = trials[0]
    metrics = [{key: value for key, value in (t.get("quality") or {}).items() if isinstance(value, Mapping)} for t in trials]
    for key in dict.fromkeys(key for found in metrics for key in found if key not in _IN_DETAIL_ONLY):
        told = [_quality(found.get(key)) for found in metrics]
        if first is report.get("baseline"):  # it is what the others are compared with
            told[0] = (told[0][0], "", "")
        row(_TITLES.get(key, key), "", told)

    def measure(name: str, note: str, get: Callable[[Any], float | None], form: Callable[[float], str], better: str, worse: str) -> None:
        """A row of numbers, each with how many times better it is than the first; `better` = "more" says that a larger one is."""
        cells = []
        for trial in trials:
            mine, theirs, remark = get(trial), get(first), ""
            if mine and theirs and trial is not first:
                times = mine / theirs if better == "more" else theirs / mine
                remark = f"{times:.1f}× {better}" if times >= 1 else f"{1 / times:.1f}× {worse}"
            cells.append(("–" if mine is None else form(mine), remark, ""))
        row(name, note, cells)

    measure("p50", "one call at a time", lambda t: (t.get("latency_us") or {}).get("p50"), time_of, "faster", "slower")
    measure("p99", "one call at a time", lambda t: (t.get("latency_us") or {}).get("p99"), time_of, "faster", "slower")
    measure("Candidates a second", "one core", lambda t: t.get("candidates_per_second_per_core"), number, "more", "fewer")
    simulated = any((trial.get("load") or {}).get("simulated") for trial in trials)
    note = "one core, within the objective" + (", simulated where no load test was valid" if simulated else "")
    measure("Requests a second", note, lambda t: (t.get("load") or {}).get("qps"), number, "more", "fewer")
    measure("Weights", "", lambda t: t.get("weight_bytes"), size, "smaller", "larger")
    return {"columns": columns, "rows": rows}


def _quality(metric: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """A metric's value, its change, and the change's interval."""
    if not metric or metric.get("value") is None:
        return "–", "", ""
    value = f"{metric['value']:.5f}"
    if metric.get("delta") is None or (metric["delta"] == 0 and metric.get("low") in (None, 0)):
        return value, "", ""
    low, high = metric.get("low"), metric.get("high")
    between = f" ({signed(low, 5)} to {signed(high, 5)})" if low is not None and high is not None else ""
    return value, signed(metric["delta"], 5), between


def _trial(trial: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """One trial as the table shows it."""
    latency, quality, load = trial.get("latency_us") or {}, trial.get("quality") or {}, trial.get("load") or {}
    moved = figures.change(trial, report.get("accuracy") or {})
    rate = trial.get("candidates_per_second_per_core")
    best = max((t.get("candidates_per_second_per_core") or 0 for t in report["trials"]), default=0)

    def cell(value: Any, text: str, note: str = "", share: float | None = None) -> dict[str, Any]:
        return {"sort": "" if value is None else value, "value": "–" if value is None else text, "note": note, "share": share}

    p50, p99, weights = latency.get("p50"), latency.get("p99"), trial.get("weight_bytes")
    between = f"{signed(moved['low'])} to {signed(moved['high'])}" if moved and moved["low"] != moved["high"] else ""
    metrics = [(key, value) for key, value in quality.items() if isinstance(value, Mapping)]
    groups = [
        ("Quality", [(_TITLES.get(key, key), " ".join(part for part in _quality(value) if part)) for key, value in metrics]),
        ("Slices, AUC", _slices(quality.get("slices") or ())),
        ("Sample", [(name.capitalize(), number(quality[name])) for name in ("rows", "positives", "requests") if quality.get(name)]),
        ("One call at a time", [(n, time_of(latency[n])) for n in ("p50", "p99", "mean") if latency.get(n) is not None]),
        ("Under load", _load(load)),
        (
            "Memory",
            [
                (n, size(trial[f"{n.lower()}_bytes"]))
                for n in ("Weight", "Arena", "Resident")
                if trial.get(f"{n.lower()}_bytes") is not None
            ],
        ),
    ]
    if latency.get("count"):
        groups[3][1].append(("Calls", number(latency["count"])))
    status = trial.get("status", "")
    return {
        "id": trial["id"],
        "name": trial["recipe"],
        "backend": trial["backend"],
        "threads": trial.get("threads"),
        "status": status,
        "verdict": figures.STATUSES.get(status, status) + (f": {trial['stage']}" if status == "rejected" and trial.get("stage") else ""),
        "order": list(figures.STATUSES).index(status) if status in figures.STATUSES else len(figures.STATUSES),
        "reason": trial.get("reason") or "",
        "steps": _steps(trial),
        "layers": _layers(trial),
        "cells": [
            cell(moved and moved["value"], signed(moved["value"]) if moved else "", between),
            cell(p50, number(p50)),
            cell(p99, number(p99)),
            cell(rate, number(rate), share=round(100 * rate / best, 1) if rate else None),
            cell(weights, size(weights or 0)),
        ],
        "notes": [
            note for note in (trial.get("verdict"), latency.get("note"), load.get("sentence"), *(quality.get("notes") or ())) if note
        ],
        "groups": [{"name": name, "facts": facts} for name, facts in groups if facts],
    }


def _refreshed(report: Mapping[str, Any]) -> list[str]:
    """What a refresh says of itself."""
    told = (report.get("refresh") or {}).get("sentence")
    return [f"Refreshed: {told}."] if told else []


def _steps(trial: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The steps of a recipe, and under each what the calibration rows decided."""
    steps, decided = trial.get("steps") or (), (trial.get("decided") or {}).get("steps") or ()
    if len(steps) != len(decided):
        return [(step, "") for step in steps]
    return [(step, _choices(filled)) for step, filled in zip(steps, decided)]


def _choices(step: Mapping[str, Any]) -> str:
    for key in ("widths", "ranks"):
        if isinstance(step.get(key), list | tuple):
            return ", ".join(f"{name}: {size}" for name, size in step[key]) or "nothing"
    if isinstance(step.get("schemes"), list | tuple):
        return "; ".join(
            f"{' and '.join(names)} ({'one scale a channel' if kind == 'channel' else 'one scale'})" for kind, *names in step["schemes"]
        )
    if isinstance(step.get("int4"), list | tuple):
        return f"int4 in {', '.join(step['int4'])}" if step["int4"] else "int4 nowhere"
    return ""


def _layers(trial: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each layer alone loses, in per cent of the metric, those that lose most first."""
    found = sorted(trial.get("layers") or (), key=lambda layer: -(layer.get("loss") or 0))
    most = max((layer.get("loss") or 0 for layer in found), default=0) or 1
    return [
        {
            "name": layer["name"],
            "loss": "–" if layer.get("loss") is None else f"{100 * layer['loss']:.4f}",
            "share": round(100 * max(layer.get("loss") or 0, 0) / most, 1),
            "macs": number(layer["macs"]) if layer.get("macs") is not None else "–",
            "kept": str(layer.get("kept") or ""),
        }
        for layer in found[:_LAYERS]
    ]


def _guilty(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The layers of the chosen trial, and of rejected ones that lost accuracy."""
    shown = []
    for trial in report.get("trials") or ():
        lost = trial.get("status") == "rejected" and trial.get("stage") in ("screen", "quality")
        if (trial.get("status") == "chosen" or lost) and _layers(trial):
            shown.append(
                {"id": trial["id"], "name": f"{trial['recipe']} · {trial['backend']}", "status": trial["status"], "layers": _layers(trial)}
            )
    return sorted(shown, key=lambda each: each["status"] != "chosen")


def _sensitivity(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """What one change at a time does to machines and price."""
    capacity = report.get("capacity") or {}
    rows = capacity.get("sensitivity") or ()
    now = {"change": "as planned", "machines": capacity.get("machines"), "usd_per_month": capacity.get("usd_per_month")}
    return [
        {
            "change": row["change"],
            "machines": "no number does" if row["machines"] is None else number(row["machines"]),
            "month": "–" if row["usd_per_month"] is None else usd(row["usd_per_month"]),
        }
        for row in ([now, *rows] if rows else ())
    ]


def _places(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Ways to deploy, the chosen first, then those that can be; what speaks against the others."""
    found = sorted(
        report.get("placement") or (), key=lambda place: (not place["chosen"], bool(place["obstacles"]), place["usd_per_month"] or 0)
    )
    return [
        {
            "name": place["name"],
            "how": "measured" if place["measured"] else f"estimate: {place['estimate']}",
            "chosen": place["chosen"],
            "p99": f"{place['p99_ms']:.3g} ms" if math.isfinite(place["p99_ms"] or math.inf) else "–",
            "network": f"{place['network_p99_ms']:.3g} ms",
            "compute": f"{place['compute_p99_ms']:.3g} ms",
            "machines": "–" if place["machines"] is None else number(place["machines"]),
            "month": "–" if place["usd_per_month"] is None else usd(place["usd_per_month"]),
            "obstacles": "; ".join(place["obstacles"]),
        }
        for place in found
    ]


def _slices(slices: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """AUC's change in the slices that lost most, with p after Holm's correction for their number."""
    worst = sorted((s for s in slices if s.get("auc")), key=lambda s: s["auc"]["delta"])[:_SLICES]
    return [
        (f"{s['name']} = {s['value']} ({number(s['rows'])} rows)", f"{signed(s['auc']['delta'], 5)}, p {max(s['p_holm'], 1e-4):.2g}")
        for s in worst
    ]


def _load(load: Mapping[str, Any]) -> list[tuple[str, str]]:
    told = []
    if load.get("qps"):
        told.append(("Requests a second", number(load["qps"]) + (" (simulated)" if load.get("simulated") else "")))
    for key, name in (("p50_us", "p50"), ("p99_us", "p99")):
        if load.get(key):
            told.append((name, time_of(load[key])))
    if load.get("utilization"):
        told.append(("Busy", f"{100 * load['utilization']:.0f} %"))
    if load.get("queries"):
        told.append(("Queries", number(load["queries"])))
    if load.get("valid") is not None:
        told.append(("Valid run", "yes" if load["valid"] else "no"))
    return told


def _capacity(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    capacity = report.get("capacity") or {}
    forms: tuple[tuple[str, str, Any], ...] = (
        ("replicas", "Replicas", number),
        ("replicas_interval", "Replicas, with the load's error", lambda v: f"{number(v[0])} to {number(v[1])}"),
        ("machines", "Machines", number),
        ("spare_machines", "of them spare", number),
        ("cores_per_machine", "Cores of a machine", number),
        ("price_per_hour", "Price of a machine, an hour", usd),
        ("qps", "For requests a second", number),
        ("candidates", "Candidates a request", number),
        ("p99_ms", "p99 allowed", lambda v: f"{v:g} ms"),
        ("predicted_p99_ms", "p99 predicted", lambda v: f"{v:.3g} ms"),
        ("utilization", "Busy", lambda v: f"{100 * v:.0f} %"),
        ("headroom", "Head-room", lambda v: f"{100 * v:g} %"),
        ("usd_per_million_candidates", "A million ranked candidates", usd),
        ("usd_per_month", "A month", usd),
    )
    return [(name, form(capacity[key])) for key, name, form in forms if capacity.get(key) is not None]


def _method(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Sample sizes, gate, objective, machine, versions."""
    data, accuracy, objective, host = (report.get(key) or {} for key in ("data", "accuracy", "objective", "host"))
    gate = []
    if accuracy.get("max_drop") is not None:
        unit = "%, relative" if _relative(report) else "percentage points"
        gate.append((f"{_metric(report)} may fall by", f"{100 * accuracy['max_drop']:g} {unit}"))
    if accuracy.get("confidence"):
        gate.append(("Judged by", f"the bad end of the {100 * accuracy['confidence']:g} % interval, paired on the same rows"))
    goal = [
        (n, f"{objective[k]:g} ms" if k == "p99_ms" else _plain(objective[k]))
        for k, n in (("p99_ms", "p99 within"), ("qps", "Requests a second"), ("candidates", "Candidates a request"))
        if objective.get(k) is not None
    ]
    machine = [
        (n, _plain(host[k])) for k, n in (("cpu", "CPU"), ("arch", "Architecture"), ("cores", "Cores"), ("os", "System")) if host.get(k)
    ]
    if host.get("cache_bytes"):
        machine.append(("Caches", ", ".join(f"L{level} {_binary(n)}" for level, n in enumerate(host["cache_bytes"], 1))))
    if host.get("memory_bytes"):
        machine.append(("Memory", _binary(host["memory_bytes"])))
    groups = [
        ("Samples", [(key.replace("_", " ").capitalize(), _plain(value)) for key, value in data.items() if value is not None]),
        ("Gate", gate),
        ("Objective", goal),
        ("Machine", machine),
        ("Versions", [*(report.get("versions") or {}).items(), *([("python", report["python"])] if report.get("python") else [])]),
    ]
    return [{"name": name, "facts": facts} for name, facts in groups if facts]


def _relative(report: Mapping[str, Any]) -> bool:
    return (report.get("accuracy") or {}).get("drop_type", "relative") == "relative"


def _metric(report: Mapping[str, Any]) -> str:
    metric = (report.get("accuracy") or {}).get("metric", "auc")
    return _TITLES.get(metric, metric)


def _plain(value: Any) -> str:
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def number(value: float | None) -> str:
    """12,345; 352; 8.31: three digits at least, thousands apart."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.3g}"


def time_of(us: float) -> str:
    """402 µs, 9.21 ms, 1.5 s"""
    for limit, scale, unit in ((999.5, 1, "µs"), (999.5e3, 1e3, "ms")):  # beyond these, three digits round to a thousand
        if us < limit:
            return f"{us / scale:.3g} {unit}"
    return f"{us / 1e6:.3g} s"


def duration(seconds: float) -> str:
    """42 s, 4 min 3 s"""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def signed(value: float, digits: int = 3) -> str:
    """+0.012, −0.008, 0: with a true minus sign, and without the sign where it rounds to nothing."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("−" if value < 0 else "+") + text


def size(bytes_: float) -> str:
    """5.6 MB, 412 kB, 3.2 GB"""
    for limit, scale, unit in ((1e6, 1e3, "kB"), (1e9, 1e6, "MB")):
        if bytes_ < limit:
            return f"{bytes_ / scale:,.1f} {unit}"
    return f"{bytes_ / 1e9:,.1f} GB"


def usd(value: float) -> str:
    """$3,599, $1.25, $0.17, $0.00021"""
    digits = 0 if value >= 100 or value == 0 else max(2, 1 - math.floor(math.log10(value)))
    return f"${value:,.{digits}f}"


def _binary(bytes_: float) -> str:
    for limit, scale, unit in ((1 << 20, 1 << 10, "KiB"), (1 << 30, 1 << 20, "MiB")):
        if bytes_ < limit:
            return f"{bytes_ / scale:,.3g} {unit}"
    return f"{bytes_ / (1 << 30):,.3g} GiB"
