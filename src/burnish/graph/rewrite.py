"""Rules on a Graph. A rule is a plain function, node in, node or None out, and its docstring is the rewrite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from burnish.errors import GraphError
from burnish.graph.node import Graph, Node

Rule = Callable[[Node], Node | None]


def rewrite(graph: Graph, rules: Sequence[Rule], most: int = 100, follow: set[Node] | None = None) -> Graph:
    """Apply the first rule that fits to every node, operands first, until none fits anywhere; the old graph is left whole.

    A rule sees a node whose operands are at rest already, and what it returns is rewritten in turn. A node knows nothing of its users,
    so one walk reaches the fixpoint, however deep the graph. What the nodes of `follow` become is added to it on the way: a rule that
    needs to know something of the graph asks that set. GraphError when the rules fire more than `most` times a node.
    """
    rest: dict[Node, Node] = {}  # node -> what it became, to which no rule applies any more
    became: dict[Node, Node] = {}  # node -> its next form, not yet at rest
    left = most * (len(graph.order) + 1)
    for _, root in graph.outputs:
        stack = [root]
        while stack:
            node = stack[-1]
            if node in rest:
                stack.pop()
                continue
            after = became.get(node)
            if after is None:
                waiting = [operand for operand in node.inputs if operand not in rest]
                if waiting:
                    stack.extend(reversed(waiting))
                    continue
                operands = tuple(rest[operand] for operand in node.inputs)
                after = _first(rules, node) if operands == node.inputs else node.with_inputs(operands)
                became[node] = after
            if after is node or after in rest:
                rest[node] = rest.get(after, node)
                if follow and node in follow:
                    follow.add(rest[node])
                continue
            stack.append(after)
            left -= 1
            if left < 0:
                raise GraphError(f"the rules {', '.join(rule.__name__ for rule in rules)} do not come to rest at {after!r}")
    return Graph(graph.inputs, {name: rest[node] for name, node in graph.outputs})


def _first(rules: Sequence[Rule], node: Node) -> Node:
    for rule in rules:
        changed = rule(node)
        if changed is not None and changed is not node:
            if changed.shape != node.shape or changed.dtype != node.dtype:
                raise GraphError(f"{rule.__name__} turned {node!r} into {changed!r}: a rule keeps shape and dtype")
            return changed
    return node
