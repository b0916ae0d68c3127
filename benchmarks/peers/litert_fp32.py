"""LiteRT (formerly TensorFlow Lite) through XNNPACK, one thread. Its converter fixes the batch, so there is a program for each size met."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from peers import Rows

NAME = "LiteRT fp32 (XNNPACK)"


def prepare(module: object, example: Rows, calibration: Rows, folder: Path) -> tuple[Any, Path]:
    return module, folder


def caller(prepared: tuple[Any, Path]) -> Callable[[Rows], np.ndarray]:
    module, folder = prepared
    programs: dict[int, Any] = {}

    def call(table: Rows) -> np.ndarray:
        n = len(next(iter(table.values())))
        if n not in programs:
            programs[n] = _program(module, table, folder / f"{n}.tflite")
        interpreter, inputs, output = programs[n]
        for told, array in zip(inputs, table.values()):
            interpreter.set_tensor(told["index"], array.astype(told["dtype"], copy=False))  # ids are int32 there
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return call


def _program(module: Any, table: Rows, file: Path) -> tuple[Any, list[dict[str, Any]], int]:
    import litert_torch
    import torch
    from ai_edge_litert.interpreter import Interpreter

    litert_torch.convert(module, tuple(torch.from_numpy(array) for array in table.values())).export(str(file))
    interpreter = Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    inputs = sorted(interpreter.get_input_details(), key=lambda told: told["name"])
    return interpreter, inputs, interpreter.get_output_details()[0]["index"]
