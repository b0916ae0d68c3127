"""Metrics as estimates: a value, and the influence of each row on it, from which `standard_error` makes an interval.

The influence of a row is the metric's first-order change by that row; they sum to zero. Influences subtract where metrics do, so the paired
difference of two models on the same rows needs no covariance of its own.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from burnish.measure import ranking

Scale = Literal["probability", "logit"]


class Estimate(NamedTuple):
    value: float
    influence: np.ndarray  # (N,) of each row, or of each request


def auc(labels: np.ndarray, placed: np.ndarray) -> Estimate:
    """Area under the ROC curve from the rows' placement values (`ranking.placements`)."""
    positive = labels > 0
    value = float(placed[positive].mean())
    return Estimate(value, (placed - value) / np.where(positive, positive.sum(), len(labels) - positive.sum()))


def probability_metrics(labels: np.ndarray, scores: np.ndarray, scale: Scale) -> dict[str, Estimate]:
    """Log-loss; normalized entropy, log-loss over the entropy of the label rate (He et al. 2014); calibration, mean prediction over label
    rate. Probabilities are kept 1e-7 away from 0 and 1, the resolution of float32."""
    n, rate = len(labels), labels.mean()
    scores = scores.astype(np.float64)
    if scale == "logit":
        each = np.logaddexp(0, np.where(labels > 0, -scores, scores))
        p = np.exp(-np.logaddexp(0, -scores))
    else:
        p = np.clip(scores, 1e-7, 1 - 1e-7)
        each = -np.log(np.where(labels > 0, p, 1 - p))
    loss, calibration = each.mean(), p.mean() / rate
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    slope = np.log1p(-rate) - np.log(rate)  # of the entropy by the rate
    return {
        "log_loss": Estimate(float(loss), (each - loss) / n),
        "normalized_entropy": Estimate(float(loss / entropy), ((each - loss) / entropy - loss / entropy**2 * slope * (labels - rate)) / n),
        "calibration": Estimate(float(calibration), (p - calibration * labels) / (n * rate)),
    }


def mean(values: np.ndarray, weights: np.ndarray) -> Estimate:
    """Weighted mean over requests."""
    value = float(np.average(values, weights=weights))
    return Estimate(value, weights / weights.sum() * (values - value))


def per_request(
    labels: np.ndarray, original: np.ndarray, scores: np.ndarray, codes: np.ndarray, count: int, k: int
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, str]]:
    """name -> ((G,) of the original, (G,) of the scores, (G,) weights, what a request needs to have one; the rest is NaN). GAUC weights a
    request's AUC by its rows (Zhu et al. 2017)."""
    same = np.ones(count)
    rows = np.bincount(codes, minlength=count).astype(float)
    placed = [ranking.placements(labels, s, codes) for s in (original, scores)]
    gauc = [ranking.group_auc(labels, p, codes, count) for p in placed]
    gain = [ranking.ndcg(labels, s, codes, count, k) for s in (original, scores)]
    return {
        "gauc": (gauc[0], gauc[1], rows, "rows of both labels"),
        "ndcg": (gain[0], gain[1], same, "a row of label 1"),
        "topk_overlap": (same, ranking.topk_overlap(original, scores, codes, count, k), same, f"more than k = {k} rows"),
        "kendall_tau": (same, ranking.kendall_tau(original, scores, codes, count), same, "two different scores of each model"),
    }


def standard_error(influence: np.ndarray, codes: np.ndarray | None, units: int, strata: np.ndarray | None = None) -> float:
    """Root of the summed squared influences of independent units (rows, or the clusters `codes`), with the correction n/(n - 1) for the
    estimated mean; `strata` (0 or 1 a row) are corrected apart, as in DeLong's covariance."""
    if codes is not None:
        influence = np.bincount(codes, weights=influence, minlength=units)
    square = influence**2
    if strata is None:
        return float(np.sqrt(square.sum() * units / (units - 1)))
    parts = [square[strata == label] for label in (0, 1)]
    return float(np.sqrt(sum(part.sum() * len(part) / max(1, len(part) - 1) for part in parts)))
