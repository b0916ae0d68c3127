"""PyTorch as it came: the model in eager mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from peers import Rows

NAME = "PyTorch eager fp32"


def prepare(module: object, example: Rows, calibration: Rows, folder: Path) -> object:
    return module


def caller(prepared: object) -> Callable[[Rows], np.ndarray]:
    import torch

    torch.set_num_threads(1)
    module = prepared

    def call(table: Rows) -> np.ndarray:
        with torch.inference_mode():
            return module(*(torch.from_numpy(a) for a in table.values())).numpy()  # type: ignore[operator]

    return call
