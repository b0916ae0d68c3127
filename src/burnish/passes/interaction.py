"""interaction: products of pairs of fields in one canonical form, whichever way the model spelled them.

The dot interaction of DLRM, IPNN and their kin is `TAKE(RESHAPE(MATMUL(E, E^T)), pairs)`: every dot product of two fields, of which a
flat gather reads the wanted ones. A matrix product runs at full width, where gathered copies of rows would first be moved. FM's
`0.5 * ((sum of fields)^2 - sum of squares)` stays as it is: nothing computes it with less.
"""

from __future__ import annotations

from burnish.graph.node import Graph, Node
from burnish.graph.ops import Op
from burnish.passes.segments import concat
from burnish.passes.tidy import tidy

MOST_WASTE = 4  # the matrix product may compute this many times the wanted dot products


def interaction(graph: Graph) -> Graph:
    """The same function with pairwise dot products in canonical form; they are summed in another order."""
    return tidy(graph, dots_of_pairs)


def dots_of_pairs(node: Node) -> Node | None:
    """SUM(TAKE(E, I) * TAKE(E, J), axes=(1,))  ->  TAKE(RESHAPE(MATMUL(E, E^T)), I * F + J), with E (F, D).

    1. The rows may also come as CONCAT of repeated fields: CONCAT(e0, e0, e1) * CONCAT(e1, e2, e2)
    Left alone: fewer than a quarter of all pairs, for which the whole product would be wasted.
    """
    match node:
        case Node(Op.SUM, (Node(Op.MUL, (p, q)) as product,)) if node["axes"] == (1,) and p.shape == q.shape == product.shape:
            pairs = list(zip(_rows(p), _rows(q)))
        case _:
            return None
    fields = list(dict.fromkeys(value for side in zip(*pairs) for value, _ in side))
    start, n = {}, 0
    for field in fields:
        start[field], n = n, n + field.shape[0]
    if n * n > MOST_WASTE * len(pairs) or node.dtype != "float32":
        return None
    e = concat(fields, 0)
    dots = Node(Op.RESHAPE, (Node(Op.MATMUL, (e, Node(Op.TRANSPOSE, (e,), perm=(1, 0)))),), shape=(n * n,))
    flat = tuple((start[a] + i) * n + start[b] + j for (a, i), (b, j) in pairs)
    return Node(Op.RESHAPE, (Node(Op.TAKE, (dots,), axis=0, indices=flat),), shape=node.shape)


def _rows(value: Node) -> list[tuple[Node, int]]:
    """For each row of a matrix the value and the row in it that it was read from, through TAKE, SLICE and CONCAT of rows."""
    match value:
        case Node(Op.TAKE, (x,)) if value["axis"] == 0:
            inner = _rows(x)
            return [inner[i] for i in value["indices"]]
        case Node(Op.SLICE, (x,)) if value["axis"] == 0:
            return _rows(x)[value["start"] : value["stop"]]
        case Node(Op.CONCAT, parts) if value["axis"] == 0 and all(part.dtype == value.dtype for part in parts):
            return [row for part in parts for row in _rows(part)]
    return [(value, i) for i in range(value.shape[0])]
