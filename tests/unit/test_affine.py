"""Quantized arithmetic: what its docstring promises, on the values where it is easiest to break."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.quantize import affine

rng = np.random.default_rng(0)


def test_quantize_rounds_ties_to_even_clips_and_makes_nan_the_lowest():
    x = np.array([0.5, 1.5, 2.5, -0.5, 300.0, -300.0, np.inf, -np.inf, np.nan], np.float32)
    assert affine.quantize(x, np.float32(1), 10).tolist() == [10, 12, 12, 10, 255, 0, 255, 0, 0]
    assert affine.quantize(x, np.float32(1), 0).tolist() == [0, 2, 2, 0, 255, 0, 255, 0, 0]


def test_quantize_takes_a_multiplier_a_channel():
    assert affine.quantize(np.ones((2, 3), np.float32), np.array([1, 2, 3], np.float32), 5).tolist() == [[6, 7, 8]] * 2


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 5), st.integers(1, 700), st.integers(1, 5), st.integers(0, 255), st.booleans())
def test_dot_is_the_exact_integer_product(m, k, n, zero_point, with_init):
    q = rng.integers(0, 256, (m, k)).astype(np.uint8)
    w = rng.integers(-127, 128, (n, k)).astype(np.int8)
    init = rng.integers(-(2**30), 2**30, (m, n)).astype(np.int32) if with_init else None
    exact = (q.astype(np.int64) - zero_point) @ w.astype(np.int64).T + (0 if init is None else init)
    got = affine.dot(q, w, zero_point, init)
    assert got.dtype == np.int32
    assert (got == exact).all()


def test_dot_is_exact_at_the_largest_sums_that_fit_32_bits():
    block = affine.EXACT
    assert affine.dot(np.full((1, block), 255, np.uint8), np.full((1, block), -128, np.int8), 0).item() == -255 * 128 * block
    k = 66_000
    assert affine.dot(np.full((1, k), 255, np.uint8), np.full((1, k), -127, np.int8), 0).item() == -255 * 127 * k


def test_rescale_rounds_after_the_product_and_after_the_sum():
    acc, scale, bias = np.array([16_777_217], np.int32), np.array([0.1], np.float32), np.array([0.3], np.float32)
    product = np.float32(np.float32(16_777_217) * scale[0])
    assert affine.rescale(acc, scale, bias)[0] == np.float32(product + bias[0])


@pytest.mark.parametrize("limit", [127, 7])
def test_rows_come_back_within_half_a_step(limit):
    rows = (rng.normal(size=(50, 33)) * np.logspace(-30, 30, 50)[:, None]).astype(np.float32)
    q, scale = affine.quantize_rows(rows, limit)
    assert np.abs(q).max(axis=1).tolist() == [limit] * 50
    assert (np.abs(q * scale[:, None].astype(np.float64) - rows) <= scale[:, None] * 0.5000001).all()


def test_rows_of_zeros_and_of_denormals_quantize_to_finite_scales():
    rows = np.array([[0, 0], [1e-44, -3e-45], [-0.0, 0.0]], np.float32)
    q, scale = affine.quantize_rows(rows)
    assert np.isfinite(scale).all() and (scale > 0).all()
    assert (q[0] == 0).all() and (q[2] == 0).all()
