"""What burnish is measured against, each as a user of that tool would set it up, one module a tool with the same three names:

NAME      what the tables call it
prepare   (module, example (N, ...) arrays by name, calibration rows, folder) -> files or compiled objects, whatever `caller` needs
caller    (prepared) -> function (plain table) -> (N,) scores, on one thread
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

Rows = dict[str, np.ndarray]


def export_onnx(module: object, example: Rows, path: Path) -> Path:
    """torch's own exporter, with a free number of rows: what every ONNX tool below starts from."""
    import torch

    if not path.exists():
        tensors = tuple(torch.from_numpy(a[:16]) for a in example.values())
        rows = torch.export.Dim("rows", min=1, max=1 << 20)
        shapes = tuple({0: rows} for _ in tensors)
        torch.onnx.export(
            module,
            tensors,
            str(path),
            input_names=list(example),
            output_names=["score"],
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
            external_data=False,
        )
    return path
