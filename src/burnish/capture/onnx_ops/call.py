"""What a row of the ONNX tables is: a function of the call, the operands and the attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.capture.aten.call import Call as AtenCall
from burnish.capture.value import Value


@dataclass(frozen=True)
class Call:
    """The batch of the walk and the opset; `outputs` is how many results the node has."""

    batch: int
    opset: int
    outputs: int

    def aten(self, x: Value) -> AtenCall:
        return AtenCall(x.dtype, x.shape, self.batch)


@dataclass(frozen=True)
class Columns:
    """Indices side by side along a last axis, where one of them numbers the rows: what GatherND and ScatterND read row by row."""

    columns: tuple[Any, ...]  # Value | Ramp, without the last axis


Operands = Sequence[Any]
Attrs = Mapping[str, Any]
Row = Callable[[Call, Operands, Attrs], Any]
