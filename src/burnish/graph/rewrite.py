"""Rules on a Graph. A rule is a plain function, node in, node or None out, and its docstring is the rewrite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from burnish.errors import GraphError
from burnish.graph.node import Graph, Node

Rule = Callable[[Node], Node | None]


def rewrite(graph: Graph, rules: Sequence[Rule], most: int = 100) -> Graph:
    """Apply the first rule that fits to every node, operands first, until none fits; the old graph is left whole.

    GraphError when the rules are still changing the graph after `most` rounds.
    """
    for _ in range(most):
        after = graph.map(lambda node, operands: _first(rules, node if operands == node.inputs else node.with_inputs(operands)))
        if after.outputs == graph.outputs:
            return after
        graph = after
    raise GraphError(f"the rules {', '.join(rule.__name__ for rule in rules)} did not come to rest in {most} rounds")


def _first(rules: Sequence[Rule], node: Node) -> Node:
    for rule in rules:
        changed = rule(node)
        if changed is not None and changed is not node:
            if changed.shape != node.shape or changed.dtype != node.dtype:
                raise GraphError(f"{rule.__name__} turned {node!r} into {changed!r}: a rule keeps shape and dtype")
            return changed
    return node
