"""aten ops on traced values, one row each, by the op's name without its overload."""

from burnish.capture.aten.call import Row
from burnish.capture.aten.indexing import INDEXING
from burnish.capture.aten.layers import LAYERS
from burnish.capture.aten.pointwise import POINTWISE
from burnish.capture.aten.tensors import TENSORS

ATEN: dict[str, Row] = {**POINTWISE, **TENSORS, **INDEXING, **LAYERS}
