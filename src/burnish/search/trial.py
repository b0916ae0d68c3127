"""What a search finds out: a Trial is a Recipe with what was measured of it, and, where it was turned down, the sentence that says why."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from burnish.recipe import Recipe

Status = Literal["baseline", "chosen", "feasible", "rejected"]


class Rejected(msgspec.Struct, frozen=True):
    """Where a trial ended, and the sentence the report prints."""

    stage: str  # build, quality, latency, load, budget
    reason: str


class Measurement(msgspec.Struct, frozen=True):
    """What is known of a built recipe; None where it was turned down before that was measured.

    `quality`: metric name -> Delta as a dictionary, with `rows`; `latency_us`: p50, p99, mean, count and `curve`, one call at a time;
    `load`: the highest load that kept the objective: qps, p99_us, queries, valid; `resident_bytes`: how much a fresh process grows by
    opening the artifact and scoring, measured of the chosen one; `decided`: the recipe with what calibration rows decided, as JSON has it;
    `layers`: name, loss, macs and kept of each linear that Int8 looked at (quantize/sensitivity.py);
    `unsettled`: the sentence, where the calibration rows did not settle the ranges.
    """

    weight_bytes: int | None = None
    arena_bytes: int | None = None
    quality: dict[str, Any] | None = None
    latency_us: dict[str, Any] | None = None
    candidates_per_second_per_core: float | None = None
    load: dict[str, Any] | None = None
    resident_bytes: int | None = None
    decided: dict[str, Any] | None = None
    layers: list[dict[str, Any]] | None = None
    unsettled: str | None = None


class Trial(msgspec.Struct, frozen=True):
    """One point of the search: a recipe, what was measured, and the verdict."""

    id: str
    recipe: Recipe
    measured: Measurement = Measurement()
    rejected: Rejected | None = None
    seconds: float = 0.0
    verdict: str = ""  # the gate's sentence, where the gate was reached


class Plan(msgspec.Struct, frozen=True):
    """The decision: the chosen trial, in three sentences, with its ratios, capacity and price (the keys of report.json)."""

    chosen: Trial
    sentences: tuple[str, str, str]
    ratios: dict[str, Any]
    capacity: dict[str, Any]
