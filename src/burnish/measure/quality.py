"""What a change of the model costs in quality: metrics of the original and of the built artifact, paired on the same rows, with intervals.

Why no bootstrap? Every metric here is a smooth function of means, so each comes with the *influence* of each row on it, and one rule
gives all intervals: standard error = root of the summed squares of influences, where the influences of one request are added up
first, because rows of one request are not independent. For AUC that rule is DeLong's method, and with requests Obuchowski's (1997)
extension of it to clusters. A bootstrap over requests gives the same intervals (a test shows it) at hundreds of times the cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np

from burnish.errors import MeasureError
from burnish.measure import ranking
from burnish.measure.gate import Verdict, gate

__all__ = ["Delta", "Quality", "Slice", "Verdict", "compare", "gate"]

Scale = Literal["probability", "logit"]

TOP_K = 10
SLICE_VALUES = 50  # of one slice column, the most frequent ones; testing thousands of values would hide every one of them behind Holm


class Delta(msgspec.Struct, frozen=True):
    """One metric of the changed model beside the original's. `low` to `high` is the interval of `delta` = value - original;
    `relative` is value / original - 1 with its own interval, None where the original is 0. `units` independent units (rows, or
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
            why = " Give the request of each row to measure it" if self.requests is None and metric in PER_REQUEST else ""
            raise MeasureError(f"quality has no metric {metric!r}; it has {', '.join(self.metrics)}.{why}")
        return self.metrics[metric]


PER_REQUEST = ("gauc", "ndcg", "topk_overlap", "kendall_tau")


class _Pair(msgspec.Struct, frozen=True):
    """A metric of both models, and the influence of each row (or request) on each: the metric's first-order change by that row."""

    original: float
    value: float
    original_influence: np.ndarray
    influence: np.ndarray


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
        notes.append("no request column: rows count as independent, and gauc, ndcg, topk_overlap and kendall_tau are not measured")
    else:
        codes, units = _codes(requests, n, "requests")
        if units < 2:
            raise MeasureError(f"all {n:,} rows belong to one request; an interval needs at least 2. Give rows of more requests, or none")

    metrics: dict[str, Delta] = {}
    everything = np.zeros(n, np.int64)
    auc = _auc(labels, original, scores, everything)
    by_rows = _delta(auc, confidence, None, n, "DeLong over rows", strata=labels)
    if codes is None:
        metrics["auc"] = by_rows
    else:
        metrics["auc"] = _delta(auc, confidence, codes, units, "DeLong clustered by request")
        metrics["auc_by_rows"] = by_rows
    how = "delta method over rows" if codes is None else "delta method clustered by request"
    for name, pair in _probability_metrics(labels, original, scores, scale).items():
        metrics[name] = _delta(pair, confidence, codes, units, how)
    if codes is not None:
        for name, pair in _request_metrics(labels, original, scores, codes, units, k, notes).items():
            metrics[name] = _delta(pair, confidence, None, len(pair.influence), "requests")
    told = _slices(labels, original, scores, slices or {}, codes, confidence, notes)
    return Quality(metrics, n, int(labels.sum()), None if codes is None else units, confidence, scale, k, told, tuple(notes))


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


def _auc(labels: np.ndarray, original: np.ndarray, scores: np.ndarray, everything: np.ndarray) -> _Pair:
    positive = labels > 0
    value, influence = [], []
    for s in (original, scores):
        placed = ranking.placements(labels, s, everything)
        auc = float(placed[positive].mean())
        value.append(auc)
        influence.append((placed - auc) / np.where(positive, positive.sum(), len(labels) - positive.sum()))
    return _Pair(*value, *influence)


def _probability_metrics(labels: np.ndarray, original: np.ndarray, scores: np.ndarray, scale: Scale) -> dict[str, _Pair]:
    """Log-loss; normalized entropy, log-loss over the entropy of the label rate (He et al. 2014); calibration, mean prediction over label
    rate. Probabilities are cut off at 1e-7 from 0 and 1, the resolution of float32."""
    n, rate = len(labels), labels.mean()
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    slope = np.log1p(-rate) - np.log(rate)  # of the entropy by the rate
    found: dict[str, list[float | np.ndarray]] = {name: [] for name in ("log_loss", "normalized_entropy", "calibration")}
    influences: dict[str, list[np.ndarray]] = {name: [] for name in found}
    for s in (original, scores):
        s = s.astype(np.float64)
        if scale == "logit":
            each = np.logaddexp(0, np.where(labels > 0, -s, s))
            p = np.exp(-np.logaddexp(0, -s))
        else:
            p = np.clip(s, 1e-7, 1 - 1e-7)
            each = -np.log(np.where(labels > 0, p, 1 - p))
        loss = each.mean()
        ratio = p.mean() / rate
        found["log_loss"].append(float(loss))
        influences["log_loss"].append((each - loss) / n)
        found["normalized_entropy"].append(float(loss / entropy))
        influences["normalized_entropy"].append(((each - loss) / entropy - loss / entropy**2 * slope * (labels - rate)) / n)
        found["calibration"].append(float(ratio))
        influences["calibration"].append((p - ratio * labels) / (n * rate))
    return {name: _Pair(*found[name], *influences[name]) for name in found}


def _request_metrics(
    labels: np.ndarray, original: np.ndarray, scores: np.ndarray, codes: np.ndarray, count: int, k: int, notes: list[str]
) -> dict[str, _Pair]:
    """Means over requests; influences are per request. GAUC weights a request's AUC by its rows (Zhu et al. 2017)."""
    sizes = np.bincount(codes, minlength=count)
    both = (original, scores)
    same = np.ones(count)
    auc = [ranking.group_auc(labels, ranking.placements(labels, s, codes), codes, count) for s in both]
    gain = [ranking.ndcg(labels, s, codes, count, k) for s in both]
    overlap = [same, ranking.topk_overlap(original, scores, codes, count, k)]
    tau = [same, ranking.kendall_tau(original, scores, codes, count)]
    found = {}
    for name, (first, second), weight, needs in (
        ("gauc", auc, sizes, "rows of both labels"),
        ("ndcg", gain, same, "a row of label 1"),
        ("topk_overlap", overlap, same, f"more than k = {k} rows"),
        ("kendall_tau", tau, same, "two different scores of each model"),
    ):
        usable = np.isfinite(first) & np.isfinite(second)
        if usable.sum() < 2:
            notes.append(f"{name} is not measured: fewer than 2 of {count:,} requests have {needs}")
            continue
        if not usable.all():
            notes.append(f"{name} is over the {int(usable.sum()):,} of {count:,} requests that have {needs}")
        means = [float(np.average(each[usable], weights=weight[usable])) for each in (first, second)]
        w = weight[usable] / weight[usable].sum()
        found[name] = _Pair(*means, *(w * (each[usable] - mean) for each, mean in zip((first, second), means)))
    return found


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
        column = np.asarray(column)
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
            share = np.where(truth > 0, positives, len(rows) - positives)
            auc = [float(p[rows][truth > 0].mean()) for p in placed]
            pair = _Pair(*auc, *((p[rows] - a) / share for p, a in zip(placed, auc)))
            if codes is None:
                delta = _delta(pair, confidence, None, len(rows), "DeLong over rows", strata=truth)
            else:
                inside, clusters = _codes(codes[rows], len(rows), name)
                if clusters < 2:
                    notes.append(f"slice {name} = {values[g]} is not measured: all its rows belong to one request")
                    continue
                delta = _delta(pair, confidence, inside, clusters, "DeLong clustered by request")
            found.append((name, str(values[g]), len(rows), delta))
    p = np.array([_loss_probability(delta) for *_, delta in found])
    order = np.argsort(p, kind="stable")
    holm = np.empty(len(p))
    holm[order] = np.minimum(1, np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))))
    return tuple(Slice(*told, float(one), float(corrected)) for told, one, corrected in zip(found, p, holm))


