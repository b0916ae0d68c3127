"""low_rank: a wide linear whose outputs lie near a subspace, on rows as they come, becomes two narrow ones.

Why not the SVD of W? What matters is the error of the output on real inputs, and a ranker's inputs are far from white. With C the
covariance of x, the W' of rank r with the least E|W x - W' x|^2 is W C^(1/2) truncated, times C^(-1/2). Its left factor spans the r
directions in which the output W x varies most, so W' = U U^T W with U the leading eigenvectors of W C W^T: nothing has to be inverted.
The mean of what is cut off goes into the bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from burnish.graph.interpret import constant
from burnish.graph.node import Graph, Node, weight
from burnish.graph.ops import Op
from burnish.passes.budget import Sizes, at_sizes, shrink
from burnish.passes.evidence import Judge, Rows, macs, moments, split
from burnish.passes.refit import followed, is_plain, weight_name, weight_names

LEAST = 32  # inputs and outputs of a linear below which two products are no cheaper than one
WIDEST = 8192  # inputs; above, the covariance alone would take half a gigabyte
UNIT = 16  # outputs that a kernel computes at a time
NOTHING = 1e-12  # part of the output's variance that is rounding


@dataclass(frozen=True, eq=False)
class Factors:
    """A linear W (N, K): the directions U (N, N) of its output, those of most variance first, their variances (N,), and W's mean output."""

    node: Node
    directions: np.ndarray = field(repr=False)
    variances: np.ndarray = field(repr=False)
    mean: np.ndarray = field(repr=False)

    def error(self, rank: int) -> float:
        """The part of the output's variance that is lost at that rank."""
        return float(self.variances[rank:].sum() / max(self.variances.sum(), 1e-300))

    def ranks(self) -> list[int]:
        """Ranks that cost fewer products than the whole, multiples of UNIT about a quarter apart, the largest first."""
        n, k = self.node.inputs[1].shape
        most, found, rank = n * k / (n + k), [], UNIT
        while rank < most:
            found.append(rank)
            rank = max(rank + UNIT, rank * 5 // 4 // UNIT * UNIT)
        return found[::-1]


def low_rank(
    graph: Graph,
    calibration: Rows,
    loss: float = 0.0002,
    rank: int | str = "auto",
    error: float | str = "auto",
    narrowest: int = LEAST,
    ranks: Sequence[tuple[str, int]] | str = "auto",
) -> Graph:
    """linear(x, W, b)  ->  linear(linear(x, U^T W), U, b'), where that is cheaper, for linears with `narrowest` inputs and outputs or more.

    1. By default ranks are chosen so that the model saves most at an expected relative loss of AUC of at most `loss` (evidence.Judge).
    2. `error` instead bounds what each linear by itself may lose, as a part of its output's variance.
    3. `rank` gives every linear that rank.
    4. `ranks` gives each linear its own, by the name of its weight; those not named stay whole.
    What is cheaper is weighed a candidate, the request's share of a product being computed once (evidence.macs).
    RecipeError for fewer than 64 calibration rows, which are needed whatever is chosen.
    """
    fit, judging = split(graph, calibration)
    found = factors(graph, fit, narrowest)
    if rank != "auto" or error != "auto":
        whole = macs(graph)
        wanted = [rank if isinstance(rank, int) else _rank_of(each, float(error)) for each in found]
        return factored(graph, {each: r for each, r in zip(found, wanted) if macs(factored(graph, {each: r})) < whole}, fit)

    def made(sizes: Sizes, refit: bool) -> Graph:
        return factored(graph, {found[i]: size for i, size in sizes.items()}, fit if refit else None)

    if not isinstance(ranks, str):
        return at_sizes(graph, Judge(graph, judging), ranks, weight_names([each.node for each in found]), made)
    return shrink(graph, Judge(graph, judging), loss, [each.ranks() for each in found], made)


def factors(graph: Graph, rows: Rows, narrowest: int = LEAST) -> list[Factors]:
    """Of every float32 linear of rows with at least `narrowest` inputs and outputs, and at most WIDEST inputs."""
    linears = [
        node for node in graph.order if is_plain(node) and narrowest <= min(node.inputs[1].shape) and max(node.inputs[1].shape) <= WIDEST
    ]
    seen = moments(graph, [node.inputs[0] for node in linears], rows) if linears else {}
    found = []
    for node in linears:
        w, of = constant(node.inputs[1]).astype(np.float64), seen[node.inputs[0]]
        found.append(Factors(node, *_directions(w, of.covariance), w @ of.mean))
    return found


def _directions(w: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The directions (N, N), as columns, and variances (N,) of W x, the largest first."""
    variances, directions = np.linalg.eigh(w @ covariance @ w.T)
    return directions[:, ::-1], np.maximum(variances[::-1], 0)


def factored(graph: Graph, ranks: Mapping[Factors, int], refit: Rows | None = None) -> Graph:
    """The graph with each of the linears at its rank; those whose input has changed are fitted to the rows `refit` first."""
    by_node = {each.node: (each, rank) for each, rank in ranks.items()}

    def change(node: Node, operands: tuple[Node, ...]) -> Node:
        follows = followed(graph, node, operands, constant(node.inputs[1]), refit) if refit is not None and is_plain(node) else None
        if node not in by_node and follows is None:
            return node if operands == node.inputs else node.with_inputs(operands)
        x, _, _, *init = operands
        name = weight_name(node)
        if follows is None:
            each, rank = by_node[node]
            w, b, directions, mean = constant(node.inputs[1]), constant(node.inputs[2]), each.directions, each.mean
        else:
            (w, b), of = follows
            if node not in by_node:
                return Node(Op.LINEAR, (x, weight(name, w), weight(f"{name}.bias", b), *init))
            rank, k = by_node[node][1], node.inputs[0].shape[-1]
            directions, _ = _directions(w, of.covariance[k:, k:])
            mean = w @ of.mean[k:]
        u = directions[:, :rank]
        down = (u.T @ w).astype(np.float32)
        bias = b + mean - u @ (u.T @ mean)
        inner = Node(Op.LINEAR, (x, weight(f"{name}.down", down), weight("0", np.zeros(rank, np.float32))))
        up = (weight(f"{name}.up", u.astype(np.float32)), weight(f"{name}.bias", bias.astype(np.float32)))
        return Node(Op.LINEAR, (inner, *up, *init))

    return graph.map(change)


def _rank_of(each: Factors, error: float) -> int:
    return next((r for r in reversed(each.ranks()) if each.error(r) <= error + NOTHING), len(each.variances))
