"""Would it pay to score requests of several callers together, or to keep the request's part between calls? The scorer alone, in turns.

Together: eight requests one by one, and all their rows in one call as a plain table, which repeats the request's part for each row. Kept:
the request's part is what a request of one candidate takes beyond a candidate, the call itself included; a cache could save no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import burnish
from serving_model import halves, table

REQUESTS = 8
SIZES = (1, 4, 16, 128)


def measure(path: Path, seconds: float, rounds: int = 9) -> list[dict[str, float]]:
    """Microseconds of eight requests one by one and together, and of the request's part, for each number of candidates."""
    rows = []
    with burnish.load(path) as scorer:

        def one_by_one(n: int) -> Callable[[], None]:
            request, candidates = halves(path, n)

            def call() -> None:
                for _ in range(REQUESTS):
                    scorer(request, candidates)

            return call

        calls: dict[tuple[str, int], Callable[[], object]] = {}
        for n in SIZES:
            whole = table(path, n * REQUESTS)
            calls["apart", n] = one_by_one(n)
            calls["together", n] = lambda whole=whole: scorer.rows(whole)
        turn = seconds / rounds / len(calls)
        found = {key: float(np.median([_us(call, turn) for _ in range(rounds)])) for key, call in calls.items()}
    each = (found["apart", 128] - found["apart", 1]) / REQUESTS / 127
    part = found["apart", 1] / REQUESTS - each
    for n in SIZES:
        rows.append({"n": n, "apart": found["apart", n], "together": found["together", n], "part": part * REQUESTS / found["apart", n]})
    return rows


def lines(rows: list[dict[str, float]]) -> list[str]:
    head = ["candidates", f"{REQUESTS} requests one by one, µs", "together, µs", "apart, over together", "the request's part, of a request"]
    cells = [
        [f"{r['n']:.0f}", f"{r['apart']:.0f}", f"{r['together']:.0f}", f"{r['apart'] / r['together']:.2f}", f"{r['part']:.0%}"]
        for r in rows
    ]
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *cells)]


def _us(call: Callable[[], object], seconds: float) -> float:
    """CPU time of one call."""
    call()
    before, until, n = time.process_time(), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        call()
        n += 1
    return 1e6 * (time.process_time() - before) / n
