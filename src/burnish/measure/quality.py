"""What a change of the model costs in quality: metrics of the original and of the built artifact, paired on the same rows, with intervals.

Why no bootstrap? Every metric here is a smooth function of means, so each comes with the *influence* of each row on it, and one rule
gives all intervals: standard error = root of the summed squares of influences, where the influences of one request are added up
first, because rows of one request are not independent. For AUC that rule is DeLong's method, and with requests Obuchowski's (1997)
extension of it to clusters. A bootstrap over requests gives the same intervals (a test shows it) at hundreds of times the cost. Only the
calibration error, which is not smooth, has a bootstrap for its interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import msgspec
import numpy as np

from burnish.errors import MeasureError
from burnish.measure import estimate, ranking
from burnish.measure.estimate import Estimate, Scale
from burnish.measure.gate import Verdict, gate

__all__ = ["Delta", "Quality", "Slice", "Verdict", "compare", "gate"]

TOP_K = 10
SLICE_VALUES = 50  # of one slice column, the most frequent ones; testing thousands of values would hide every one of them behind Holm


class Delta(msgspec.Struct, frozen=True):
    """One metric of the changed model beside the original's. `low` to `high` is the interval of `delta` = value - original;
    `relative` is value / original - 1 with its own interval, None where the original is 0 and of ece. `units` independent units (rows, or
    requests) stand behind it."""

    value: float
    original: float
    delta: float
    low: float
    high: float
    relative: float | None
    relative_low: float | None
    relative_high: float | None
    standard_error: float
    units: int
    interval: str  # how the interval was made


class Slice(msgspec.Struct, frozen=True):
    """AUC among the rows where column `name` is `value`. `p` is the one-sided probability of so large a loss if there
    were none, `p_holm` the same after Holm's (1979) correction for the number of slices."""

    name: str
    value: str
    rows: int
    auc: Delta
    p: float
    p_holm: float


class Quality(msgspec.Struct, frozen=True):
    """The metrics of a changed model against the original on the same rows."""

    metrics: dict[str, Delta]
    rows: int
    positives: int
    requests: int | None  # None: no request column was given, every row counts as independent
    confidence: float
    scale: Scale  # how the scores were read where a probability is needed
    k: int  # of ndcg and topk_overlap
    slices: tuple[Slice, ...] = ()
    notes: tuple[str, ...] = ()  # what was not measured, and why

    def __getitem__(self, metric: str) -> Delta:
        """The Delta of a metric; MeasureError naming those there are."""
        if metric not in self.metrics:
            why = ". Give the request of each row to measure it" if self.requests is None and metric in PER_REQUEST else ""
            raise MeasureError(f"quality has no metric {metric!r}; it has {', '.join(self.metrics)}{why}")
        return self.metrics[metric]


PER_REQUEST = ("gauc", "ndcg", "mrr", "topk_overlap", "kendall_tau")


