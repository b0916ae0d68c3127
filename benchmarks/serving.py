"""Every figure of serving, into docs/serving_benchmarks.md: `make bench-serve`; `--short` is its part of `make bench`, in three minutes."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import serving_cost
import serving_fuzz
import serving_load
import serving_model
import serving_pays
import serving_peers
from pages import footer

PAGE = Path(__file__).resolve().parent.parent / "docs" / "serving_benchmarks.md"
SLO_MS = 10.0
DOUBTS = """# Serving benchmarks

Made by `make bench-serve`. Reasons to doubt these figures: client and server share one machine, over loopback; the client is a Python
process that needs a core of its own; the machine is virtual and may be shared, so absolute numbers move from run to run and only ratios
within one table mean anything. Candidates a request: 128 unless a table says otherwise."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="everything briefly, and of the peers those whose environments are there")
    parser.add_argument("--only", default="", help="parts by name, separated by commas; prints them and leaves the page as it is")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    short = options.short

    def long(seconds: float, brief: float) -> float:
        return brief if short else seconds

    command = f"python benchmarks/serving.py{' --short' if short else ''}"
    with tempfile.TemporaryDirectory(prefix="burnish-serving-") as told:
        folder = Path(told)
        built: dict[str, Path] = {}

        def artifact(backend: str = "native") -> Path:
            if backend not in built:
                built[backend] = serving_model.build(backend, "int8", folder / backend)
            return built[backend]

        parts: dict[str, tuple[str, Callable[[], list[str]]]] = {
            "cost": ("What a request costs beyond its scoring", lambda: cost(long(20, 5))),
            "peers": ("Beside other servers", lambda: peers(artifact, long(4, 1.0), folder, not short)),
            "pays": ("What batching across callers and a cache would save", lambda: pays(artifact(), long(20, 4))),
            "highest": (f"The highest load with p99 within {SLO_MS:g} ms", lambda: highest(artifact(), long(20, 3))),
            "overload": ("Twice the capacity", lambda: overload(artifact(), long(60, 6))),
            "swaps": ("Versions exchanged under load", lambda: swaps(artifact(), int(long(200, 4)), folder)),
            "kills": ("Workers killed", lambda: kills(artifact(), long(60, 6))),
            "memory": ("Memory", lambda: memory(artifact(), long(600, 8))),
            "startup": ("Startup", lambda: startup(folder, long(1.0, 0.25))),
            "fuzz": ("Damaged requests", lambda: fuzz(long(900, 8), 1_000_000)),
        }
        wanted = [name.strip() for name in options.only.split(",") if name.strip()] or list(parts)
        lines = [DOUBTS, "", f"The model is {serving_model.name()}, int8, native, one worker of one thread."]
        for name in wanted:
            title, run = parts[name]
            began = time.monotonic()
            text = run()
            under = footer(command, "granian", "grpcio", "msgspec")
            lines += ["", f"## {title}", "", *text, "", under]
            print("\n".join(["", f"## {title}  ({time.monotonic() - began:.0f} s)", "", *text]), flush=True)
            if not options.only:
                options.out.write_text("\n".join(lines) + "\n")  # what is done is kept, should the rest be stopped


def cost(seconds: float) -> list[str]:
    return [_about(serving_cost), "", *serving_cost.table(serving_cost.measure(seconds))]


def peers(artifact: Callable[[str], Path], seconds: float, folder: Path, make: bool) -> list[str]:
    artifacts = {"onnxruntime": artifact("onnxruntime"), "ours": artifact("native")}
    rows = serving_peers.measure(artifacts, serving_cost.SIZES, seconds, folder, make)
    return [_about(serving_peers), "", *serving_peers.lines(rows, serving_cost.SIZES)]


def pays(path: Path, seconds: float) -> list[str]:
    return [_about(serving_pays), "", *serving_pays.lines(serving_pays.measure(path, seconds))]


