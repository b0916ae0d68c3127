"""refit: a linear whose input has changed is fitted anew, so that it gives what it gave before as nearly as the new input lets it.

Least squares needs no training and no labels: y = W x + b of the model as it was is the target, on calibration rows. A ridge draws W'
towards the weights it starts from, so that on those rows it is never worse than they are; how strong, each half of the rows decides for
the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from burnish.graph.interpret import constant
from burnish.graph.node import Graph, Node
from burnish.graph.ops import Op
from burnish.passes.evidence import Moments, Rows, moments
from burnish.passes.segments import concat

WIDEST = 8192  # inputs, old and new, of a linear to be refitted; above, the covariance alone would take half a gigabyte
RIDGES = (1e-8, 1e-6, 1e-4, 1e-2)  # of each input's variance; the least is what float32 resolves

Linear = tuple[np.ndarray, np.ndarray]  # W (N, K), b (N,)


def refitted(w: np.ndarray, b: np.ndarray, start: np.ndarray, of: Moments, old: np.ndarray, new: np.ndarray) -> Linear:
    """W (N, K), b (N,) of x = v[old]  ->  W', b' of x' = v[new], `of` being the moments of v; W' is drawn to `start` (N, K')."""
    w, start = w.astype(np.float64), start.astype(np.float64)
    whole, first, second = (_Normal(w, part, old, new) for part in (of, *of.halves))
    errors = [second.error(first.solved(start, ridge)) + first.error(second.solved(start, ridge)) for ridge in RIDGES]
    best = int(np.argmin(errors))
    found = whole.solved(start, RIDGES[best]) if errors[best] < first.error(start) + second.error(start) else start
    narrow = found.astype(np.float32)
    return narrow, (b + w @ of.mean[old] - narrow @ of.mean[new]).astype(np.float32)


class _Normal:
    """The normal equations of y = W x from x': the covariance of x' (K', K'), and that of y with x' (N, K')."""

    def __init__(self, w: np.ndarray, of: Moments, old: np.ndarray, new: np.ndarray) -> None:
        self.own = of.covariance[np.ix_(new, new)]
        self.cross = w @ of.covariance[np.ix_(old, new)]

    def solved(self, start: np.ndarray, ridge: float) -> np.ndarray:
        power = np.diag(self.own)
        damped = self.own + np.diag(ridge * (power + power.mean()) + 1e-30)
        return start + np.linalg.solve(damped, (self.cross - start @ self.own).T).T

    def error(self, fitted: np.ndarray) -> float:
        """The squared error of `fitted` x', less that of nothing."""
        return float(np.sum((fitted @ self.own - 2 * self.cross) * fitted))


def followed(graph: Graph, node: Node, operands: tuple[Node, ...], start: np.ndarray, rows: Rows) -> tuple[Linear, Moments] | None:
    """W', b' of a LINEAR whose operands became `operands`, `start` (N, K') being its weights for them; and the moments of (x, x').

    None where there is nothing to follow: the input is what it was, or too wide, or the init has changed too.
    """
    x, new = node.inputs[0], operands[0]
    if new is x or operands[3:] != node.inputs[3:] or x.shape[:-1] != new.shape[:-1] or x.shape[-1] + new.shape[-1] > WIDEST:
        return None
    both = concat([x, new], len(x.shape) - 1)
    of = moments(graph, [both], rows)[both]
    k = x.shape[-1]
    fitted = refitted(constant(node.inputs[1]), constant(node.inputs[2]), start, of, np.arange(k), np.arange(k, both.shape[-1]))
    return fitted, of


def weight_name(node: Node) -> str:
    """The name of a LINEAR's weight."""
    return node.inputs[1]["weight"].name if node.inputs[1].op is Op.WEIGHT else "linear"


def weight_names(nodes: Sequence[Node]) -> list[str]:
    """The names of the LINEARs' weights, those that come again with ~2, ~3 behind."""
    met: Counter[str] = Counter()
    names = []
    for name in map(weight_name, nodes):
        met[name] += 1
        names.append(name if met[name] == 1 else f"{name}~{met[name]}")
    return names


def is_plain(node: Node) -> bool:
    """Whether it is a float32 LINEAR of rows, whose weights a pass may choose anew."""
    return node.op is Op.LINEAR and node.side != "constant" and node["compute"] == node.inputs[0].dtype == node.inputs[1].dtype == "float32"