def compare(
    labels: np.ndarray,
    original: np.ndarray,
    scores: np.ndarray,
    *,
    requests: np.ndarray | None = None,
    slices: Mapping[str, np.ndarray] | None = None,
    confidence: float = 0.95,
    scale: Scale | None = None,
    k: int = TOP_K,
) -> Quality:
    """Compare `scores` of a changed model with the `original` scores of the same N rows.

    `labels` (N,) 0 or 1; `original`, `scores` (N,) what the two models put out; `requests` (N,) an id per row: rows with the same id
    belong together and count as one unit; `slices` name -> (N,) values. Scores are probabilities when all of `original` lie in
    [0, 1] and logits otherwise; `scale` overrules. MeasureError says which row is wrong.
    """
    labels, original, scores = _checked(labels, original, scores)
    n = len(labels)
    if not 0.5 < confidence < 1:
        raise MeasureError(f"confidence is {confidence}; give a number between 0.5 and 1, such as 0.95")
    scale = scale or ("probability" if original.min() >= 0 and original.max() <= 1 else "logit")
    notes = []
    if requests is None:
        codes, units = None, n
        notes.append("no request column: rows count as independent, and gauc, ndcg, mrr, topk_overlap and kendall_tau are not measured")
    else:
        requests = np.asarray(requests)
        null = np.array([r is None for r in requests]) if requests.dtype.kind == "O" else requests != requests
        if null.any():
            raise MeasureError(f"the request at row {int(np.argmax(null))} is {requests[null][0]}; every row needs the id of its request")
        codes, units = _codes(requests, n, "requests")
        if units < 2:
            raise MeasureError(f"all {n:,} rows belong to one request; an interval needs at least 2. Give rows of more requests, or none")

    metrics: dict[str, Delta] = {}
    everything = np.zeros(n, np.int64)
    before, after = (estimate.auc(labels, ranking.placements(labels, s, everything)) for s in (original, scores))
    by_rows = _delta((before, after), confidence, None, n, "DeLong over rows", strata=labels)
    if codes is None:
        metrics["auc"] = by_rows
    else:
        metrics["auc"] = _delta((before, after), confidence, codes, units, "DeLong clustered by request")
        metrics["auc_by_rows"] = by_rows
    how = "delta method over rows" if codes is None else "delta method clustered by request"
    of_original, of_scores = (estimate.probability_metrics(labels, s, scale) for s in (original, scores))
    for name in of_original:
        metrics[name] = _delta((of_original[name], of_scores[name]), confidence, codes, units, how)
    metrics["ece"] = _ece(labels, original, scores, scale, confidence, codes, units)
    if codes is not None:
        for name, (first, second, weight, needs) in estimate.per_request(labels, original, scores, codes, units, k).items():
            usable = np.isfinite(first) & np.isfinite(second)
            if usable.sum() < 2:
                notes.append(f"{name} is not measured: fewer than 2 of {units:,} requests have {needs}")
                continue
            if not usable.all():
                notes.append(f"{name} is over the {int(usable.sum()):,} of {units:,} requests that have {needs}")
            before, after = (estimate.mean(each[usable], weight[usable]) for each in (first, second))
            metrics[name] = _delta((before, after), confidence, None, int(usable.sum()), "over requests")
    told = _slices(labels, original, scores, slices or {}, codes, confidence, notes)
    return Quality(metrics, n, int(labels.sum()), None if codes is None else units, confidence, scale, k, told, tuple(notes))


def _special() -> ModuleType:
    try:
        import scipy.special
    except ImportError:
        raise MeasureError("quality is measured with scipy, which is not installed: pip install 'burnish[optimize]'") from None
    return scipy.special


