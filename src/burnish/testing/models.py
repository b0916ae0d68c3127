"""Well-known rankers at any size, with random weights, as capture would give them: nothing tidied, nothing factored."""

from __future__ import annotations

from collections.abc import Sequence

from burnish.graph.node import Graph, Node, input_node, scalar
from burnish.graph.ops import Op
from burnish.inputs import Input
from burnish.testing.builders import Weights, concat, embeddings, features, inputs, linear, lookup, mlp, reshape, sigmoid, table


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
    x0 = features(specs, width, w)
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
    x = features(specs, width, w)
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
