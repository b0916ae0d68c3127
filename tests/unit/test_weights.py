"""Constant arrays: equality, the narrow dtypes numpy lacks, and that nothing is copied that need not be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.graph.weights import SMALL, Weight, from_bfloat16, pack_int4, to_bfloat16, unpack_int4

floats32 = st.integers(0, 2**32 - 1).map(lambda bits: np.array(bits, np.uint32).view(np.float32)[()])


def test_small_weights_are_equal_by_value_and_large_ones_by_memory():
    small, large = np.arange(4.0), np.zeros(SMALL // 8 + 1)
    assert Weight("a", small) == Weight("b", small.copy())
    assert Weight("a", small) != Weight("a", small.astype(np.float32))
    assert Weight("a", small) != Weight("a", small.reshape(2, 2))
    assert Weight("a", large) == Weight("b", large)
    assert Weight("a", large) != Weight("a", large.copy())


def test_a_weight_is_read_only_and_shares_the_memory_it_was_given():
    array = np.zeros((3, 2), np.float32)
    held = Weight("w", array)
    assert np.shares_memory(held.array, array) and array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        held.array[0] = 1


def test_a_mapped_table_stays_mapped_also_as_a_slice_of_rows(tmp_path):
    table = np.memmap(tmp_path / "t", np.float32, "w+", shape=(100, 4))
    assert isinstance(Weight("t", table[10:20]).array, np.memmap)
    assert np.shares_memory(Weight("t", table[10:20]).array, table)


@settings(derandomize=True, deadline=None, max_examples=500)
@given(floats32)
def test_bfloat16_rounds_to_nearest_even(x):
    got = from_bfloat16(to_bfloat16(x))
    assert got.shape == ()
    if np.isnan(x):
        assert np.isnan(got)
        return
    bits = int(np.array(x).view(np.uint32))
    low, high = (np.array([b << 16], np.uint32).view(np.float32)[0].astype(np.float64) for b in (bits >> 16, (bits >> 16) + 1))
    if np.isfinite(low) and np.isfinite(high):
        near = min((low, high), key=lambda v: (abs(v - np.float64(x)), (int(np.float32(v).view(np.uint32)) >> 16) & 1))
        assert got == np.float32(near)
    assert from_bfloat16(to_bfloat16(got)) == got


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 1000))
def test_int4_survives_packing(rows, half_width, seed):
    q = np.random.default_rng(seed).integers(-8, 8, (rows, 2 * half_width)).astype(np.int8)
    assert np.array_equal(unpack_int4(pack_int4(q)), q)
    assert Weight("t", pack_int4(q), "int4").shape == q.shape


def test_every_int4_value_has_its_own_nibble():
    q = np.arange(-8, 8, dtype=np.int8)[None]
    assert unpack_int4(pack_int4(q)).tolist() == q.tolist()
    assert unpack_int4(np.array([0x7F], np.uint8)).tolist() == [-1, 7]  # the even column in the low nibble
