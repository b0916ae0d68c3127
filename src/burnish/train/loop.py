"""The one training loop, of fine-tuning and of quantization-aware training: a twin learns to score as the original, or the labels.

A tenth of the rows is held out. The loss there decides which weights are kept, and when to stop: those of before the first step too, so on
held-out rows training never makes a model worse. Rows are visited in an order that the seed and the epoch decide, so a training that was
killed and resumed ends with the same weights as one that was not.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from burnish.errors import RecipeError
from burnish.graph.interpret import read_by_row
from burnish.graph.node import Graph
from burnish.graph.to_torch import to_torch, weight_names
from burnish.inputs import rows_of
from burnish.train import Progress, Training

Tensors = dict[str, torch.Tensor]

LEAST_ROWS = 256
HELD_OUT = 10  # every so many rows, one is held out
MOST_HELD_OUT = 20_000
CHUNK = 4096  # rows scored at once where nothing is learned
CHECKS = 20  # looks at the held-out rows in one training
PATIENCE = 6  # looks without a new best after which the training stops
PARTS = 1e-6  # a probability is no nearer to 0 or 1 than this in a logarithm


@dataclass(frozen=True)
class Settings:
    """How a step trains. `rate` is the highest of Adam's."""

    epochs: float
    rate: float
    batch: int
    target: Literal["original", "labels"]
    seed: int


@dataclass(frozen=True)
class Group:
    """Parameters that learn at `times` the rate of the settings."""

    parameters: Sequence[nn.Parameter]
    times: float = 1.0


