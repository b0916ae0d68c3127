"""tidy: a Graph as it was captured -> the same function with nothing superfluous. Other passes expect what it leaves."""

from __future__ import annotations

from burnish.graph.node import Graph
from burnish.graph.rewrite import rewrite
from burnish.passes.constants import CONSTANTS
from burnish.passes.moves import MOVES

TIDY = (*CONSTANTS, *MOVES)  # tried in this order


def tidy(graph: Graph) -> Graph:
    """Constants folded, moves joined, scales and shifts taken into linears, columns of a mixed input on their own side.

    Exact to the bit where only moves and identities are concerned; folding a scale or a shift into a linear rounds at other places.
    """
    return rewrite(graph, TIDY)
