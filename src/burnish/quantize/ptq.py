"""Static int8 of linears after training, each choice made from calibration rows: range, scale migration, rounding, bias correction.

A linear y = W x + b becomes q = quantize(x, multiplier, zero_point), y = scale * (q - zero_point) . Q + bias, where Q holds the rows of
W / multiplier in int8 (quantize/affine.py). With one multiplier for all channels that is plain per-tensor quantization. With one a channel,
channels of small values are stretched before they are rounded and their weights shrunk by as much, at no cost at run time: scale migration
(after SmoothQuant, Xiao et al. 2023, arXiv:2211.10438). How far is chosen for each linear by the error of its output on calibration rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from burnish.errors import RecipeError
from burnish.graph.interpret import constant
from burnish.graph.node import Graph, Node, weight
from burnish.graph.ops import Op
from burnish.inputs import rows_of
from burnish.passes.budget import Level, spend
from burnish.passes.evidence import CANDIDATES, Judge
from burnish.quantize import affine
from burnish.quantize.observe import Observer, observe
from burnish.quantize.rounding import WIDEST, Second, compensated

MIGRATIONS = (0.0, 0.25, 0.5, 0.625, 0.75, 0.875, 1.0)
RANGES = ("min-max", "percentile", "mse")  # that "auto" tries; "entropy" is 1 to 30 dB worse on every linear of the two DCN-v2
PERCENTILE = 99.99  # of the values, kept by ranges="percentile"
BINS = 2048
SHRINK = np.linspace(1.0, 0.3, 36)  # parts of the whole range that ranges="mse" tries
TRIAL_MACS = 400_000_000  # of one trial quantization; bounds the vectors that it is judged on
CLIPPING_GAINS = 0.6  # a range that clips must lessen the error to this part: what it costs falls on rare rows, which a sample underrates
MIGRATION_GAINS = 0.9  # and so must each more migration: it leaves channels less room for values that calibration did not show
JUDGED_ROWS = 2048
FASTER = 4  # products of int8 that take the time of one of float32
SHARING_COSTS = 1.1  # linears that read the same value share its quantization unless their error grows by more than this factor


@dataclass(frozen=True)
class Linear:
    """A LINEAR of the graph that is to be int8. `name` is that of its weight, made unique; `rectified`: nothing but RELUs read it."""

    node: Node
    name: str
    weight: np.ndarray = field(repr=False)  # (N, K) float32
    rectified: bool = False

    @property
    def value(self) -> Node:
        """What it reads, (..., K)."""
        return self.node.inputs[0]

    @property
    def macs(self) -> float:
        """Multiply-adds a candidate, with its share of what is done once a request."""
        each = math.prod(self.node.shape[:-1]) * self.weight.size
        return each if self.node.side == "candidate" else each / CANDIDATES


@dataclass(frozen=True)
class Scheme:
    """How one value is quantized: q = rint(x * multiplier) + zero_point."""

    ranges: str
    migration: float
    multiplier: np.ndarray = field(repr=False)  # float32 () or (K,)
    zero_point: int


@dataclass(frozen=True)
class Choice:
    """What was decided for one linear: w / multiplier is q * scale, and bias_shift is added to the bias.

    `rounding` is "nearest" or "compensated". `error` is the mean squared error of its output on calibration rows over its variance, behind
    the RELU where there is one: what a neuron that is off gets wrong harms nothing, and correcting it may harm.
    """

    linear: Linear
    scheme: Scheme
    rounding: str
    error: float
    q: np.ndarray = field(repr=False)  # (N, K) int8
    scale: np.ndarray = field(repr=False)  # (N,) float32
    bias_shift: np.ndarray = field(repr=False)  # (N,) float32

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise of the linear's output, in decibels."""
        return float(-10 * np.log10(max(self.error, 1e-30)))


def int8(
    graph: Graph,
    calibration: Mapping[str, np.ndarray],
    *,
    loss: float = 0.0001,
    schemes: Sequence[Sequence[str]] | str = "auto",
    **options: Any,
) -> Graph:
    """linear(x, w, b)  ->  qlinear(quantize(x, multiplier), int8 w, scale, bias) for each linear of `choose(..., **options)`.

    As many are left in float32 as it takes for the rest to lose an expected `loss` of AUC together (evidence.Judge), those first that lose
    most for the time they save; 1 leaves none. `schemes` instead says which are int8, and how (`choose`).
    """
    choices = choose(graph, calibration, schemes=schemes, **options)
    if loss < 1 and isinstance(schemes, str):
        choices = affordable(graph, choices, calibration, loss)
    return quantized(graph, choices)