def _loss_probability(delta: Delta) -> float:
    """One-sided P(a delta so low or lower | no loss)."""
    from scipy.special import stdtr

    if delta.standard_error == 0:
        return 0.0 if delta.delta < 0 else 1.0
    return float(stdtr(delta.units - 1, delta.delta / delta.standard_error))


def _delta(pair: _Pair, confidence: float, codes: np.ndarray | None, units: int, how: str, strata: np.ndarray | None = None) -> Delta:
    from scipy.special import stdtrit

    t = float(stdtrit(units - 1, 0.5 + confidence / 2))
    delta = pair.value - pair.original
    error = _standard_error(pair.influence - pair.original_influence, codes, units, strata)
    relative = relative_error = None
    if pair.original:
        relative = delta / pair.original
        influence = pair.influence / pair.original - pair.value / pair.original**2 * pair.original_influence
        relative_error = _standard_error(influence, codes, units, strata) * pair.original / abs(pair.original)
    return Delta(
        value=pair.value,
        original=pair.original,
        delta=delta,
        low=delta - t * error,
        high=delta + t * error,
        relative=relative,
        relative_low=None if relative is None else relative - t * relative_error,
        relative_high=None if relative is None else relative + t * relative_error,
        standard_error=error,
        units=units,
        interval=how,
    )


def _standard_error(influence: np.ndarray, codes: np.ndarray | None, units: int, strata: np.ndarray | None) -> float:
    """Root of the summed squared influences of independent units, with the correction n/(n - 1) for the estimated mean; `strata` (0 or 1 a
    row) are corrected apart, as DeLong's covariance is."""
    if codes is not None:
        influence = np.bincount(codes, weights=influence, minlength=units)
    square = influence**2
    if strata is None:
        return float(np.sqrt(square.sum() * units / (units - 1)))
    parts = [square[strata == label] for label in (0, 1)]
    return float(np.sqrt(sum(part.sum() * len(part) / max(1, len(part) - 1) for part in parts)))
