"""What capacity rests on, held against this machine; `python benchmarks/capacity.py` writes docs/capacity.md.

The engine is a DCN-v2 of Criteo's shape (26 ids, 13 numbers, 3 cross layers, 1024-512-256) in int8 by the native backend, 128 candidates a
call, on one core; the generator has the other.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import burnish
from burnish import testing
from burnish.measure import latency, load, queueing
from burnish.measure.traffic import Traffic
from burnish.place.capacity import fleet
from pages import footer

LOADS = (0.3, 0.6, 0.8, 0.9)
SLO_US = 10_000.0

PAGE = """# Capacity, held against the machine

Made by `python benchmarks/capacity.py`. Reasons to doubt: one engine on one machine, which is virtual; two cores, of which the load
generator takes one; p99 near saturation varies from run to run however quiet the machine is, since waiting times are correlated over many
queries: the spread stands beside each figure. How the numbers are used is told in [the decision](decision.md#capacity).
"""


def subject(folder: Path, candidates: int) -> tuple[burnish.Scorer, Traffic]:
    """The engine, and calls of random rows."""
    graph = testing.dcn_v2()
    random = np.random.default_rng(0)
    table = {}
    for spec in graph.inputs:
        shape = (4096, *spec.shape)
        ids = spec.dtype.startswith("int")
        table[spec.name] = random.integers(0, 1000, shape) if ids else random.standard_normal(shape).astype(np.float32)
    path = burnish.compile(graph, "int8", calibration={name: rows[:1000] for name, rows in table.items()}).save(folder / "ranker").path
    return burnish.load(path), Traffic.from_rows(graph.inputs, table, candidates=candidates)


def reality(scorer: burnish.Scorer, traffic: Traffic, seconds: float, rounds: int) -> tuple[list[dict[str, Any]], list[float]]:
    """A row for each share of capacity: p99 as predicted and as measured, medians of the rounds; and the capacities.

    In each round a run near saturation says how long each query keeps the server, and so its capacity; a run at a fifth of that says what
    waking a server and telling the generator cost beside (the median latency over the simulated one). From these two p99 at each load is
    predicted; then it is measured. So a machine that changes its pace between rounds changes both. A run counts when the server had its
    core (`latency.UNDISTURBED`) and the generator was in time.
    """
    found: dict[float, list[tuple[float, float, bool]]] = {share: [] for share in LOADS}
    capacities = []
    with load.Generator() as generator:
        guess = 1e6 / float(np.mean(latency.measure({"": scorer}, traffic, 1.0)[""].us))
        for turn in range(rounds):
            full = load.server(scorer, traffic, 0.9 * guess, seconds / 2, SLO_US * 1000, seed=100 + turn, generator=generator)
            occupied = np.asarray(full.occupied_us)
            guess = 1e6 / float(occupied.mean())
            capacities.append(guess)
            calm = load.server(scorer, traffic, 0.2 * guess, seconds / 3, SLO_US * 1000, seed=200 + turn, generator=generator)
            beside = calm.p50_us - queueing.simulate(occupied, calm.qps).p50_us
            for share in LOADS:
                predicted = queueing.simulate(occupied, share * guess, queries=1_000_000).p99_us + beside
                run = load.server(scorer, traffic, share * guess, seconds, SLO_US * 1000, seed=turn, generator=generator)
                quiet = min(run.cpu_share, full.cpu_share, calm.cpu_share) >= latency.UNDISTURBED and run.late_p99_us < max(
                    load.LATE_US, load.LATE * predicted
                )
                found[share].append((predicted, run.p99_us, quiet))
    rows = []
    for share, runs in found.items():
        counted = [run for run in runs if run[2]] or runs
        ratios = [predicted / measured for predicted, measured, _ in counted]
        rows.append(
            {
                "share": share,
                "predicted_us": statistics.median(run[0] for run in counted),
                "measured_us": statistics.median(run[1] for run in counted),
                "low_us": min(run[1] for run in counted),
                "high_us": max(run[1] for run in counted),
                "ratio": statistics.median(ratios),
                "quiet": sum(run[2] for run in runs),
                "runs": len(runs),
            }
        )
    return rows, capacities


def against_loadgen(scorer: burnish.Scorer, traffic: Traffic, seconds: float, rounds: int) -> list[tuple[float, float]]:
    """(ours, LoadGen's) highest loads within SLO_US, in turns, by runs of about equal length."""
    found = []
    for turn in range(rounds):
        ours = load.peak(
            scorer, traffic, SLO_US, seconds=seconds, confirm_seconds=2 * seconds, budget_seconds=14 * seconds, precision=0.02, seed=turn
        )
        start = 0.6 * (ours.qps or 1e6 / float(np.mean(latency.measure({"": scorer}, traffic, 0.5)[""].us)))
        try:
            theirs = load.loadgens_peak(scorer, traffic, SLO_US, start_qps=start, seconds=seconds, seed=turn)
        except load.MeasureError:
            theirs = float("nan")
        found.append((ours.qps, theirs))
    return found


def simulated() -> list[dict[str, Any]]:
    """10,000 replicas under 10 million queries a second, behind each balancer, and how long that takes."""
    service = np.random.default_rng(0).gamma(50, 16, 1000)  # mean 800 us
    rows = []
    for balancer in ("random", "in turn", "shared"):
        began = time.perf_counter()
        one = fleet(service, 10e6, 10_000, balancer=balancer)  # type: ignore[arg-type]
        rows.append({"balancer": balancer, "seconds": time.perf_counter() - began, "fleet": one})
    return rows


def page(options: argparse.Namespace) -> str:
    seconds, rounds = (4.0, 3) if options.short else (20.0, 7)
    with tempfile.TemporaryDirectory() as folder:
        scorer, traffic = subject(Path(folder), options.candidates)
        with scorer:
            rows, capacities = reality(scorer, traffic, seconds, rounds)
            peaks = against_loadgen(scorer, traffic, 1.0 if options.short else 5.0, 1 if options.short else 3)
    told = footer(f"python benchmarks/capacity.py{' --short' if options.short else ''}", "mlcommons-loadgen")
    capacity = statistics.median(capacities)
    lines = [PAGE, "## Predicted and measured p99", "", (__doc__ or "").split("\n\n")[1].strip()]
    lines += [f"Capacity: {capacity:,.0f} calls a second ({min(capacities):,.0f} to {max(capacities):,.0f} in {rounds} rounds).", ""]
    lines += [" ".join((reality.__doc__ or "").split("\n\n")[1].split()), ""]
    lines += [
        "| share of capacity | predicted p99 | measured p99 | from, to | predicted / measured | quiet runs |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['share']:.0%} | {row['predicted_us']:,.0f} µs | {row['measured_us']:,.0f} µs "
            f"| {row['low_us']:,.0f}, {row['high_us']:,.0f} µs | {row['ratio']:.2f} | {row['quiet']} of {row['runs']} |"
        )
    off = max(abs(row["ratio"] - 1) for row in rows)
    lines += ["", f"The target is 15 %; the largest deviation of a median is {off:.0%}."]
    if any(row["quiet"] < row["runs"] for row in rows):
        lines += [
            "",
            "**The machine was not quiet: in the runs that do not count, other programs had the cores, and the table is no evidence.**",
        ]
    lines += ["", told, "", "## The highest load, and LoadGen's own search for it", ""]
    lines += [
        f"The highest load whose p99 stays within {SLO_US / 1000:g} ms, found by `measure.load.peak` and by LoadGen's FindPeakPerformance "
        "mode (`measure.load.loadgens_peak`) with the same servers and generator, one after the other; 0 and nan where a busy machine let "
        "none be found.",
        "",
        "| round | ours | LoadGen's | ours / LoadGen's |",
        "|---|---|---|---|",
    ]
    lines += [f"| {i + 1} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.3f} |" for i, (ours, theirs) in enumerate(peaks)]
    lines += ["", "The target is 5 %.", "", told, "", "## 10,000 replicas under 10 million queries a second", ""]
    lines += ["Simulated, each request; service times of 800 µs on average.", ""]
    lines += ["| balancer | p50 | p99 | slowest replica's p99 | requests | seconds |", "|---|---|---|---|---|---|"]
    for row in simulated():
        one = row["fleet"]
        slowest = "" if np.isnan(one.slowest_replica_p99_us) else f"{one.slowest_replica_p99_us / 1000:.2f} ms"
        times = f"{one.p50_us / 1000:.2f} ms | {one.p99_us / 1000:.2f} ms"
        lines.append(f"| {row['balancer']} | {times} | {slowest} | {one.queries:,} | {row['seconds']:.1f} |")
    return "\n".join([*lines, "", "The target is 10 s.", "", told, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/capacity.md"))
    parser.add_argument("--candidates", type=int, default=128)
    parser.add_argument("--short", action="store_true", help="three minutes in the place of twenty")
    options = parser.parse_args()
    text = page(options)
    options.out.write_text(text)
    print(options.out)


if __name__ == "__main__":
    main()
