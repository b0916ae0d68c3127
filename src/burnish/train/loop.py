"""The one training loop, of fine-tuning and of quantization-aware training: a twin learns to score as the original, or the labels.

A tenth of the rows is held out. The loss there decides which weights are kept, and when to stop: those of before the first step too, so on
held-out rows training never makes a model worse. Rows are visited in an order that the seed and the epoch decide, so a training that was
killed and resumed ends with the same weights as one that was not.

Who learns from the original can ask it about any row. A row gives one number, and rows that are fewer than the weights are learned by
heart; so then half of each batch are new rows, a request of one row with a candidate of another, scored by the original as they come.
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
from burnish.passes.evidence import score_loss
from burnish.train import Progress, Training

Tensors = dict[str, torch.Tensor]

LEAST_ROWS = 256
HELD_OUT = 10  # every so many rows, one is held out
MOST_HELD_OUT = 20_000
CHUNK = 4096  # rows scored at once where nothing is learned
CHECKS = 20  # looks at the held-out rows in one training
PATIENCE = 6  # looks since the best that were no better than the one before, after which the training stops: under a high rate it gets
# worse first, and better than ever as the rate falls
ENOUGH = 1e-5  # of AUC: a drop that no gate sees, at which it stops too
EPOCHS, LEAST_STEPS = 3, 2500  # of epochs "auto": few rows are seen more often
RECOMBINED = 0.5  # of a batch, where rows are fewer than weights
PARTS = 1e-6  # a probability is no nearer to 0 or 1 than this in a logarithm


KEPT = ("step", "start", "best", "last", "drop", "worse", "kept")  # of a run, in its checkpoint


@dataclass(frozen=True)
class Settings:
    """How a step trains. `rate` is the highest of Adam's; `epochs` "auto" is EPOCHS, or as many as LEAST_STEPS take."""

    epochs: float | Literal["auto"]
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
        asked = max(EPOCHS * self.batches, LEAST_STEPS) if settings.epochs == "auto" else settings.epochs * self.batches
        self.steps = max(1, round(asked))
        self.step, self.start, self.best, self.last, self.drop, self.worse = 0, math.inf, math.inf, math.inf, math.inf, 0
        self.recombines = loss.recombines and len(learned) < sum(one.numel() for one in self.parameters)
        self.epoch, self.order = -1, self.learned
        self.kept: list[torch.Tensor] = []
        self.checkpoint = training.checkpoints / f"{name}-{self._fingerprint()}.pt" if training.checkpoints else None

    def run(self) -> None:
        if self.checkpoint and self.checkpoint.exists():
            self._read(self.checkpoint)
        else:
            self._look()
        every = max(1, math.ceil(self.steps / CHECKS))
        while self.step < self.steps and self.worse < PATIENCE and not (self.loss.teaches and self.drop <= ENOUGH):
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
        table, targets = self._rows(rows), self.loss.targets_of(rows)
        if self.recombines:
            random = np.random.default_rng((self.settings.seed, self.step))
            table, targets = self.loss.recombined(table, targets, self._rows(random.choice(self.learned, len(rows))))
        loss = self.loss.of(self.twin(**table), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1

    def _look(self) -> None:
        """Judge the held-out rows, keep what is best, and leave a checkpoint."""
        found, drop = self._judge()
        if not math.isfinite(found):
            raise RecipeError(f"step {self.name} diverged: the loss is {found} after {self.step} steps. Give it a lower rate")
        self.start = found if self.step == 0 else self.start
        if found < self.best:
            self.best, self.drop, self.worse = found, drop, 0
            self.kept = [one.detach().clone() for one in self.parameters]
        elif found >= self.last:
            self.worse += 1
        self.last = found
        if self.checkpoint:
            self._write(self.checkpoint)
        self.tell(Progress(self.name, self.step, self.steps, found, self.best, self.start, drop))

    @torch.no_grad()
    def _judge(self) -> tuple[float, float]:
        """The loss on the held-out rows, and the drop of AUC to be expected there (evidence.score_loss), of several outputs the worst."""
        total, parts = 0.0, []
        for start in range(0, len(self.held), CHUNK):
            rows = self.held[start : start + CHUNK]
            outputs = self.loss.named(self.twin(**self._rows(rows)))
            total += float(self.loss.of(outputs, self.loss.targets_of(rows))) * len(rows)
            parts.append({key: y.flatten(1) if y.dim() > 1 else y[:, None] for key, y in outputs.items()})
        if not math.isfinite(total):
            return total, math.inf
        drops = []
        for key in parts[0]:
            got = torch.cat([part[key] for part in parts]).double().numpy()
            want = self.loss.original[key][torch.from_numpy(self.held)].reshape(got.shape).double().numpy()
            drops += [score_loss(a, b) for a, b in zip(want.T, got.T)]
        return total / len(self.held), max(drops)

    def _rows(self, rows: np.ndarray) -> Tensors:
        at = torch.from_numpy(rows)
        return {key: array[at] for key, array in self.table.items()}

    def _read(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        for name in KEPT:
            setattr(self, name, state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for parameter, held in zip(self.parameters, state["parameters"]):
                parameter.copy_(held)

    def _write(self, path: Path) -> None:
        """In one step, so that a kill leaves this checkpoint or the one before."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        state = {name: getattr(self, name) for name in KEPT}
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
    `teaches`: whether the original's scores are all that is learned from, so that it can be asked about any row; `recombines`: and
    whether it has both sides, so that there are rows to be made.
    """

    def __init__(self, name: str, original: Graph, table: Tensors, training: Training, target: str) -> None:
        self.teacher, self.inputs, self.teaches = to_torch(original), original.inputs, target == "original"
        self.original = self.targets = _scores(self.teacher, original, table)
        self.recombines = self.teaches and len({half.side for spec in original.inputs for half in spec.halves}) == 2
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
            labels = torch.from_numpy(np.asarray(training.labels, np.float32)).reshape_as(self.targets[self.judged])
            self.targets = self.targets | {self.judged: labels}

    def named(self, outputs: Any) -> Tensors:
        """What a twin gives, as a dict also when there is one output."""
        return {key: y.float() for key, y in outputs.items()} if isinstance(outputs, dict) else {next(iter(self.targets)): outputs.float()}

    def targets_of(self, rows: np.ndarray) -> Tensors:
        at = torch.from_numpy(rows)
        return {key: y[at] for key, y in self.targets.items()}

    def of(self, outputs: Any, targets: Tensors) -> torch.Tensor:
        """Outputs of the twin -> how far they are from the targets ()."""
        return torch.stack([self._one(key, y, targets[key]) for key, y in self.named(outputs).items()]).sum()

    @torch.no_grad()
    def recombined(self, table: Tensors, targets: Tensors, other: Tensors) -> tuple[Tensors, Tensors]:
        """Rows and their targets, the first RECOMBINED of them with the candidates of `other` rows, and scored again."""
        part = int(RECOMBINED * len(next(iter(table.values()))))
        mixed = {key: array.clone() for key, array in table.items()}
        for half in (half for spec in self.inputs for half in spec.halves if half.side == "candidate"):
            if half.columns is None:
                mixed[half.name][:part] = other[half.name][:part]
            else:
                mixed[half.name][:part, list(half.columns)] = other[half.name][:part, list(half.columns)]
        fresh = self.named(self.teacher(**{key: array[:part] for key, array in mixed.items()}))
        return mixed, {key: torch.cat([fresh[key], y[part:]]) for key, y in targets.items()}

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
def _scores(twin: nn.Module, original: Graph, table: Tensors) -> Tensors:
    """Output name -> the original's scores (N, ...) of the rows, float32; `twin` is its torch twin."""
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
