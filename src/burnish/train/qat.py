"""Quantization-aware training: the twin computes in the native integers while its weights and steps learn.

It starts from what quantize/ptq.py chose, to the bit. The forward is quantize/affine.py on tensors: what a value is rounded to, the exact
sum, the two roundings of the rescale. So what training has judged is what the artifact computes. Backwards, rounding is taken for the
identity within its range (the straight-through estimator, Bengio et al. 2013, arXiv:1308.3432), from which follow also the gradients of
the steps (LSQ, Esser et al. 2020, arXiv:1902.08153): one step a quantized value, and one an output of a linear. Steps are learned as the
logarithm of what they are times their start: so they stay positive, and one rate fits them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from burnish.errors import RecipeError
from burnish.graph.interpret import constant
from burnish.graph.node import Graph, Node, weight
from burnish.graph.ops import Op
from burnish.graph.to_torch import Row, to_torch, trained_weights
from burnish.quantize import affine
from burnish.quantize.ptq import Choice, check_sums, choose, largest, quantized
from burnish.train import Training
from burnish.train.loop import Group, Settings, fit, freeze_tables, learning

STEP_TIMES = 5.0  # steps learn at so many times the rate of the weights
WITHIN = 0.49  # of a rounding step: how near to the next integer a weight may start


def qat(
    graph: Graph,
    calibration: Mapping[str, np.ndarray],
    training: Training,
    original: Graph,
    *,
    weight_bits: int = 8,
    target: Literal["original", "labels"] = "original",
    epochs: float | Literal["auto"] = "auto",
    rate: float = 1e-3,
    batch: int = 256,
    narrowest: int = 8,
    skip: Sequence[str] = (),
    seed: int = 0,
    schemes: Sequence[Sequence[str]] | str = "auto",
) -> Graph:
    """The graph with its linears in int8, as ptq.int8 leaves it, after training in that arithmetic; linears too narrow train in float32.

    RecipeError when the graph has quantized linears already.
    """
    if any(node.op in (Op.QLINEAR, Op.QDOT) for node in graph.order):
        raise RecipeError("step Qat quantizes the linears itself, and a step before it has done so. Leave Int8 out of the recipe")
    choices = choose(graph, calibration, weight_bits=weight_bits, narrowest=narrowest, skip=skip, schemes=schemes)
    start = quantized(graph, choices)
    twin = Twin(start, choices, largest(weight_bits))
    twin.learn(original, training, Settings(epochs, rate, batch, target, seed))
    return twin.graph()


class Twin:
    """The trainable twin of a graph that ptq.quantized made from `choices`. `module` is called as to_torch's."""

    def __init__(self, start: Graph, choices: Sequence[Choice], limit: int) -> None:
        self.start = start
        chosen = {weight("q", choice.q): choice for choice in choices}  # nodes are interned: that of a QLINEAR is this one
        self.quantizes: dict[Node, Quantize] = {}
        self.linears: dict[Node, Linear] = {}
        rows: dict[Node, Row] = {}
        for node in start.order:
            if node.op is Op.QUANTIZE:
                self.quantizes[node] = Quantize(constant(node.inputs[1]), node["zero_point"])
                rows[node] = _row(f"quantize_{len(self.quantizes)}", self.quantizes[node])
            elif node.op is Op.QLINEAR:
                exact = chosen[node.inputs[1]].linear.weight
                q, scale, bias = (constant(operand) for operand in node.inputs[1:4])
                self.linears[node] = Linear(self.quantizes[node.inputs[0]], exact, q, scale, bias, limit)
                rows[node] = _row(f"qlinear_{len(self.linears)}", self.linears[node])
        self.module = to_torch(start, rows)
        freeze_tables(start, self.module)

    def learn(self, original: Graph, training: Training, settings: Settings) -> None:
        """Train it; see fit."""
        steps = [quantize.step for quantize in self.quantizes.values()] + [linear.step for linear in self.linears.values()]
        groups = [Group(learning(self.module, but=steps)), Group(steps, STEP_TIMES)]
        fit("Qat", self.module, groups, original, training, settings)

    @torch.no_grad()
    def graph(self) -> Graph:
        """The graph that computes what the module does: the same integers."""
        new = trained_weights(self.start, self.module)

        def change(node: Node, operands: tuple[Node, ...]) -> Node:
            if node in self.quantizes:
                multiplier = self.quantizes[node].multiplier().numpy()
                return node.with_inputs((operands[0], weight(_name(node.inputs[1]), multiplier)))
            if node in self.linears:
                names, arrays = [_name(operand) for operand in node.inputs[1:4]], self.linears[node].arrays()
                check_sums(names[0], arrays[0], node["zero_point"])
                return node.with_inputs((operands[0], *(weight(name, array) for name, array in zip(names, arrays))))
            return node.with_inputs(operands) if operands else new.get(node, node)

        return self.start.map(change)


