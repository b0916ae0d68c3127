"""A recipe with what it left to the calibration rows filled in: how many neurons stay, which ranks, which linears share a quantization.

Generated code depends on shapes only. So the same choices on another checkpoint of the same architecture give the same program: nothing is
compiled, and nothing is searched for. Which neurons stay, and every number, are found anew.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from burnish.graph.node import Graph, Node
from burnish.graph.ops import Op
from burnish.passes.refit import is_plain, weight_names
from burnish.recipe import Int8, LowRank, MixedTables, Prune, Qat, Recipe, Step, walk
from burnish.train import Training

Kept = dict[tuple[Step, ...], tuple[Graph, tuple[Step, ...]]]  # steps -> the graph they left, and the steps filled in


def decide(
    graph: Graph,
    recipe: Recipe,
    calibration: Mapping[str, np.ndarray] | None = None,
    training: Training | None = None,
    kept: Kept | None = None,
) -> tuple[Graph, Recipe]:
    """`recipe.apply`, and the recipe whose steps say what these rows decided; its name, backend and threads are the recipe's.

    `kept` holds what steps that look at rows have left of this graph, and gets what they leave now: recipes that begin alike are
    calibrated once.
    """
    kept = {} if kept is None else kept
    begun = max((i for i in range(len(recipe.steps) + 1) if recipe.steps[:i] in kept), default=0)
    original, steps = graph, tuple[Step, ...]()
    if begun:
        graph, steps = kept[recipe.steps[:begun]]
    for step, before, after in walk(graph, msgspec.structs.replace(recipe, steps=recipe.steps[begun:]), calibration, training, original):
        graph, steps = after, (*steps, filled(step, before, after))
        if step.needs_rows or step.trains:
            kept[recipe.steps[: len(steps)]] = graph, steps
    return graph, msgspec.structs.replace(recipe, steps=steps)


def filled(step: Step, before: Graph, after: Graph) -> Step:
    """The step with its choices as they can be read off the graphs before and after it; itself where it left none open."""
    match step:
        case Prune():
            return msgspec.structs.replace(step, widths=_widths(before, after))
        case LowRank():
            return msgspec.structs.replace(step, ranks=_ranks(after))
        case Int8() | Qat():
            return msgspec.structs.replace(step, schemes=_schemes(after))
        case MixedTables():
            held = (node["weight"].name for node in after.order if node.op is Op.WEIGHT)
            return msgspec.structs.replace(step, int4=tuple(name.removesuffix(".int4") for name in held if name.endswith(".int4")))
    return step


def _widths(before: Graph, after: Graph) -> tuple[tuple[str, int], ...]:
    """Outputs of the linears that have fewer than before, and sizes of groups of which something was left out; of linears that are pruned
    together each has the same, and the first is named."""
    from burnish.passes.coupled import groups
    from burnish.passes.prune import layers

    now = {name: node.shape[-1] for name, node in _linears(after).items()}
    found = layers(before, 1)
    names = weight_names([layer.linears[0] for layer in found])
    neurons = [(name, now[name]) for name, layer in zip(names, found) if now.get(name, layer.width) < layer.width]
    sizes = {group.name: group.size for group in groups(after)}
    return (
        *((group.name, sizes[group.name]) for group in groups(before) if sizes.get(group.name, group.size) < group.size),
        *neurons,
    )


def _ranks(after: Graph) -> tuple[tuple[str, int], ...]:
    """Inner sizes of the linears that became two."""
    ends = ".down"
    return tuple((name.removesuffix(ends), node.shape[-1]) for name, node in _linears(after).items() if name.endswith(ends))


def _schemes(after: Graph) -> tuple[tuple[str, ...], ...]:
    """The linears in int8, those that share a quantization together, with its kind."""
    groups: dict[Node, list[str]] = {}
    for node in after.order:
        if node.op is Op.QLINEAR:
            groups.setdefault(node.inputs[0], []).append(node.inputs[1]["weight"].name.removesuffix(".int8"))
    return tuple(("channel" if quantize.inputs[1].shape else "tensor", *names) for quantize, names in groups.items())


def _linears(graph: Graph) -> dict[str, Node]:
    nodes = [node for node in graph.order if is_plain(node)]
    return dict(zip(weight_names(nodes), nodes))
