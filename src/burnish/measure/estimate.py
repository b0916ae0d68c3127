"""Metrics as estimates: a value, and the influence of each row on it, from which `standard_error` makes an interval.

The influence of a row is the metric's first-order change by that row; they sum to zero. Influences subtract where metrics do, so the paired
difference of two models on the same rows needs no covariance of its own. One metric is not smooth, the calibration error, whose absolute
values bend at 0: that one is resampled.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import numpy as np

from burnish.measure import ranking

Scale = Literal["probability", "logit"]

BINS = 15  # of equal mass, for the calibration error
DRAWS = 400  # of a bootstrap: its standard errors are known to 4 %
BLOCKS = 4096  # units that a bootstrap draws from, at most; more are put together at random


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
    p = probabilities(scores, scale)
    if scale == "logit":
        each = np.logaddexp(0, np.where(labels > 0, -1.0, 1.0) * scores)
    else:
        each = -np.log(np.where(labels > 0, p, 1 - p))
    loss, calibration = each.mean(), p.mean() / rate
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    slope = np.log1p(-rate) - np.log(rate)  # of the entropy by the rate
    return {
        "log_loss": Estimate(float(loss), (each - loss) / n),
        "normalized_entropy": Estimate(float(loss / entropy), ((each - loss) / entropy - loss / entropy**2 * slope * (labels - rate)) / n),
        "calibration": Estimate(float(calibration), (p - calibration * labels) / (n * rate)),
    }


def probabilities(scores: np.ndarray, scale: Scale) -> np.ndarray:
    """(N,) float64: logits through the sigmoid, probabilities kept 1e-7 away from 0 and 1."""
    scores = scores.astype(np.float64)
    return np.exp(-np.logaddexp(0, -scores)) if scale == "logit" else np.clip(scores, 1e-7, 1 - 1e-7)


def calibration_errors(
    labels: np.ndarray, pair: tuple[np.ndarray, np.ndarray], codes: np.ndarray | None, units: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of two models' probabilities (N,) the expected calibration errors (2,), and those of DRAWS bootstrap samples of units (DRAWS, 2).

    ECE: the mean over BINS bins of equal mass, each model's own, of |mean prediction - label rate|, weighted by rows (Naeini et al.
    2015). Resampled are rows, or the clusters `codes`, through the sums of each bin, so a draw costs nothing that grows with the rows.
    """
    n = len(labels)
    block = np.arange(n) if codes is None else codes
    if units > BLOCKS:
        block = (np.random.default_rng(0).permutation(units) % BLOCKS)[block]
    blocks = min(units, BLOCKS)
    sums = np.empty((blocks, 2, BINS))
    for i, p in enumerate(pair):
        edges = np.quantile(p, np.arange(1, BINS) / BINS)
        cell = block * BINS + np.searchsorted(edges, p, side="right")
        sums[:, i] = np.bincount(cell, weights=p - labels, minlength=blocks * BINS).reshape(blocks, BINS)
    rows = np.bincount(block, minlength=blocks)
    drawn = _draws(blocks)
    totals = (drawn @ sums.reshape(blocks, -1)).reshape(DRAWS, 2, BINS)
    return np.abs(sums.sum(axis=0)).sum(axis=1) / n, np.abs(totals).sum(axis=2) / (drawn @ rows)[:, None]


@functools.lru_cache(maxsize=2)
def _draws(units: int) -> np.ndarray:
    """(DRAWS, units) how often each unit is in each sample; the same samples every time, for every model that is compared."""
    return np.random.default_rng(0).multinomial(units, np.full(units, 1 / units), DRAWS).astype(np.float64)


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
    first = [ranking.reciprocal_rank(labels, s, codes, count) for s in (original, scores)]
    return {
        "gauc": (gauc[0], gauc[1], rows, "rows of both labels"),
        "ndcg": (gain[0], gain[1], same, "a row of label 1"),
        "mrr": (first[0], first[1], same, "a row of label 1"),
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
