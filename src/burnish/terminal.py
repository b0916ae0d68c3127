"""What commands print: progress on standard error, the trials as a table, the plan, a bench."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from burnish.report.page import duration

if TYPE_CHECKING:
    from burnish.search.loop import Progress as Step
    from burnish.search.trial import Trial

PIPE_WIDTH = 160  # of a table that is not read on a terminal


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


class Shown:
    """Called with each step of a search: a bar that says what is done on a terminal, and a line for each finished trial."""

    def __init__(self, console: Console, live: Progress | None) -> None:
        self.console, self.live = console, live
        self.task = live.add_task("", total=1.0) if live else None
        self.told: set[str] = set()

    def __call__(self, step: Step) -> None:
        if step.trial is not None and step.trial.id not in self.told:
            self.told.add(step.trial.id)
            self.console.print(_line(step.trial), soft_wrap=True)
        if self.live is not None and self.task is not None:
            left = "" if step.left is None else f" ({duration(step.left)} left)"
            self.live.update(self.task, completed=step.done, description=f"{step.text}{left}" if step.text else None, refresh=True)

    def on(self, host: str, step: Step) -> None:
        """A step of one of several searches at once."""
        if self.live is None or self.task is None:
            self.console.print(f"{host}: {step.text}", soft_wrap=True)
        else:
            self.live.update(self.task, completed=step.done, description=f"{host}: {step.text}", refresh=True)


@contextmanager
def progress() -> Iterator[Shown]:
    """A place for a search to say what it does, on standard error."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield Shown(console, None)
        return
    columns = (BarColumn(24), TimeElapsedColumn(), TextColumn("{task.description}"))
    # drawn at each step and not in between: a thread that draws would take the core, and Python's lock, from what is measured
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as live:
        yield Shown(console, live)


def _line(trial: Trial) -> str:
    name = f"{trial.recipe.backend:12} {trial.recipe.name:12}"
    if trial.rejected:
        return f"{name} [red]rejected[/red] ({trial.rejected.stage}): {_safe(trial.rejected.reason)}"
    latency = trial.measured.latency_us or {}
    return f"{name} [green]feasible[/green]  p50 {_us(latency.get('p50'))} us, {latency.get('speedup', 0):.2f} x the original"


def trials(report: dict[str, Any]) -> None:
    """The trials as a table: the chosen first, then by speed; the rejected last, each with its sentence."""
    metric = report["accuracy"]["metric"]
    confidence = f"{report['accuracy']['confidence']:.0%}"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, right in (
        ("recipe", False),
        ("backend", False),
        (f"{metric} change [{confidence} interval]", True),
        ("p50 us", True),
        ("p99 us", True),
    ):
        table.add_column(_safe(name), justify="right" if right else "left", no_wrap=True)
    for name in ("cand/s/core", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    order = {"chosen": 0, "feasible": 1, "baseline": 1, "rejected": 2}
    for row in sorted(report["trials"], key=lambda row: (order[row["status"]], -(row["candidates_per_second_per_core"] or 0))):
        latency = row["latency_us"] or {}
        rate, size = row["candidates_per_second_per_core"], row["weight_bytes"]
        style = {"chosen": "bold green", "rejected": "dim", "baseline": "cyan"}.get(row["status"])
        verdict = row["status"] if not row["reason"] else f"{row['status']} ({row['stage']}): {row['reason']}"
        table.add_row(
            row["recipe"],
            row["backend"],
            _safe(_change(row["quality"], metric, report["accuracy"]["drop_type"])),
            _us(latency.get("p50")),
            _us(latency.get("p99")),
            f"{rate:,.0f}" if rate else "",
            f"{size / 1e6:.1f}" if size else "",
            _safe(verdict),
            style=style,
        )
    _console().print(table)


def plan(report: dict[str, Any]) -> None:
    """The plan's three sentences."""
    print()
    for sentence in report["decision"]["sentences"]:
        print(sentence)
    for note in report["notes"]:
        print(f"Note: {note}")
    print()


def planned(answer: dict[str, Any]) -> None:
    """A plan made again: its sentence, when to scale, what changes it, and where else it could run."""
    console = _console()
    print(answer["sentence"])
    if answer.get("check"):
        print(answer["check"]["sentence"])
    print(answer["autoscaling"]["sentence"])
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, name in enumerate(("if", "machines", "$ a month")):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in answer["sensitivity"]:
        table.add_row(row["change"], "none would do" if row["machines"] is None else f"{row['machines']:,}", _usd(row["usd_per_month"]))
    console.print(table)
    if not answer.get("placement"):
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, right in (("place", False), ("p99 ms", True), ("$ a month", True), ("known by", False)):
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for each in answer["placement"]:
        verdict = "chosen" if each["chosen"] else "; ".join(each["obstacles"]) or "can be"
        known = "measured" if each["measured"] else "estimate"
        style = "bold green" if each["chosen"] else "dim" if each["obstacles"] else None
        table.add_row(_safe(each["name"]), f"{each['p99_ms']:.3g}", _usd(each["usd_per_month"]), known, _safe(verdict), style=style)
    console.print(table)
    print(answer["placement_verdict"]["sentence"])


def _usd(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def bench(content: dict[str, Any]) -> None:
    """Latencies side by side, a row for each engine and number of candidates."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    loaded = any(row.get("load") for row in content["rows"])
    columns = ("engine", "candidates", "p50 us", "p99 us", "cand/s/core", "times the first", "calls", "highest load/s")
    for i, name in enumerate(columns if loaded else columns[:-1]):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in content["rows"]:
        latency, times = row["latency_us"], row["first_is_faster"]
        table.add_row(
            row["engine"],
            str(row["candidates"]),
            _us(latency["p50"]),
            _us(latency["p99"]),
            f"{latency['candidates_per_second_per_core']:,.0f}",
            "" if times is None else f"{1 / times:.2f}",
            f"{latency['count']:,}",
            *((f"{row['load']['qps']:,.0f}",) if loaded else ()),
        )
    console = _console()
    console.print(table)
    for sentence in content["notes"]:
        console.print(_safe(sentence), soft_wrap=True)


def floor(content: dict[str, Any]) -> None:
    """The peaks of one core, a line each."""
    print(f"One core of {content['cpu']}, {content['isa']}")
    for name, rate in content["gmacs"].items():
        print(f"  {name:8} {rate:8,.1f} 10^9 multiply-accumulates/s")
    for name, rate in content["gbytes"].items():
        print(f"  {name:8} {rate:8,.1f} 10^9 bytes/s read")


def _change(quality: dict[str, Any] | None, metric: str, drop_type: str) -> str:
    if quality is None or metric not in quality:
        return ""
    delta = quality[metric]
    if drop_type == "relative":
        return f"{delta['relative']:+.4%} [{delta['relative_low']:+.4%}, {delta['relative_high']:+.4%}]"
    return f"{delta['delta']:+.6f} [{delta['low']:+.6f}, {delta['high']:+.6f}]"


def _us(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _safe(text: str) -> str:
    """Text in which rich finds no markup."""
    from rich.markup import escape

    return escape(text)
