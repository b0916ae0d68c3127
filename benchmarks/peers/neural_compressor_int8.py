"""Neural Compressor's static quantization with its defaults: torch.export, then int8 as Inductor has it on x86, computed by torch."""

from __future__ import annotations

from pathlib import Path

from peers import Rows
from peers.eager import caller

__all__ = ["NAME", "caller", "prepare"]
NAME = "Neural Compressor int8 (its defaults)"


def prepare(module: object, example: Rows, calibration: Rows, folder: Path) -> object:
    import torch
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import convert, get_default_static_config, prepare

    tensors = tuple(torch.from_numpy(a[:16]) for a in example.values())
    rows = torch.export.Dim("rows", min=2, max=1 << 20)
    exported = export(module, tensors, dynamic_shapes=tuple({0: rows} for _ in tensors))
    ready = prepare(exported, get_default_static_config())
    count = min(8192, len(next(iter(calibration.values()))))
    with torch.no_grad():
        for i in range(0, count, 512):
            ready(*(torch.from_numpy(a[i : i + 512]) for a in calibration.values()))
    return convert(ready)
