"""ExecuTorch through XNNPACK, one thread: the module exported with a free batch of at most 512 rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from peers import Rows

NAME = "ExecuTorch fp32 (XNNPACK)"


def prepare(module: object, example: Rows, calibration: Rows, folder: Path) -> Path:
    return lowered(module, example, folder / "fp32.pte", quantize=False)


def lowered(module: object, example: Rows, file: Path, quantize: bool) -> Path:
    """Write the .pte; `quantize`: by XNNPACK's quantizer, weights per channel, activations anew in each call."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    given = tuple(torch.from_numpy(np.ascontiguousarray(array[:8])) for array in example.values())
    how = {"dynamic_shapes": [{0: torch.export.Dim("rows", min=1, max=512)}] * len(given), "strict": False}
    program = torch.export.export(module, given, **how)
    if quantize:
        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True))
        prepared = prepare_pt2e(program.module(), quantizer)
        prepared(*given)
        program = torch.export.export(convert_pt2e(prepared), given, **how)
    file.write_bytes(to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)
    return file


def caller(prepared: Path) -> Callable[[Rows], np.ndarray]:
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(1)
    method = Runtime.get().load_program(prepared).load_method("forward")
    return lambda table: method.execute([torch.from_numpy(array) for array in table.values()])[0].numpy()