class Quantize(nn.Module):
    """float32 (..., K) -> whole numbers in float32, q - zero_point of affine.quantize, to the bit."""

    first: torch.Tensor

    def __init__(self, multiplier: np.ndarray, zero_point: int) -> None:
        super().__init__()
        self.low, self.high = float(-zero_point), float(affine.U8_MAX - zero_point)
        self.register_buffer("first", torch.from_numpy(multiplier.copy()))
        self.step = nn.Parameter(torch.zeros(()))

    def gain(self) -> torch.Tensor:
        return torch.exp(self.step)

    def multiplier(self) -> torch.Tensor:
        return self.first * self.gain()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = x * self.multiplier()
        t = torch.where(t > self.low, t, self.low)  # NaN compares false and becomes low
        return _rint(torch.where(t < self.high, t, self.high))


class Linear(nn.Module):
    """Whole numbers (..., K) -> float32 (..., N), as QLINEAR: the exact sum, times scale, plus bias.

    `weight` (N, K) is that of x, in float32; the integers are those of weight / multiplier / step. A step of x that grows by some factor
    makes the scale grow by as much, so that the one learns without disturbing the other.
    """

    first: torch.Tensor

    def __init__(self, quantize: Quantize, exact: np.ndarray, q: np.ndarray, scale: np.ndarray, bias: np.ndarray, limit: int) -> None:
        """The float weights `exact` (N, K), but where they would be rounded to another integer than q they are moved until they are not."""
        super().__init__()
        self.quantize, self.limit = quantize, limit
        self.register_buffer("first", torch.from_numpy(scale.copy()))
        unit = quantize.first.double().numpy() * scale[:, None].astype(np.float64)
        near = np.clip(exact / unit, q - WITHIN, q + WITHIN) * unit
        self.weight = nn.Parameter(torch.from_numpy(near.astype(np.float32)))
        self.bias = nn.Parameter(torch.from_numpy(bias.astype(np.float32)))
        self.step = nn.Parameter(torch.zeros(len(scale)))
        self.block = (1 << 24) // (affine.U8_MAX * limit)  # whole numbers below 2^24 add up exactly in float32, in any order

    def integers(self) -> torch.Tensor:
        """(N, K) whole numbers in [-limit, limit]. A weight may leave them by half a step and still learn."""
        t = self.weight / self.quantize.first / (self.first * torch.exp(self.step))[:, None]
        return _rint(t.clamp(-self.limit - WITHIN, self.limit + WITHIN))

    def scale(self) -> torch.Tensor:
        return self.first * torch.exp(self.step) / self.quantize.gain()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.integers()
        if w.shape[1] <= self.block:
            sums = F.linear(x, w)
        else:
            parts = (F.linear(a, b).double() for a, b in zip(x.split(self.block, dim=-1), w.split(self.block, dim=1)))
            sums = sum(parts, start=torch.zeros((), dtype=torch.float64)).float()
        return sums * self.scale() + self.bias

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The operands of QLINEAR: int8 (N, K), scale (N,), bias (N,)."""
        return self.integers().to(torch.int8).numpy(), self.scale().numpy(), self.bias.detach().numpy().copy()


def _rint(t: torch.Tensor) -> torch.Tensor:
    """torch.round, ties to even, whose gradient is the identity's. t - t is exactly 0, so the value is exactly the rounded one."""
    return torch.round(t).detach() + (t - t.detach())


def _row(name: str, module: nn.Module) -> Row:
    return lambda twin, node, x: twin.module(name, module, x[0])


def _name(node: Node) -> str:
    return node["weight"].name