def affordable(graph: Graph, choices: Sequence[Choice], calibration: Mapping[str, np.ndarray], loss: float) -> tuple[Choice, ...]:
    """Of the choices those that save most time within the expected loss. One run of the model where all do, one more a linear where not."""
    judge = judge_of(graph, calibration)
    if not choices or judge.loss(quantized(graph, choices)) <= loss:
        return tuple(choices)
    saved = [choice.linear.macs * (1 - 1 / FASTER) for choice in choices]
    whole = sum(choice.linear.macs for choice in choices)
    alone = {i: [Level(8, whole - saved[i], judge.loss(quantized(graph, [choice])))] for i, choice in enumerate(choices)}
    chosen = spend(loss, whole, alone, lambda sizes: judge.loss(quantized(graph, [choices[i] for i in sizes])))
    return tuple(choice for i, choice in enumerate(choices) if i in chosen)


def judge_of(graph: Graph, calibration: Mapping[str, np.ndarray]) -> Judge:
    """What int8 loses is judged on JUDGED_ROWS of the calibration rows, spread over all of them."""
    stride = -(-rows_of(graph.inputs, calibration) // JUDGED_ROWS)
    return Judge(graph, {name: array[::stride] for name, array in calibration.items()})


def linears(graph: Graph, narrowest: int = 8, skip: Sequence[str] = ()) -> list[Linear]:
    """The float32 linears of rows with at least `narrowest` outputs whose weight's name is not in `skip`.

    RecipeError for a name in `skip` that no linear has.
    """
    found: dict[str, Linear] = {}
    users, outputs = graph.users(), {node for _, node in graph.outputs}
    for node in graph.order:
        if node.op is not Op.LINEAR or node.side == "constant" or node["compute"] != "float32" or node.inputs[0].dtype != "float32":
            continue
        held = node.inputs[1]
        base = held["weight"].name if held.op is Op.WEIGHT else "linear"
        name, n = base, 1
        while name in found:
            n += 1
            name = f"{base}~{n}"
        whole = len(node.inputs) == 3 and node not in outputs  # no init that is still to be added
        rectified = whole and bool(users[node]) and all(user.op is Op.RELU for user in users[node])
        found[name] = Linear(node, name, constant(held), rectified)
    for name in skip:
        if name not in found:
            raise RecipeError(f"Int8 is to skip {name!r}, and no linear has a weight of that name; there are {', '.join(found) or 'none'}")
    return [one for one in found.values() if one.node.shape[-1] >= narrowest and one.name not in skip]


def choose(
    graph: Graph,
    calibration: Mapping[str, np.ndarray],
    *,
    ranges: str = "auto",
    migration: float | str = "auto",
    rounding: str = "auto",
    symmetric: bool = False,
    bias_correction: bool = True,
    weight_bits: int = 8,
    narrowest: int = 8,
    skip: Sequence[str] = (),
    schemes: Sequence[Sequence[str]] | str = "auto",
) -> tuple[Choice, ...]:
    """For each linear what, among all that `ranges`, `migration` and `rounding` allow, reconstructs its output best.

    With fewer `weight_bits` a weight is one of fewer whole numbers, still held in int8.
    Linears that read the same value share one scheme where that costs next to nothing.
    With `schemes`, rows of (kind, linear, linear ...), the linears of a row share one that has one multiplier a channel (kind "channel") or
    one in all ("tensor"); linears not named are left. RecipeError for a row that does not fit the graph.
    """
    named = None if isinstance(schemes, str) else _named(linears(graph, 1), schemes)
    chosen = linears(graph, narrowest, skip) if named is None else [one for _, group in named for one in group]
    seen = observe(graph, [one.value for one in chosen], calibration)
    kinds = RANGES if ranges == "auto" else (ranges,)
    degrees = MIGRATIONS if migration == "auto" else (float(migration),)
    limit = largest(weight_bits)
    choices: dict[str, Choice] = {}

    @functools.cache
    def second(value: Node) -> Second | None:
        return Second.of(seen[value].sample[0::2], seen[value].largest) if rounding == "auto" and value.shape[-1] <= WIDEST else None

    def best(group: list[Linear], degrees: Sequence[float]) -> list[Choice]:
        value = group[0].value
        return _best(seen[value], group, kinds, degrees, second(value), symmetric, bias_correction, limit)

    if named is not None:
        for kind, group in named:
            choices.update({c.linear.name: c for c in best(group, [d for d in MIGRATIONS if (d > 0) == (kind == "channel")])})
        return tuple(choices[one.name] for one in chosen)
    groups: dict[Node, list[Linear]] = {}
    for one in chosen:
        groups.setdefault(one.value, []).append(one)
    for group in groups.values():
        found = best(group, degrees)
        if len(group) > 1:
            alone = [choice for one in group for choice in best([one], degrees)]
            if sum(c.error for c in found) > SHARING_COSTS * sum(c.error for c in alone):
                found = alone
        choices.update({choice.linear.name: choice for choice in found})
    return tuple(choices[one.name] for one in chosen)


def _named(there: Sequence[Linear], schemes: Sequence[Sequence[str]]) -> list[tuple[str, list[Linear]]]:
    """The linears of each row of `schemes`, with its kind."""
    by_name = {one.name: one for one in there}
    found = []
    for row in schemes:
        kind, names = row[0] if row else "", row[1:]
        if kind not in ("channel", "tensor") or not names:
            raise RecipeError(f'Int8 has the scheme {list(row)}. Give "channel" or "tensor", and the names of linears that share it')
        for name in names:
            if name not in by_name:
                raise RecipeError(
                    f"Int8 has a scheme for {name!r}, and no linear has a weight of that name; there are {', '.join(by_name) or 'none'}"
                )
        if len({by_name[name].value for name in names}) > 1:
            raise RecipeError(f"Int8 has one scheme for {', '.join(names)}, which do not read the same value. Give each its own")
        found.append((kind, [by_name[name] for name in names]))
    return found


def largest(weight_bits: int) -> int:
    """The largest weight of so many bits: 7 of 4. The one more on the negative side is left out, so that a row is symmetric."""
    return (1 << (weight_bits - 1)) - 1


def quantized(graph: Graph, choices: Sequence[Choice]) -> Graph:
    """The graph with the linears of the choices in int8. A linear that has a float init keeps it as an addition."""
    by_node = {choice.linear.node: choice for choice in choices}
    multipliers: dict[int, Node] = {}  # linears that share a scheme share its multiplier, and so its QUANTIZE

    def change(node: Node, operands: tuple[Node, ...]) -> Node:
        if node not in by_node:
            return node if operands == node.inputs else node.with_inputs(operands)
        choice = by_node[node]
        name, scheme = choice.linear.name, choice.scheme
        bias = constant(node.inputs[2]).astype(np.float32) + choice.bias_shift
        multiplier = multipliers.setdefault(id(scheme), weight(f"{name}.multiplier", scheme.multiplier))
        x = Node(Op.QUANTIZE, (operands[0], multiplier), zero_point=scheme.zero_point)
        packed = (weight(f"{name}.int8", choice.q), weight(f"{name}.scale", choice.scale), weight(f"{name}.bias", bias))
        y = Node(Op.QLINEAR, (x, *packed), zero_point=scheme.zero_point)
        return Node(Op.ADD, (y, operands[3])) if len(operands) > 3 else y

    return graph.map(change)


def _best(
    observer: Observer,
    group: list[Linear],
    kinds: Sequence[str],
    degrees: Sequence[float],
    second: Second | None,
    symmetric: bool,
    bias_correction: bool,
    limit: int,
) -> list[Choice]:
    """The choices for linears that share one scheme: those of the least sum of relative errors, or nearly so.

    Judged on every other vector of the sample; `second` was made from the others. First the best range for each degree of migration, with
    weights rounded to the nearest. Then, from the best degree up, weights that make up for each other's errors: they bear more migration.
    Ties go to what is safe on values never seen: the range that does not clip, the least migration.
    """
    x = _trial_vectors(observer, group)
    exact = [x @ one.weight.T + constant(one.node.inputs[2]) for one in group]

    def trial(scheme: Scheme, second: Second | None) -> list[Choice]:
        q = affine.quantize(x, scheme.multiplier, scheme.zero_point)
        return [_choice(one, scheme, second, q, y, bias_correction, limit) for one, y in zip(group, exact)]

    tried = []
    for degree in degrees:
        first, *others = (trial(scheme, None) for scheme in _schemes(observer, group, kinds, degree, symmetric))
        tried.append(min([first, *(other for other in others if _error(other) < CLIPPING_GAINS * _error(first))], key=_error))
    if second is not None:
        for i in range(_least_migration(tried), len(tried)):
            made_up = trial(tried[i][0].scheme, second)
            tried[i] = [min(pair, key=lambda choice: choice.error) for pair in zip(tried[i], made_up)]
    return tried[_least_migration(tried)]


def _least_migration(tried: list[list[Choice]]) -> int:
    """The first of the choices, in order of migration, that no more migration betters by enough."""
    least = min(map(_error, tried))
    return next(i for i, choices in enumerate(tried) if MIGRATION_GAINS * _error(choices) <= least)


def _error(choices: list[Choice]) -> float:
    return sum(choice.error for choice in choices)


def _choice(
    one: Linear, scheme: Scheme, second: Second | None, q: np.ndarray, exact: np.ndarray, bias_correction: bool, limit: int
) -> Choice:
    """`one` under the scheme, judged on its quantized input q (vectors, K) against its exact output (vectors, N)."""
    stretched = (one.weight / scheme.multiplier.astype(np.float64)).astype(np.float32)
    w, scale = affine.quantize_rows(stretched, limit, None if limit == affine.S8_MAX else _narrower(stretched, limit))
    if second is not None:
        w = compensated(one.weight, scale, scheme.multiplier, second, limit)
    check_sums(one.name, w, scheme.zero_point)
    got = affine.rescale(affine.dot(q, w, scheme.zero_point), scale, constant(one.node.inputs[2]).astype(np.float32))
    shift = _bias_shift(exact, got, one.rectified) if bias_correction else np.zeros(len(w), np.float32)
    read = _read(exact, one.rectified)
    left = float(np.mean((read - _read(got + shift, one.rectified)) ** 2))
    variance = float(np.mean((read - read.mean(axis=0)) ** 2)) or 1.0
    return Choice(one, scheme, "nearest" if second is None else "compensated", left / variance, w, scale, shift)


def _read(y: np.ndarray, rectified: bool) -> np.ndarray:
    """What is read of an output."""
    return np.maximum(y, 0) if rectified else y


def _narrower(weight: np.ndarray, limit: int) -> np.ndarray:
    """(N, K) -> for each row the part (N,) of its largest magnitude that, as the range, loses least of its weights.

    With few levels that gains much; with the 255 of int8 nothing that could be measured.
    """
    top = np.abs(weight).max(axis=1)
    best, least = top, np.full(len(weight), np.inf)
    for part in SHRINK:
        q, scale = affine.quantize_rows(weight, limit, top * np.float32(part))
        error = ((q * scale[:, None] - weight) ** 2).sum(axis=1)
        best, least = np.where(error < least, top * np.float32(part), best), np.minimum(error, least)
    return best


def check_sums(name: str, q: np.ndarray, zero_point: int) -> None:
    """RecipeError when a sum of K products with the weights q (N, K) could leave 32 bits."""
    farthest = max(zero_point, affine.U8_MAX - zero_point)
    if int(np.abs(q, dtype=np.int32).sum(axis=1, dtype=np.int64).max()) * farthest >= 2**31:
        raise RecipeError(f"linear {name!r} sums {q.shape[1]:,} products, which may leave 32 bits in int8. Give Int8 skip=({name!r},)")


def _trial_vectors(observer: Observer, group: list[Linear]) -> np.ndarray:
    sample = observer.sample[1::2]
    most = max(64, TRIAL_MACS // sum(one.weight.size for one in group))
    return sample[:: -(-len(sample) // most)]


def _bias_shift(exact: np.ndarray, got: np.ndarray, rectified: bool) -> np.ndarray:
    """Exact and quantized output (vectors, N) -> what to add to the bias (N,): the mean error of each output, where it is heard.

    That over one half of the vectors must lessen the error that is read on the other half, else nothing is added to that output.
    """
    heard = (exact > 0) | (got > 0) if rectified else np.ones(exact.shape, bool)
    lost = np.where(heard, exact - got, 0)

    def mean(part: slice) -> np.ndarray:
        return lost[part].sum(axis=0) / np.maximum(heard[part].sum(axis=0), 1)

    judge = slice(1, None, 2)
    read, before, after = (_read(y, rectified) for y in (exact[judge], got[judge], got[judge] + mean(slice(0, None, 2))))
    better = ((read - after) ** 2).sum(axis=0) < ((read - before) ** 2).sum(axis=0)
    return np.where(better, mean(slice(None)), 0).astype(np.float32)


def _schemes(observer: Observer, group: list[Linear], kinds: Sequence[str], degree: float, symmetric: bool) -> Iterator[Scheme]:
    columns = np.sqrt(np.mean(np.concatenate([one.weight for one in group]).astype(np.float64) ** 2, axis=0))  # (K,)
    stretch = _stretch(observer.largest, columns, degree)
    low = min(0.0, float((observer.low * stretch).min()))
    high = max(0.0, float((observer.high * stretch).max()))
    if symmetric:
        high = max(high, -low)
        low = -high
    counts, edges = np.histogram(observer.sample * stretch, BINS, (low, high) if high > low else (0.0, 1.0))
    for kind in kinds:
        bottom, top = low, high
        if kind == "percentile":
            bottom, top = _percentiles(counts, edges)
            bottom, top = (-max(top, -bottom), max(top, -bottom)) if symmetric else (min(0.0, bottom), max(0.0, top))
        elif kind in ("mse", "entropy"):
            part = (_least_squares_part if kind == "mse" else _least_entropy_part)(counts, edges, low, high)
            bottom, top = low * part, high * part
        yield _scheme(kind, degree, stretch, bottom, top)


def _stretch(largest: np.ndarray, columns: np.ndarray, degree: float) -> np.ndarray:
    """float32 () or (K,): by how much each channel is stretched, rms(w_k)^(a (1 - a)) / max|x_k|^a at degree a.

    0 leaves all channels alone, 1 makes all equally wide. Between, a channel whose weights are large matters more than its width says:
    the rounding error of x_k reaches the output times w_k. (SmoothQuant's max|w_k|^(1 - a) does not leave channels alone at 0, and is no
    better between: docs/quantization.md.) A channel that is always 0 is left alone; one whose weights are 0 is made no wider than the
    narrowest of the others, so that it widens no range.
    """
    if degree == 0:
        return np.ones((), np.float32)
    top = largest.astype(np.float64)
    alive = (top > 0) & (columns > 0)
    stretch = np.ones(len(top))
    stretch[alive] = columns[alive] ** (degree * (1 - degree)) / top[alive] ** degree
    if alive.any():
        stretch[alive] /= np.exp(np.log(stretch[alive]).mean())
        unheard = (top > 0) & (columns == 0)
        stretch[unheard] = (stretch * top)[alive].min() / top[unheard]
    return stretch.astype(np.float32)


def _percentiles(counts: np.ndarray, edges: np.ndarray) -> tuple[float, float]:
    """The values below which 100 - PERCENTILE and PERCENTILE % of a histogram lie, to within a bin."""
    below = np.cumsum(counts) / counts.sum() * 100
    return float(edges[np.searchsorted(below, 100 - PERCENTILE)]), float(edges[np.searchsorted(below, PERCENTILE) + 1])


def _least_squares_part(counts: np.ndarray, edges: np.ndarray, low: float, high: float) -> float:
    """The part of [low, high] at which rounding and clipping together lose least of a histogram."""
    centres = (edges[:-1] + edges[1:]) / 2
    errors = []
    for part in SHRINK:
        step = max((high - low) * part / affine.U8_MAX, 1e-30)
        rounded = np.rint(np.clip(centres, low * part, high * part) / step) * step
        errors.append(float((counts * (rounded - centres) ** 2).sum()))
    return float(SHRINK[int(np.argmin(errors))])


def _least_entropy_part(counts: np.ndarray, edges: np.ndarray, low: float, high: float) -> float:
    """The part of [low, high] whose 256 levels keep most of a histogram's information: the least Kullback-Leibler divergence of what they
    hold from the histogram clipped to it (Migacz 2017, "8-bit inference with TensorRT")."""
    centres = (edges[:-1] + edges[1:]) / 2
    errors = []
    for part in SHRINK:
        inside = np.clip(centres, low * part, high * part)
        bins = np.clip(np.searchsorted(edges, inside, side="right") - 1, 0, len(counts) - 1)
        clipped = np.bincount(bins, counts, len(counts))  # what lies outside is added to the bin at the end
        own = np.where(bins == np.arange(len(counts)), counts, 0)  # and is not there to be told apart by the levels
        level = np.rint((centres - low * part) / max((high - low) * part / affine.U8_MAX, 1e-30)).astype(np.int64).clip(0, affine.U8_MAX)
        filled = np.bincount(level, own > 0, affine.U8_MAX + 1)
        held = np.where(own > 0, (np.bincount(level, own, affine.U8_MAX + 1) / np.maximum(filled, 1))[level], 0)
        p, q = clipped / clipped.sum(), held / max(held.sum(), 1e-30)
        met = p > 0
        errors.append(float((p[met] * np.log(p[met] / np.maximum(q[met], 1e-12))).sum()))
    return float(SHRINK[int(np.argmin(errors))])


def _scheme(kind: str, degree: float, stretch: np.ndarray, low: float, high: float) -> Scheme:
    step = (high - low) / affine.U8_MAX or 1.0
    zero_point = int(np.clip(np.rint(-low / step), 0, affine.U8_MAX))
    return Scheme(kind, degree, np.asarray(stretch / np.float64(step), np.float32), zero_point)