def highest(path: Path, seconds: float) -> list[str]:
    found = serving_load.highest(path, seconds, SLO_MS)
    lines = [
        "| Poisson load, of the engine's own throughput | p99 of what was answered, ms | refused or later than that |",
        "|---|---|---|",
    ]
    lines += [f"| {row['share']:.0%} | {row['p99_ms']:.1f} | {row['late']:.2%} |" for row in found["tried"]]
    best = found["tried"][-1]
    held = f"holds at {best['share']:.0%}" if best["late"] <= 0.01 else "does not hold at any of these"
    return [*lines, "", f"The engine alone scores {found['engine']:.0f} requests a CPU second. p99 {held}; {seconds:g} s a load."]


def overload(path: Path, seconds: float) -> list[str]:
    row = serving_load.overload(path, seconds, SLO_MS)
    refused = row["statuses"].get(503, 0) / sum(row["statuses"].values())
    other = {status: n for status, n in row["statuses"].items() if status not in (200, 503)}
    before, after = row["memory_mb"]
    head = ["answered, of capacity", "answered a CPU second, of that at capacity", "refused", "p50, ms", "p99, ms", "late", "resident, MB"]
    cells = [f"{row['goodput']:.0%}", f"{row['by_cpu']:.0%}", f"{refused:.0%}", f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}"]
    cells += [f"{row['late']:.0f} by the server's clock", f"{before:.0f}, then {after:.0f}"]
    return [
        f"Capacity {row['capacity']:.0f} requests a second (closed loop, 16 connections), twice that offered for {row['seconds']:.0f} s; a",
        f"request's time is {SLO_MS:g} ms.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        f"| {' | '.join(cells)} |",
        "",
        f"Other answers: {other or 'none'}.",
    ]


def swaps(path: Path, number: int, folder: Path) -> list[str]:
    row = serving_load.swaps(path, number, folder)
    return [
        f"{row['swaps']} swaps, {row['swap_s']:.2f} s each from the call to its answer, at {row['qps']:.0f} requests a second (60 % of the "
        f"capacity): answers {row['statuses']}, p99 {row['p99_ms']:.1f} ms; without swaps {row['quiet']}, p99 {row['quiet_p99_ms']:.1f} ms "
        f"({row['p99_ms'] / row['quiet_p99_ms']:.2f} times)."
    ]


def kills(path: Path, seconds: float) -> list[str]:
    row = serving_load.kills(path, seconds)
    broken, whole = row["statuses"].get(0, 0), sum(row["statuses"].values())
    return [
        f"One of two workers killed (SIGKILL) each second, {row['killed']} times, at {row['qps']:.0f} requests a second: {broken} of",
        f"{whole:,} requests broke, those in flight in a killed worker ({broken / max(1, row['killed']):.1f} a kill); answers",
        f"{row['statuses']}, afterwards {row['after']}. The server {'went on' if row['alive'] else 'ENDED'}.",
    ]


def memory(path: Path, seconds: float) -> list[str]:
    row = serving_load.memory(path, seconds)
    growth = row["end_mb"] / row["warm_mb"] - 1
    return [
        f"{row['requests']:,} requests in {seconds:.0f} s through one worker: {row['warm_mb']:.1f} MB resident after the first fifth, "
        f"{row['end_mb']:.1f} MB at the end ({growth:+.2%})."
    ]


def startup(folder: Path, gigabytes: float) -> list[str]:
    row = serving_load.startup(folder, gigabytes)
    size, seconds = f"{row['gigabytes']:.2g} GB (a table, mapped)", row["seconds"]
    return [f"An artifact of {size} answers {seconds:.2f} s after the command, Python's start included; the best of three."]


def fuzz(seconds: float, most: int) -> list[str]:
    row = serving_fuzz.run(seconds, most)
    told = ", ".join(f"{name} {n:,}" for name, n in row["answers"].items())
    return [_about(serving_fuzz), "", f"{row['cases']:,} cases in {row['seconds']:.0f} s, none answered badly: {told}."]


def _about(module: Any) -> str:
    return (module.__doc__ or "").strip()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main()
