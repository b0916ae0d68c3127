"""What tests and benchmarks are written with: graphs in one line, rows for them, random graphs, and suites that a backend subclasses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from burnish.graph.node import Graph, Node, input_node, scalar, weight
from burnish.graph.ops import Op
from burnish.inputs import Input

# ---------------------------------------------------------------- builders: values


class Weights:
    """A source of random weights; the same seed gives the same weights in the same order."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.made = 0

    def normal(self, *shape: int, scale: float = 1.0, name: str = "w") -> Node:
        self.made += 1
        return weight(f"{name}{self.made}", (self.random.standard_normal(shape, np.float32) * np.float32(scale)))


def inputs(dense: int = 13, ids: int = 26, cardinality: int = 1000, request: float = 0.5, mixed: bool = False) -> tuple[Input, ...]:
    """Inputs "dense" float32 (dense,) and "cat" int64 (ids,), of which the share `request` of the columns is of the request.

    The request's columns come first; with `mixed` the two sides alternate as evenly as they can. An input of no columns is left out.
    """

    def sides(n: int) -> str | list[str]:
        first = round(n * request)
        of_request = [((i + 1) * first) // n > (i * first) // n if mixed else i < first for i in range(n)]
        return ["request" if r else "candidate" for r in of_request]

    specs = []
    if dense:
        specs.append(Input("dense", "float32", (dense,), sides(dense)))
    if ids:
        specs.append(Input("cat", "int64", (ids,), sides(ids), cardinality))
    return tuple(specs)


def linear(x: Node, n: int, weights: Weights | int = 0, *, bias: bool = True, init: Node | None = None, compute: str = "float32") -> Node:
    """x (..., K) -> (..., n) with random weights that keep the variance."""
    made = weights if isinstance(weights, Weights) else Weights(weights)
    k = x.shape[-1]
    b = made.normal(n, scale=0.1, name="b") if bias else weight("0", np.zeros(n, np.float32))
    w = made.normal(n, k, scale=k**-0.5)
    return Node(Op.LINEAR, (x, w, b) if init is None else (x, w, b, init), compute=compute)


def mlp(x: Node, widths: Sequence[int], weights: Weights, last: bool = False) -> Node:
    """Linears with RELU after each; after the last one only when not `last`."""
    for i, n in enumerate(widths):
        x = linear(x, n, weights)
        if not (last and i == len(widths) - 1):
            x = Node(Op.RELU, (x,))
    return x


def table(rows: int, width: int, weights: Weights | int = 0, scale: float = 0.1) -> Node:
    """A random table (rows, width)."""
    made = weights if isinstance(weights, Weights) else Weights(weights)
    return made.normal(rows, width, scale=scale, name="table")


def column(x: Node, i: int) -> Node:
    """Entry i of the first axis, which goes."""
    return Node(Op.RESHAPE, (Node(Op.SLICE, (x,), axis=0, start=i, stop=i + 1),), shape=x.shape[1:])


def lookup(t: Node, ids: Node) -> Node:
    return Node(Op.LOOKUP, (t, ids))


def concat(parts: Iterable[Node], axis: int = 0) -> Node:
    return Node(Op.CONCAT, parts, axis=axis)


def reshape(x: Node, *shape: int) -> Node:
    return Node(Op.RESHAPE, (x,), shape=shape)


def sigmoid(x: Node) -> Node:
    return Node(Op.SIGMOID, (x,))


def embeddings(cat: Node, spec: Input, width: int, weights: Weights) -> list[Node]:
    """A row (width,) from a table of its own for each column of `cat`."""
    return [lookup(table(spec.cardinality_of(i) or 1, width, weights), column(cat, i)) for i in range(spec.columns)]


# ---------------------------------------------------------------- builders: models as capture would give them


def dcn_v2(
    dense: int = 13,
    ids: int = 26,
    width: int = 16,
    cross: int = 3,
    deep: Sequence[int] = (1024, 512, 256),
    cardinality: int = 1000,
    request: float = 0.5,
    *,
    mixed: bool = False,
    parallel: bool = False,
    rank: int | None = None,
    seed: int = 0,
) -> Graph:
    """DCN-v2 (Wang et al. 2021): cross layers x0 * (W x + b) + x, then a deep net, or beside one (`parallel`); W full or of `rank`."""
    w, specs = Weights(seed), inputs(dense, ids, cardinality, request, mixed)
    x0 = _features(specs, width, w)
    x, k = x0, x0.shape[0]
    for _ in range(cross):
        inner = linear(linear(x, rank, w, bias=False), k, w) if rank else linear(x, k, w)
        x = Node(Op.ADD, (Node(Op.MUL, (x0, inner)), x))
    top = concat([x, mlp(x0, deep, w)]) if parallel else mlp(x, deep, w)
    return Graph(specs, {"score": sigmoid(reshape(linear(top, 1, w)))})


def dlrm(
    dense: int = 13,
    ids: int = 26,
    width: int = 16,
    bottom: Sequence[int] = (512, 256),
    top: Sequence[int] = (512, 256),
    cardinality: int = 1000,
    request: float = 0.5,
    *,
    mixed: bool = False,
    seed: int = 0,
) -> Graph:
    """DLRM (Naumov et al. 2019): dot products of all pairs of field vectors, read at the indices below the diagonal."""
    w = Weights(seed)
    specs = inputs(dense, ids, cardinality, request, mixed)
    values = [input_node(spec) for spec in specs]
    first = mlp(values[0], (*bottom, width), w)
    fields = concat([reshape(v, 1, width) for v in (first, *embeddings(values[1], specs[1], width, w))])
    f = fields.shape[0]
    dots = Node(Op.MATMUL, (fields, Node(Op.TRANSPOSE, (fields,), perm=(1, 0))))
    below = tuple(i * f + j for i in range(f) for j in range(i))
    pairs = Node(Op.TAKE, (reshape(dots, f * f),), axis=0, indices=below)
    return Graph(specs, {"score": sigmoid(reshape(mlp(concat([first, pairs]), (*top, 1), w, last=True)))})


def deepfm(
    dense: int = 13,
    ids: int = 26,
    width: int = 16,
    deep: Sequence[int] = (256, 128),
    cardinality: int = 1000,
    request: float = 0.5,
    *,
    mixed: bool = False,
    seed: int = 0,
) -> Graph:
    """DeepFM (Guo et al. 2017): first order, 0.5 * ((sum of fields)^2 - sum of squares), and a deep net, added up."""
    w = Weights(seed)
    specs = inputs(dense, ids, cardinality, request, mixed)
    values = [input_node(spec) for spec in specs]
    rows = embeddings(values[-1], specs[-1], width, w)
    first = concat([reshape(v, 1) for v in embeddings(values[-1], specs[-1], 1, w)])
    fields = concat([reshape(v, 1, width) for v in rows])
    total = Node(Op.SUM, (fields,), axes=(0,))
    squares = Node(Op.SUM, (Node(Op.MUL, (fields, fields)),), axes=(0,))
    pairs = Node(Op.SUB, (Node(Op.MUL, (total, total)), squares))
    second = Node(Op.MUL, (scalar(0.5), Node(Op.SUM, (pairs,), axes=(0,))))
    x = reshape(fields, ids * width) if not dense else concat([values[0], reshape(fields, ids * width)])
    logit = Node(Op.ADD, (Node(Op.SUM, (first,), axes=(0,)), second))
    return Graph(specs, {"score": sigmoid(Node(Op.ADD, (logit, reshape(mlp(x, (*deep, 1), w, last=True)))))})


def din(
    history: int = 20, width: int = 16, cardinality: int = 1000, hidden: int = 36, deep: Sequence[int] = (128, 64), *, seed: int = 0
) -> Graph:
    """DIN (Zhou et al. 2018): attention of a candidate over the request's history, id 0 being no item; then a deep net."""
    w = Weights(seed)
    specs = (
        Input("user", "int64", (), "request", cardinality),
        Input("history", "int64", (history,), "request", cardinality),
        Input("item", "int64", (), "candidate", cardinality),
    )
    user, past, item = (input_node(spec) for spec in specs)
    items = table(cardinality, width, w)
    keys, query = lookup(items, past), lookup(items, item)
    queries = Node(Op.EXPAND, (reshape(query, 1, width),), shape=(history, width))
    met = concat([queries, keys, Node(Op.SUB, (queries, keys)), Node(Op.MUL, (queries, keys))], axis=1)
    scores = reshape(linear(sigmoid(linear(met, hidden, w)), 1, w), 1, history)
    absent = Node(Op.EQ, (reshape(past, 1, history), scalar(0, "int64")))
    scores = Node(Op.SOFTMAX, (Node(Op.WHERE, (absent, scalar(-1e9), scores)),), axis=1)
    interest = reshape(Node(Op.MATMUL, (scores, keys)), width)
    x = concat([lookup(table(cardinality, width, w), user), interest, query])
    return Graph(specs, {"score": sigmoid(reshape(mlp(x, (*deep, 1), w, last=True)))})


def mmoe(
    dense: int = 13,
    ids: int = 26,
    width: int = 8,
    experts: int = 4,
    expert: Sequence[int] = (64, 32),
    tower: Sequence[int] = (16,),
    tasks: Sequence[str] = ("click", "buy"),
    cardinality: int = 1000,
    request: float = 0.5,
    *,
    mixed: bool = False,
    seed: int = 0,
) -> Graph:
    """MMoE (Ma et al. 2018): experts weighted by a softmax gate for each task; one output a task."""
    w = Weights(seed)
    specs = inputs(dense, ids, cardinality, request, mixed)
    x = _features(specs, width, w)
    heads = concat([reshape(mlp(x, expert, w), 1, expert[-1]) for _ in range(experts)])
    outputs = {}
    for task in tasks:
        gate = Node(Op.SOFTMAX, (linear(x, experts, w),), axis=0)
        mixed_heads = Node(Op.SUM, (Node(Op.MUL, (heads, reshape(gate, experts, 1))),), axes=(0,))
        outputs[task] = sigmoid(reshape(mlp(mixed_heads, (*tower, 1), w, last=True)))
    return Graph(specs, outputs)


def two_tower(
    ids: int = 8, width: int = 16, tower: Sequence[int] = (64, 32), cardinality: int = 1000, request: float = 0.5, *, seed: int = 0
) -> Graph:
    """Two towers, one of the request's columns and one of the candidate's, and their cosine times a temperature."""
    w = Weights(seed)
    specs = inputs(0, ids, cardinality, request)
    rows = embeddings(input_node(specs[0]), specs[0], width, w)
    own = round(ids * request)
    vectors = []
    for part in (rows[:own], rows[own:]):
        v = mlp(concat(part), tower, w, last=True)
        norm = Node(Op.SQRT, (Node(Op.SUM, (Node(Op.MUL, (v, v)),), axes=(0,), keepdims=True),))
        vectors.append(Node(Op.DIV, (v, Node(Op.MAXIMUM, (norm, scalar(1e-12))))))
    cosine = Node(Op.SUM, (Node(Op.MUL, tuple(vectors)),), axes=(0,))
    return Graph(specs, {"score": Node(Op.MUL, (cosine, scalar(10.0)))})


MODELS = {"dcn_v2": dcn_v2, "dlrm": dlrm, "deepfm": deepfm, "din": din, "mmoe": mmoe, "two_tower": two_tower}


def _features(specs: Sequence[Input], width: int, weights: Weights) -> Node:
    """Dense columns, then a row for each id, concatenated."""
    parts: list[Node] = []
    for spec in specs:
        value = input_node(spec)
        parts.extend(embeddings(value, spec, width, weights) if spec.dtype.startswith("int") else [value])
    return concat(parts)


# ---------------------------------------------------------------- rows


def rows(graph: Graph, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A plain table of n random rows: ids within their cardinality (skewed to small ones), normal floats, fair bools."""
    random = np.random.default_rng(seed)
    made = {}
    for spec in graph.inputs:
        shape = (n, *spec.shape)
        if spec.dtype == "bool":
            made[spec.name] = random.random(shape) < 0.5
        elif spec.dtype.startswith("float") and spec.cardinality is None:
            made[spec.name] = random.standard_normal(shape).astype(spec.dtype)
        else:
            array = np.zeros(shape, spec.dtype)
            for i in range(spec.columns):
                most = spec.cardinality_of(i)
                at = (slice(None), i) if spec.shape else ...
                size = array[at].shape
                value = random.standard_normal(size) if most is None and spec.dtype.startswith("float") else None
                array[at] = ((most or 100) * random.random(size) ** 2).astype(np.int64) if value is None else value
            made[spec.name] = array
    return made


def as_request(graph: Graph, table: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A plain table as one request with its candidates: request halves from row 0, candidate halves from every row."""
    request, candidates = {}, {}
    for spec in graph.inputs:
        for half in spec.halves:
            array = table[spec.name] if half.columns is None else table[spec.name][:, list(half.columns)]
            if half.side == "request":
                request[half.name] = array[0]
            else:
                candidates[half.name] = array
    return request, candidates


def one_request(graph: Graph, table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The plain table with the request's columns of row 0 in every row: what `as_request` means as rows."""
    same = {name: array.copy() for name, array in table.items()}
    for spec in graph.inputs:
        for half in spec.halves:
            if half.side == "request":
                at = (slice(None), list(half.columns)) if half.columns is not None else (slice(None),)
                same[spec.name][at] = same[spec.name][:1][at]
    return same
