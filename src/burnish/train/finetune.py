"""Fine-tuning of a changed graph: its float weights learn to score as the original does, or as the labels say.

After Prune or LowRank this takes back what the least-squares refit could not: the layers learn together, and through their activations.
Learning from the original (distillation, Hinton et al. 2015, arXiv:1503.02531) needs no labels, and has less noise than a label of 0 or 1.
"""

from __future__ import annotations

from typing import Literal

from burnish.graph.node import Graph
from burnish.graph.to_torch import to_torch, trained_weights
from burnish.train import Training
from burnish.train.loop import Group, Settings, fit, freeze_tables, learning


def finetune(
    graph: Graph,
    training: Training,
    original: Graph,
    *,
    target: Literal["original", "labels"] = "original",
    epochs: float | Literal["auto"] = "auto",
    rate: float = 1e-3,
    batch: int = 256,
    tables: bool = False,
    seed: int = 0,
) -> Graph:
    """The graph with its float32 weights trained so that it scores as `original` does; the tables too when `tables`."""
    twin = to_torch(graph)
    if not tables:
        freeze_tables(graph, twin)
    parameters = learning(twin)
    if not parameters:
        return graph
    fit("Finetune", twin, [Group(parameters)], original, training, Settings(epochs, rate, batch, target, seed))
    new = trained_weights(graph, twin)
    return graph.map(lambda node, operands: node.with_inputs(operands) if operands else new.get(node, node))
