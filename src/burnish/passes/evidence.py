"""What calibration rows say of a step that is not exact: the moments of the values that linears read, and what the model's scores lose.

Memory is bounded whatever the number of rows: a value (rows, ..., K) leaves a mean and a K x K covariance. Three quarters of the rows are
for fitting, every fourth is for judging, so that what was fitted is judged on rows it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from burnish.errors import InputError, RecipeError
from burnish.graph.interpret import interpret, sigmoid
from burnish.graph.node import Graph, Node
from burnish.graph.show import cost
from burnish.inputs import rows_of
from burnish.passes.factor import factor_request

Rows = Mapping[str, np.ndarray]

LEAST_ROWS = 64  # a quarter of them judges
BATCH = 1024  # rows interpreted at a time
FITTED = (4096, 100_000_000_000)  # rows to fit on: the former, or as many as the model does that many products on
JUDGED = (1024, 20_000_000_000)  # and rows to judge each trial on
VECTORS = 32_768  # of one value whose moments are taken; more than eight times as many as channels, or all there are
CANDIDATES = 128  # of one request, when what is done once a request is weighed against what is done for each candidate
SPREAD = 0.05  # see Judge


@dataclass(frozen=True)
class Moments:
    """Of a value (..., K): its mean (K,) and covariance (K, K), in float64; `halves` are those of every other vector and of the rest."""

    mean: np.ndarray = field(repr=False)
    covariance: np.ndarray = field(repr=False)
    halves: tuple[Moments, ...] = field(repr=False, default=())


def split(graph: Graph, calibration: Rows) -> tuple[Rows, Rows]:
    """The rows to fit on and the rows to judge on, fewer of them for a large model; RecipeError when there are fewer than LEAST_ROWS."""
    count = rows_of(graph.inputs, calibration)
    if count < LEAST_ROWS:
        raise RecipeError(
            f"{count} calibration rows are too few to prune by; {LEAST_ROWS} are the least. Give ten thousand rows of the training data"
        )
    judged = np.arange(count) % 4 == 3
    products = max(cost(graph).macs, 1)

    def rows(of: np.ndarray, least: int, most: int) -> Rows:
        return {name: array[of][: max(least, most // products)] for name, array in calibration.items()}

    return rows(~judged, *FITTED), rows(judged, *JUDGED)


def spread(rows: Rows, most: int) -> Rows:
    """At most so many of the rows, evenly spread."""
    stride = -(-len(next(iter(rows.values()))) // most)
    return {name: array[::stride] for name, array in rows.items()}


def moments(graph: Graph, values: Sequence[Node], rows: Rows) -> dict[Node, Moments]:
    """The moments of each of the float values (..., K) over the rows; InputError when a value is not finite."""
    count = rows_of(graph.inputs, rows)
    wanted = list(dict.fromkeys(values))
    taps = Graph(graph.inputs, {str(i): node for i, node in enumerate(wanted)})
    strides = [max(1, count * math.prod(node.shape[:-1]) // max(VECTORS, 8 * node.shape[-1])) for node in wanted]
    sums = [(_Sums(node.shape[-1]), _Sums(node.shape[-1])) for node in wanted]
    for start in range(0, count, BATCH):
        batch = {name: array[start : start + BATCH] for name, array in rows.items()}
        for i, value in enumerate(interpret(taps, batch).values()):
            if not np.isfinite(value).all():
                raise InputError(
                    f"calibration rows {start} to {start + len(value) - 1} make {wanted[i]!r} NaN or infinite. Remove such rows, or fill "
                    "them as the model expects"
                )
            vectors = value.reshape(-1, value.shape[-1])[:: strides[i]].astype(np.float64)
            for half in (0, 1):
                sums[i][half].add(vectors[half::2])
    return {node: _moments(*halves) for node, halves in zip(wanted, sums)}


class _Sums:
    """Of vectors about their first mean: sums of squares around 0 would lose digits of a channel far from it."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.shift = np.zeros(channels)
        self.first = np.zeros(channels)
        self.second = np.zeros((channels, channels))

    def add(self, vectors: np.ndarray) -> None:
        if not len(vectors):
            return
        if not self.count:
            self.shift = vectors.mean(axis=0)
        vectors = vectors - self.shift
        self.count += len(vectors)
        self.first += vectors.sum(axis=0)
        self.second += vectors.T @ vectors

    def moments(self) -> Moments:
        mean = self.first / max(self.count, 1)
        return Moments(self.shift + mean, self.second / max(self.count, 1) - np.outer(mean, mean))


