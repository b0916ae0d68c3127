"""Steps that train a Graph through its torch twin: Finetune and Qat. What they are given stands here; torch is loaded by the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Progress:
    """Where a training is after `step` of `steps`: the loss on held-out rows, the least so far, and that before the first step; and the
    relative drop of AUC against the original that is to be expected there."""

    name: str
    step: int
    steps: int
    held_out: float
    best: float
    start: float
    drop: float


@dataclass(frozen=True)
class Training:
    """What a step that trains is given.

    `table`: input name -> (N, *shape), rows the model was trained on, never those it is judged on. `labels`: (N,) of 0 and 1, and
    `output`, the output they judge; only a step whose target is "labels" needs them. `checkpoints`: a directory where an interrupted
    training finds itself again. `progress` is called after each look at the held-out rows.
    """

    table: Mapping[str, np.ndarray] = field(repr=False)
    labels: np.ndarray | None = field(default=None, repr=False)
    output: str | None = None
    checkpoints: Path | None = None
    progress: Callable[[Progress], object] | None = None
