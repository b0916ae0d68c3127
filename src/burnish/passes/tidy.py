"""tidy: a Graph as it was captured -> the same function with nothing superfluous. Other passes expect what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Container

from burnish.graph.node import Graph, Node
from burnish.graph.rewrite import Rule, rewrite
from burnish.passes.constants import CONSTANTS, scale_and_shift_after_linear
from burnish.passes.moves import MOVES, pointwise_of_slices, reshape_of_concat, reshape_of_lookup

TIDY = (*CONSTANTS, *MOVES)  # tried in this order
TIDY_UNLESS_SHARED = (  # they would do work twice for a value with other users
    scale_and_shift_after_linear,
    reshape_of_concat,
    reshape_of_lookup,
    pointwise_of_slices,
)


def tidy(graph: Graph, *first: Rule) -> Graph:
    """Constants folded, moves joined, scales and shifts taken into linears, columns of a mixed input on their own side.

    Exact to the bit where only moves and identities are concerned; folding a scale or a shift into a linear rounds at other places.
    Other passes give their own rules as `first`, so that what they leave is tidy again.
    """
    while True:
        shared = _shared(graph)
        after = rewrite(graph, (*first, *TIDY, *(_asking(rule, shared) for rule in TIDY_UNLESS_SHARED)), follow=shared)
        if after.outputs == graph.outputs:
            return after
        graph = after  # values that were shared before may not be any more


def _shared(graph: Graph) -> set[Node]:
    """Values that are read more than once, outputs being read by the caller."""
    seen: set[Node] = set()
    shared: set[Node] = set()
    for node in (*(operand for user in graph.order for operand in user.inputs), *(node for _, node in graph.outputs)):
        (shared if node in seen else seen).add(node)
    return shared


def _asking(rule: Callable[[Node, Container[Node]], Node | None], shared: Container[Node]) -> Rule:
    def asking(node: Node) -> Node | None:
        return rule(node, shared)

    asking.__name__ = rule.__name__
    return asking