def _moments(a: _Sums, b: _Sums) -> Moments:
    """Of both halves together: their covariances and that of their means."""
    halves, part = (a.moments(), b.moments()), a.count / (a.count + b.count)
    apart = halves[0].mean - halves[1].mean
    covariance = part * halves[0].covariance + (1 - part) * halves[1].covariance + part * (1 - part) * np.outer(apart, apart)
    return Moments(part * halves[0].mean + (1 - part) * halves[1].mean, covariance, halves)


class Judge:
    """What a changed graph loses against `graph`, from their scores on the judging rows. No labels: the original's scores stand for them.

    The loss is the relative drop of the AUC that is to be expected if each row's label is 1 with the probability that the original gives
    it. A change that keeps the order of the scores would cost nothing by that alone, so SPREAD times the share of the scores' variance that
    differs counts when it is more. Of several outputs the worst counts. Scores outside [0, 1] are standardized and taken for logits.
    """

    def __init__(self, graph: Graph, rows: Rows, original: list[np.ndarray] | None = None) -> None:
        """`original`: the scores of the graph on the rows, where they are known."""
        self.graph, self.rows = graph, rows
        self.original = self._scores(graph) if original is None else original

    def on(self, rows: int) -> Judge:
        """The same on at most so many of its rows: quicker, and less sure."""
        stride = -(-len(self.original[0]) // rows)
        return Judge(self.graph, spread(self.rows, rows), [scores[::stride] for scores in self.original])

    def loss(self, changed: Graph) -> float:
        return max((score_loss(s, t) for s, t in zip(self.original, self._scores(changed))), default=0.0)

    def _scores(self, graph: Graph) -> list[np.ndarray]:
        """Every column of every output, (rows,) each."""
        n = len(next(iter(self.rows.values())))
        parts = [interpret(graph, {k: v[i : i + BATCH] for k, v in self.rows.items()}) for i in range(0, n, BATCH)]
        whole = [np.concatenate([part[name].reshape(len(part[name]), -1) for part in parts]) for name in parts[0]]
        return [column for output in whole for column in output.T.astype(np.float64)]


def score_loss(original: np.ndarray, changed: np.ndarray) -> float:
    """The loss of Judge for one score, (rows,) each; infinite where a score is not finite."""
    if not np.isfinite(changed).all():
        return np.inf
    variance = float(original.var())
    if variance == 0:
        return 0.0 if np.allclose(original, changed) else np.inf
    probability = original
    if original.min() < 0 or original.max() > 1:
        probability = sigmoid((original - original.mean()) / variance**0.5)
    drop = 1 - expected_auc(probability, changed) / expected_auc(probability, original)
    return max(drop, SPREAD * float(np.mean((changed - original) ** 2)) / variance)


def expected_auc(probability: np.ndarray, scores: np.ndarray) -> float:
    """E AUC of the scores when the label of row i is 1 with probability[i]: each pair of rows counts p_i (1 - p_j)."""
    _, place = np.unique(scores, return_inverse=True)
    ones, zeros = np.bincount(place, probability), np.bincount(place, 1 - probability)
    below = np.cumsum(zeros) - zeros
    return float((ones * (below + zeros / 2)).sum() / max(ones.sum() * zeros.sum(), 1e-300))


def macs(graph: Graph) -> float:
    """Multiply-accumulates a candidate, with its share of what is done once a request."""
    found = cost(factor_request(graph))
    return found.candidate.macs + found.request.macs / CANDIDATES