def fit(name: str, twin: nn.Module, groups: Sequence[Group], original: Graph, training: Training, settings: Settings) -> None:
    """Train the parameters of the groups in `twin` so that it scores as `original` does, or as the labels say; the best are left in it.

    RecipeError when there are too few rows, no labels where they are the target, or when a loss is not finite.
    """
    count = rows_of(original.inputs, training.table)
    if count < LEAST_ROWS:
        raise RecipeError(
            f"{count} train rows are too few for step {name}; {LEAST_ROWS} are the least. Give those the model was trained on"
        )
    table = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in training.table.items()}
    loss = _Loss(name, original, table, training, settings.target)
    order = np.random.default_rng(settings.seed).permutation(count)
    held = min(max(count // HELD_OUT, 64), MOST_HELD_OUT)
    _Run(name, twin, groups, table, loss, order[held:], order[:held], training, settings).run()


def freeze_tables(graph: Graph, twin: nn.Module) -> None:
    """Leave the tables of `graph` as they are in its twin."""
    names, by_row = weight_names(graph), read_by_row(graph)
    for node in names:
        if node in by_row:
            parameter = getattr(twin, names[node], None)
            if isinstance(parameter, nn.Parameter):
                parameter.requires_grad_(False)


def learning(twin: nn.Module, but: Sequence[nn.Parameter] = ()) -> list[nn.Parameter]:
    """The float32 parameters of the twin that ask for a gradient, less those of `but`."""
    left = {id(one) for one in but}
    return [one for one in twin.parameters() if one.requires_grad and one.dtype == torch.float32 and id(one) not in left]


class _Run:
    """One training: its parameters, its optimizer, the best it has found, and its checkpoint."""

    def __init__(
        self,
        name: str,
        twin: nn.Module,
        groups: Sequence[Group],
        table: Tensors,
        loss: _Loss,
        learned: np.ndarray,
        held: np.ndarray,
        training: Training,
        settings: Settings,
    ) -> None:
        self.name, self.twin, self.table, self.loss, self.settings = name, twin, table, loss, settings
        self.learned, self.held, self.tell = learned, np.sort(held), training.progress or (lambda _: None)
        self.parameters = [one for group in groups for one in group.parameters]
        self.optimizer = torch.optim.Adam([{"params": list(g.parameters), "times": g.times} for g in groups], lr=settings.rate)
        self.batches = max(1, math.ceil(len(learned) / settings.batch))
        self.steps = max(1, round(settings.epochs * self.batches))
        self.step, self.start, self.best, self.best_at = 0, math.inf, math.inf, 0
        self.epoch, self.order = -1, self.learned
        self.kept: list[torch.Tensor] = []
        self.checkpoint = training.checkpoints / f"{name}-{self._fingerprint()}.pt" if training.checkpoints else None

    def run(self) -> None:
        if self.checkpoint and self.checkpoint.exists():
            self._read(self.checkpoint)
        else:
            self._look()
        every = max(1, math.ceil(self.steps / CHECKS))
        while self.step < self.steps and self.step - self.best_at < PATIENCE * every:
            self._learn()
            if self.step % every == 0 or self.step == self.steps:
                self._look()
        with torch.no_grad():
            for parameter, best in zip(self.parameters, self.kept):
                parameter.copy_(best)

    def _learn(self) -> None:
        epoch, batch = divmod(self.step, self.batches)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, np.random.default_rng((self.settings.seed, epoch)).permutation(self.learned)
        rows = self.order[batch * self.settings.batch : (batch + 1) * self.settings.batch]
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * group["times"] * _schedule(self.step, self.steps)
        loss = self.loss.of(self.twin(**self._rows(rows)), rows)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1

    def _look(self) -> None:
        """Judge the held-out rows, keep what is best, and leave a checkpoint."""
        found = self._judge()
        if not math.isfinite(found):
            raise RecipeError(f"step {self.name} diverged: the loss is {found} after {self.step} steps. Give it a lower rate")
        self.start = found if self.step == 0 else self.start
        if found < self.best:
            self.best, self.best_at = found, self.step
            self.kept = [one.detach().clone() for one in self.parameters]
        if self.checkpoint:
            self._write(self.checkpoint)
        self.tell(Progress(self.name, self.step, self.steps, found, self.best, self.start))

    @torch.no_grad()
    def _judge(self) -> float:
        total = 0.0
        for start in range(0, len(self.held), CHUNK):
            rows = self.held[start : start + CHUNK]
            total += float(self.loss.of(self.twin(**self._rows(rows)), rows)) * len(rows)
        return total / len(self.held)

    def _rows(self, rows: np.ndarray) -> Tensors:
        at = torch.from_numpy(rows)
        return {key: array[at] for key, array in self.table.items()}

    def _read(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.step, self.start, self.best, self.best_at = state["step"], state["start"], state["best"], state["best_at"]
        self.kept = state["kept"]
        self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for parameter, held in zip(self.parameters, state["parameters"]):
                parameter.copy_(held)

    def _write(self, path: Path) -> None:
        """In one step, so that a kill leaves this checkpoint or the one before."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        state = {name: getattr(self, name) for name in ("step", "start", "best", "best_at", "kept")}
        with part.open("wb") as file:
            torch.save(state | {"parameters": self.parameters, "optimizer": self.optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    @torch.no_grad()
    def _fingerprint(self) -> str:
        """Of what decides how a training ends, so that no other takes up its checkpoint. What the twin puts out stands for the weights that
        do not learn: tables may be large."""
        seen = hashlib.sha256(repr(self.settings).encode())
        outputs = self.twin(**self._rows(self.held[:CHUNK]))
        outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
        for tensor in (*self.parameters, *self.table.values(), *self.loss.targets.values(), *outputs):
            seen.update(tensor.detach().numpy().tobytes())
        return seen.hexdigest()[:16]


def _schedule(step: int, steps: int) -> float:
    """The part of the rate at a step: up over the first tenth, for Adam knows no scale of a gradient yet, then down to 0 on a cosine."""
    warm = max(1, steps // 10)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class _Loss:
    """How far outputs are from their targets, as a mean over rows.

    Where all scores of the original lie in [0, 1] they are probabilities: cross entropy, less what it is at best. Others: the square of the
    difference over the variance of the original's scores. Labels: cross entropy of the probability, or of the score as a logit.
    """

    def __init__(self, name: str, original: Graph, table: Tensors, training: Training, target: str) -> None:
        self.targets = _scores(original, table)
        for y in self.targets.values():
            if not bool(y.isfinite().all()):
                met = float(y[~y.isfinite()].flatten()[0])
                raise RecipeError(f"step {name} cannot train: the original scores some train rows {met}. Check the train rows for NaN")
        self.probability = {key: bool((y >= 0).all() and (y <= 1).all()) for key, y in self.targets.items()}
        self.variance = {key: max(float(y.double().var()), 1e-12) for key, y in self.targets.items()}
        self.judged: str | None = None
        if target == "labels":
            self.judged = _judged_output(name, training, self.targets)
            assert training.labels is not None
            self.targets[self.judged] = torch.from_numpy(np.asarray(training.labels, np.float32)).reshape_as(self.targets[self.judged])

    def of(self, outputs: Any, rows: np.ndarray) -> torch.Tensor:
        """Outputs of the twin for these rows -> their loss ()."""
        outputs = outputs if isinstance(outputs, dict) else {next(iter(self.targets)): outputs}
        at = torch.from_numpy(rows)
        return torch.stack([self._one(key, y.float(), self.targets[key][at]) for key, y in outputs.items()]).sum()

    def _one(self, key: str, y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.probability[key]:
            found = _cross_entropy(y, target)
            return found if key == self.judged else found - _cross_entropy(target, target)
        if key == self.judged:
            return F.binary_cross_entropy_with_logits(y, target)
        return F.mse_loss(y, target) / self.variance[key]


def _cross_entropy(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Of probabilities y; torch's own raises an error where y is NaN."""
    y = y.clamp(PARTS, 1 - PARTS)
    return -(target * torch.log(y) + (1 - target) * torch.log1p(-y)).mean()


@torch.no_grad()
def _scores(original: Graph, table: Tensors) -> Tensors:
    """Output name -> the original's scores (N, ...) of the rows, float32."""
    twin = to_torch(original)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name, _ in original.outputs}
    for start in range(0, len(next(iter(table.values()))), CHUNK):
        got = twin(**{key: array[start : start + CHUNK] for key, array in table.items()})
        for name in parts:
            parts[name].append((got[name] if isinstance(got, dict) else got).float())
    return {name: torch.cat(of) for name, of in parts.items()}


def _judged_output(name: str, training: Training, outputs: Mapping[str, torch.Tensor]) -> str:
    """The output that the labels judge."""
    if training.labels is None:
        raise RecipeError(f'step {name} has target "labels" and there are none. Give train labels, or leave it at target "original"')
    judged = training.output or (next(iter(outputs)) if len(outputs) == 1 else "")
    if judged not in outputs:
        met = f"there is no {training.output!r}" if training.output else "it is not said which one the labels judge"
        raise RecipeError(f'step {name} has target "labels"; the model has the outputs {", ".join(outputs)}, and {met}')
    if outputs[judged].numel() != len(training.labels):
        raise RecipeError(
            f"step {name}: {len(training.labels)} labels for an output {judged!r} of {tuple(outputs[judged].shape)} values. Give one a row"
        )
    labels = np.asarray(training.labels)
    if not np.isin(labels, (0, 1)).all() or len(np.unique(labels)) < 2:
        raise RecipeError(f'step {name} has target "labels" and needs both 0 and 1; met {", ".join(map(str, np.unique(labels)[:4]))}')
    return judged