def _checked(labels: np.ndarray, original: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels as float64 zeros and ones, scores as they are or widened to float64; MeasureError with the row that is wrong."""
    arrays = {"labels": np.asarray(labels), "original scores": np.asarray(original), "scores": np.asarray(scores)}
    for name, array in arrays.items():
        if array.ndim != 1:
            raise MeasureError(f"the {name} have shape {array.shape}; quality is measured on one output, shape (rows,)")
    if len({len(array) for array in arrays.values()}) > 1:
        told = ", ".join(f"{len(array):,} {name}" for name, array in arrays.items())
        raise MeasureError(f"lengths differ: {told}. Score the rows that the labels belong to, all of them")
    if len(arrays["labels"]) == 0:
        raise MeasureError("there are no rows to measure quality on")
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise MeasureError(f"the {name} have dtype {array.dtype}; give numbers")
    truth = arrays["labels"].astype(np.float64)
    wrong = (truth != 0) & (truth != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise MeasureError(f"the label at row {row} is {arrays['labels'][row]}; labels are 0 or 1")
    if truth.min() == truth.max():
        raise MeasureError(f"all {len(truth):,} labels are {int(truth[0])}; AUC needs rows of both classes. Give validation rows with both")
    floats = []
    for name in ("original scores", "scores"):
        array = arrays[name] if arrays[name].dtype in (np.float32, np.float64) else arrays[name].astype(np.float64)
        bad = ~np.isfinite(array)
        if bad.any():
            row = int(np.argmax(bad))
            raise MeasureError(
                f"the {name} have {array[row]} at row {row} ({int(bad.sum()):,} such rows); every score must be a finite number"
            )
        if array[0] == array[-1] and (array == array[0]).all():
            raise MeasureError(
                f"the {name} are {array[0]:g} for all {len(array):,} rows: that model does not rank. Check its inputs and weights"
            )
        floats.append(array)
    return truth, floats[0], floats[1]


def _codes(values: np.ndarray, n: int, name: str) -> tuple[np.ndarray, int]:
    values = np.asarray(values)
    if values.shape != (n,):
        raise MeasureError(f"{name} have shape {values.shape}, expected ({n},): one value a row")
    found, codes = np.unique(values, return_inverse=True)
    return codes.astype(np.int64), len(found)


def _without_nulls(values: np.ndarray) -> np.ndarray:
    """A slice column with its nulls as a value of their own, "null"."""
    values = np.asarray(values)
    if values.dtype.kind != "O":
        return values
    return np.array(["null" if value is None else str(value) for value in values])


def _slices(
    labels: np.ndarray,
    original: np.ndarray,
    scores: np.ndarray,
    slices: Mapping[str, np.ndarray],
    codes: np.ndarray | None,
    confidence: float,
    notes: list[str],
) -> tuple[Slice, ...]:
    found: list[tuple[str, str, int, Delta]] = []
    for name, column in slices.items():
        column = _without_nulls(column)
        groups, count = _codes(column, len(labels), f"slices {name!r}")
        values = np.unique(column)
        placed = [ranking.placements(labels, s, groups) for s in (original, scores)]
        sizes = np.bincount(groups, minlength=count)
        shown = np.argsort(-sizes, kind="stable")[:SLICE_VALUES]
        if count > SLICE_VALUES:
            notes.append(f"slice {name!r} has {count:,} values; the {SLICE_VALUES} most frequent are compared")
        by_group = np.argsort(groups, kind="stable")
        ends = np.cumsum(sizes)
        for g in sorted(shown):
            rows = by_group[ends[g] - sizes[g] : ends[g]]
            truth = labels[rows]
            positives = int(truth.sum())
            if min(positives, len(rows) - positives) < 2:
                notes.append(f"slice {name} = {values[g]} is not measured: {positives:,} of its {len(rows):,} rows have label 1")
                continue
            before, after = (estimate.auc(truth, p[rows]) for p in placed)
            if codes is None:
                delta = _delta((before, after), confidence, None, len(rows), "DeLong over rows", strata=truth)
            else:
                inside, clusters = _codes(codes[rows], len(rows), name)
                if clusters < 2:
                    notes.append(f"slice {name} = {values[g]} is not measured: all its rows belong to one request")
                    continue
                delta = _delta((before, after), confidence, inside, clusters, "DeLong clustered by request")
            found.append((name, str(values[g]), len(rows), delta))
    p = np.array([_loss_probability(delta) for *_, delta in found])
    order = np.argsort(p, kind="stable")
    holm = np.empty(len(p))
    holm[order] = np.minimum(1, np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))))
    return tuple(Slice(*told, float(one), float(corrected)) for told, one, corrected in zip(found, p, holm))


def _loss_probability(delta: Delta) -> float:
    """One-sided P(a delta so low or lower | no loss)."""
    if delta.standard_error == 0:
        return 0.0 if delta.delta < 0 else 1.0
    return float(_special().stdtr(delta.units - 1, delta.delta / delta.standard_error))


def _ece(
    labels: np.ndarray,
    original: np.ndarray,
    scores: np.ndarray,
    scale: Scale,
    confidence: float,
    codes: np.ndarray | None,
    units: int,
) -> Delta:
    """Of the expected calibration error; Student's t with the bootstrap's standard error. It has no relative change: a model that is
    calibrated has an error of 0 but for noise, and a share of noise is nothing to judge by."""
    both = (estimate.probabilities(original, scale), estimate.probabilities(scores, scale))
    (before, after), drawn = estimate.calibration_errors(labels, both, codes, units)
    t = float(_special().stdtrit(units - 1, 0.5 + confidence / 2))
    error = float(np.std(drawn[:, 1] - drawn[:, 0], ddof=1))
    return Delta(
        value=float(after),
        original=float(before),
        delta=float(after - before),
        low=float(after - before) - t * error,
        high=float(after - before) + t * error,
        relative=None,
        relative_low=None,
        relative_high=None,
        standard_error=error,
        units=units,
        interval=f"bootstrap over {'rows' if codes is None else 'requests'}",
    )


def _delta(
    pair: tuple[Estimate, Estimate],
    confidence: float,
    codes: np.ndarray | None,
    units: int,
    how: str,
    strata: np.ndarray | None = None,
) -> Delta:
    """Student's t interval of the difference, and of the ratio by the delta method; `codes` cluster the rows, see `standard_error`."""
    original, changed = pair
    t = float(_special().stdtrit(units - 1, 0.5 + confidence / 2))
    delta = changed.value - original.value
    error = estimate.standard_error(changed.influence - original.influence, codes, units, strata)
    relative = low = high = None
    if original.value:
        relative = delta / original.value
        influence = (changed.influence - changed.value / original.value * original.influence) / original.value
        half = t * estimate.standard_error(influence, codes, units, strata)
        low, high = relative - half, relative + half
    return Delta(
        value=changed.value,
        original=original.value,
        delta=delta,
        low=delta - t * error,
        high=delta + t * error,
        relative=relative,
        relative_low=low,
        relative_high=high,
        standard_error=error,
        units=units,
        interval=how,
    )
