"""torch.compile of the model as it came, without bounds on the rows."""

from __future__ import annotations

from pathlib import Path

from peers import Rows
from peers.eager import caller

__all__ = ["NAME", "caller", "prepare"]
NAME = "torch.compile fp32"


def prepare(module: object, example: Rows, calibration: Rows, folder: Path) -> object:
    import torch

    return torch.compile(module, dynamic=True, options={"freezing": True})  # type: ignore[call-overload]
