"""Constant arrays of a Graph, held by name and by reference: a table of 100 GB stays on disk and is mapped."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

SMALL = 1 << 16  # arrays up to this many bytes are equal when their bytes are; larger ones when they are the same array


class Weight:
    """A named constant array. Frozen: the array is made read-only.

    `dtype` is numpy's name, or "bfloat16" (array: uint16 bit patterns) or "int4" (array: (V, W/2) uint8, the even column in the low
    nibble, two's complement); `shape` is always that of the values. Two small weights with equal values are equal whatever their names,
    so that equal scales and constants are one node; it then has the name that was met first.
    """

    __slots__ = ("_key", "array", "dtype", "name", "shape")

    def __init__(self, name: str, array: np.ndarray, dtype: str | None = None) -> None:
        self.name = name
        self.array = array if isinstance(array, np.memmap) else np.ascontiguousarray(array).reshape(np.shape(array))
        if self.array.flags.writeable:
            self.array = self.array.view()
            self.array.flags.writeable = False
        self.dtype = dtype or str(self.array.dtype)
        shape: tuple[int, ...] = self.array.shape
        self.shape: tuple[int, ...] = (*shape[:-1], shape[-1] * 2) if self.dtype == "int4" else shape
        self._key: Any = None

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def key(self) -> Any:
        """What decides whether two arrays are the same: a store keeps one of them."""
        if self._key is None:
            if self.nbytes <= SMALL:
                self._key = (self.dtype, self.shape, hashlib.sha256(self.array.tobytes()).hexdigest())
            else:
                pointer = self.array.__array_interface__["data"][0]
                self._key = (self.dtype, self.shape, pointer, self.array.strides)
        return self._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weight) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def __repr__(self) -> str:
        return f"{self.name}: {self.dtype} {self.shape}"

    def __reduce__(self) -> tuple[Any, ...]:
        return Weight, (self.name, np.asarray(self.array), self.dtype)


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 -> uint16 bit patterns of bfloat16, rounded to nearest even; NaN stays NaN."""
    x = np.asarray(x, np.float32)
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FC0), rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """uint16 bit patterns of bfloat16 -> float32, exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def pack_int4(q: np.ndarray) -> np.ndarray:
    """int8 values in [-8, 7] of shape (V, W), W even -> (V, W/2) uint8, the even column in the low nibble."""
    nibbles = q.astype(np.uint8) & 0xF
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpack_int4(packed: np.ndarray) -> np.ndarray:
    """(..., W/2) uint8 -> (..., W) int8 in [-8, 7]; the inverse of pack_int4."""
    low, high = packed & 0xF, packed >> 4
    both = np.stack([low, high], axis=-1).reshape(*packed.shape[:-1], packed.shape[-1] * 2).astype(np.int8)
    return np.where(both > 7, both - 16, both).astype(np.int8)
