"""Constants -> one file that the library maps: every array 64-byte aligned, at the offset that a table in the file's head gives.

bytes  0..7   "BURNISHW"        8..11  format version      12..15  number of arrays
      16..31  first half of sha256 of the arrays' layouts, which the library compares with its own
      32..    for each array: offset and number of rows, uint64 each
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from burnish.graph.interpret import constant, round_to
from burnish.graph.node import Node
from burnish.graph.ops import Op
from burnish.graph.weights import to_bfloat16
from burnish.native.code import Entry
from burnish.native.kernels import linear
from burnish.native.plan import ALIGN, SIZES, SLACK, ctype

MAGIC = b"BURNISHW"
VERSION = 2
HEAD = "<8sII16sQ"
CHUNK = 64 << 20  # bytes of a table copied at once


def _plain(entry: Entry) -> np.ndarray:
    array = constant(entry.nodes[0])
    return array.astype(np.uint8) if array.dtype == np.bool_ else array


def _table(entry: Entry) -> np.ndarray:
    node = entry.nodes[0]
    return node["weight"].array if node.op is Op.WEIGHT else constant(node)


def _linear_weight(entry: Entry) -> np.ndarray:
    return constant(entry.nodes[0])


def _quantize(entry: Entry) -> np.ndarray:
    zero_point = entry.nodes[0]["zero_point"]
    return np.array([-zero_point, 255 - zero_point, zero_point], np.float32)


def _bounds(entry: Entry) -> np.ndarray:
    """(2, columns): the lowest and the highest value that each column of an input's half may hold; any where it has no bound."""
    half = entry.nodes[0]["half"]
    columns = half.columns if half.columns is not None else range(half.shape[0] if half.shape else 1)
    limits = [entry.facts[c] if isinstance(entry.facts, tuple) else entry.facts for c in columns]
    dtype = np.dtype(half.dtype)
    if dtype.kind == "f":
        low, top = -np.inf, np.inf
        high = [top if n is None else np.nextafter(dtype.type(n), dtype.type(-np.inf)) for n in limits]
    else:
        low, top = np.iinfo(dtype).min, np.iinfo(dtype).max
        high = [top if n is None else min(n - 1, top) for n in limits]
    return np.array([[low if n is None else 0 for n in limits], high], dtype)


LAYOUTS: dict[str, Callable[[Entry], np.ndarray]] = {
    "plain": _plain,
    "table": _table,
    "panels_f32": lambda e: linear.pack_panels(_linear_weight(e), 1),
    "panels_f16": lambda e: linear.pack_panels(round_to(_linear_weight(e), "float16"), 1),
    "panels_bf16": lambda e: linear.pack_panels(to_bfloat16(_linear_weight(e)), 2),
    "panels_u8": lambda e: linear.pack_panels(_linear_weight(e), 4),
    "few_f32": lambda e: linear.pack_few(_linear_weight(e)),
    "few_f16": lambda e: linear.pack_few(round_to(_linear_weight(e), "float16")),
    "few_u8": lambda e: linear.pack_few(_linear_weight(e)),
    "zero_point_sums": lambda e: linear.zero_point_sums(_linear_weight(e), e.nodes[1]["zero_point"]),
    "quantize": _quantize,
    "bounds": _bounds,
    "indices": lambda e: np.array(e.numbers, np.int32),
}


def signature(entries: Sequence[Entry]) -> bytes:
    """16 bytes that differ when the arrays a library expects differ in number, layout or shape; rows of tables may differ."""
    told = [f"{e.layout} {[_shape(e.layout, n) for n in e.nodes]} {e.numbers}" for e in entries]
    return hashlib.sha256("\n".join(told).encode()).digest()[:16]


def _shape(layout: str, node: Node) -> str:
    if layout == "bounds":
        return str(node["half"].shape)
    return f"{node.dtype} {node.shape[1:] if layout == 'table' else node.shape}"


def row_bytes(entry: Entry) -> int:
    """Bytes of one row of a packed array, by its layout and shape alone: with it a library finds whether the file's head is sound."""
    node = entry.nodes[0] if entry.nodes else None
    match entry.layout:
        case "table" if node is not None and node.op is Op.WEIGHT:
            array = node["weight"].array
            return array.itemsize * math.prod(array.shape[1:])
        case "plain" | "table" if node is not None:
            return SIZES[ctype(node)] * math.prod(node.shape[1:])
        case "few_f32" | "few_f16" | "few_u8" if node is not None:
            return (1 if entry.layout == "few_u8" else 4) * (-(-node.shape[1] // 64) * 64)
        case "zero_point_sums" if node is not None:
            return 4 * node.shape[0]
        case "bounds" if node is not None:
            half = node["half"]
            return np.dtype(half.dtype).itemsize * (half.shape[0] if half.shape else 1)
        case layout:
            return {"panels_u8": 1, "panels_bf16": 2}.get(layout, 4)


def write(entries: Sequence[Entry], path: Path) -> int:
    """Pack the arrays into `path`; returns the file's bytes. Large tables are copied piece by piece."""
    head = struct.calcsize(HEAD) + 16 * len(entries)
    at, table = _up(head), []
    new = path.with_name(path.name + ".new")
    with open(new, "wb") as out:
        for entry in entries:
            array = LAYOUTS[entry.layout](entry)
            rows = array.shape[0] if array.ndim else 1
            assert array.nbytes == rows * row_bytes(entry), entry  # the library refuses the file otherwise
            table.append((at, rows))
            out.seek(at)
            if isinstance(array, np.memmap) and array.nbytes > CHUNK:
                step = max(1, CHUNK * rows // array.nbytes)
                for start in range(0, rows, step):
                    out.write(np.ascontiguousarray(array[start : start + step]).data)
            else:
                out.write(np.ascontiguousarray(array).tobytes())
            at = _up(at + array.nbytes + SLACK)
        out.truncate(at)
        out.seek(0)
        out.write(struct.pack(HEAD, MAGIC, VERSION, len(entries), signature(entries), at))
        for offset, rows in table:
            out.write(struct.pack("<QQ", offset, rows))
        out.flush()
        os.fsync(out.fileno())
    os.replace(new, path)  # who has the old one mapped keeps it
    return at


def _up(n: int) -> int:
    return -(-n // ALIGN) * ALIGN
