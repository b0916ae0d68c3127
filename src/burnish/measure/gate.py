"""The verdict on a change: non-inferiority with three outcomes, and how many rows would settle the third."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import msgspec

from burnish.errors import MeasureError

if TYPE_CHECKING:
    from burnish.measure.quality import Delta, Quality, Slice

Outcome = Literal["accepted", "rejected", "cannot tell"]

LEAST = 30  # rows of each label, and requests: below, the normal approximation behind the intervals is not to be trusted

BETTER = {  # +1: higher is better; -1: lower; 0: both directions are a loss
    "auc": 1,
    "auc_by_rows": 1,
    "gauc": 1,
    "ndcg": 1,
    "mrr": 1,
    "topk_overlap": 1,
    "kendall_tau": 1,
    "log_loss": -1,
    "normalized_entropy": -1,
    "ece": -1,
    "calibration": 0,
}


ABSOLUTE = ("ece",)  # metrics without a relative change


class Verdict(msgspec.Struct, frozen=True):
    """What the gate says of a change, in the unit of its `drop_type`: relative (0.001 = 0.1 %) or absolute.

    `drop` is the loss seen (negative: a gain), `worst` the loss at the interval's bad end, `resolves` half the interval's width:
    smaller differences cannot be seen with these rows. `rows_needed` only when they cannot tell.
    """

    outcome: Outcome
    sentence: str
    metric: str
    drop: float
    worst: float
    max_drop: float
    drop_type: Literal["relative", "absolute"]
    resolves: float
    rows_needed: int | None = None
    suspicious: bool = False
    worst_slice: str | None = None


def gate(
    quality: Quality, metric: str = "auc", max_drop: float = 0.001, drop_type: Literal["relative", "absolute"] = "relative"
) -> Verdict:
    """Accepted when the bad end of the metric's interval lies within `max_drop`, rejected when its good end lies beyond, and otherwise
    "cannot tell", with the rows that would settle it if the loss stays what it is (an interval shrinks with the root of the rows)."""
    if drop_type not in ("relative", "absolute"):
        raise MeasureError(f"drop_type is {drop_type!r}; use 'relative' or 'absolute'")
    if not max_drop >= 0:
        raise MeasureError(f"max_drop is {max_drop}; give a number of at least 0, such as 0.001")
    delta = quality[metric]
    change, low, high = delta.delta, delta.low, delta.high
    if drop_type == "relative":
        if delta.relative is None or delta.relative_low is None or delta.relative_high is None:
            why = "is 0 for a calibrated model but for noise" if metric in ABSOLUTE else "is 0 for the original"
            raise MeasureError(f"{metric} {why}, so there is no relative drop of it; use drop_type 'absolute'")
        change, low, high = delta.relative, delta.relative_low, delta.relative_high
    drop, best, worst = _harm(BETTER[metric], change, low, high)
    half = (high - low) / 2
    show = _percent if drop_type == "relative" else _plain
    sample = f"{quality.rows:,} rows" + (f" in {quality.requests:,} requests" if quality.requests is not None else "")
    what = "drop" if BETTER[metric] > 0 else "rise" if BETTER[metric] < 0 else "move"
    seen = f"{metric} changed by {show(change)} [{show(low)}, {show(high)}] on {sample}; a {what} of {show(max_drop)} is allowed"

    suspicious = BETTER[metric] != 0 and -drop > max_drop and worst < 0
    few = _too_few(quality, delta)
    needed = None
    outcome: Outcome
    if few:
        outcome, needed = "cannot tell", few[1]
        sentence = f"cannot tell: {few[0]}; about {needed:,} rows would do"
    elif worst <= max_drop:
        outcome, sentence = "accepted", seen
    elif best > max_drop:
        outcome, sentence = "rejected", seen
    else:
        outcome = "cannot tell"
        sentence = f"cannot tell with these rows: {seen}; they resolve {show(half)}"
        gap = abs(max_drop - drop)
        if gap > half / 1000:
            needed = _round_up(quality.rows * (half / gap) ** 2)
            sentence += f", and about {needed:,} rows would settle it if the change stays as it is"
        else:
            sentence += ", and no number of rows settles a change that sits on the limit"
    if suspicious:
        sentence += ". So large a gain from a cheaper model is suspicious: check that rows, labels and scores belong together"
    sliced = worst_slice(quality)
    if sliced is not None and sliced.p_holm < 1 - quality.confidence:
        lost = -(sliced.auc.delta if drop_type == "absolute" else sliced.auc.relative or 0.0)
        if lost > max_drop:
            sentence += (
                f". Worst slice: {sliced.name} = {sliced.value} ({sliced.rows:,} rows) lost {show(lost)} of AUC, p = {sliced.p_holm:.2g} "
                f"after Holm's correction for {len(quality.slices)} slices"
            )
    named = None if sliced is None else f"{sliced.name} = {sliced.value}"
    return Verdict(outcome, sentence, metric, drop, worst, max_drop, drop_type, half, needed, suspicious, named)


def worst_slice(quality: Quality) -> Slice | None:
    """The slice with the strongest evidence of a loss, None when there are no slices. Not the one that fell most: the smallest slices
    fall most by chance."""
    return min(quality.slices, key=lambda s: (s.p, s.auc.delta), default=None)


def _harm(better: int, change: float, low: float, high: float) -> tuple[float, float, float]:
    """(loss seen, at best, at worst) of a change in [low, high]."""
    if better > 0:
        return -change, -high, -low
    if better < 0:
        return change, low, high
    return abs(change), max(0.0, low, -high), max(abs(low), abs(high))


def _too_few(quality: Quality, delta: Delta) -> tuple[str, int] | None:
    negatives = quality.rows - quality.positives
    for count, what in (
        (quality.positives, "rows of label 1"),
        (negatives, "rows of label 0"),
        (delta.units, "requests" if quality.requests is not None else "rows"),
    ):
        if count < LEAST:
            return f"there are {count} {what}, and an interval needs at least {LEAST}", _round_up(quality.rows * LEAST / max(count, 1))
    return None


def _round_up(rows: float) -> int:
    """Up to two digits: more would promise more than such an estimate holds."""
    step = 10 ** max(0, math.floor(math.log10(max(rows, 1))) - 1)
    return math.ceil(rows / step) * step


def _percent(x: float) -> str:
    return f"{_plain(100 * x)} %"


def _plain(x: float) -> str:
    """Two significant digits, never an exponent."""
    if not x:
        return "0"
    text = f"{x:.{max(0, 1 - math.floor(math.log10(abs(x))))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
