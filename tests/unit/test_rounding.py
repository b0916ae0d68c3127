"""Compensated rounding: better where channels are correlated, never chosen where it is not, and the same whatever the block."""

import numpy as np
import pytest

from burnish.graph.node import Graph, Node, input_node, weight
from burnish.graph.ops import Op
from burnish.inputs import Input
from burnish.quantize import affine, ptq, rounding
from burnish.quantize.rounding import Second, compensated


def correlated(n: int, k: int, seed: int) -> np.ndarray:
    """(n, k) float32 that lies close to a space of k / 4 dimensions, the same for every seed."""
    basis = np.random.default_rng(99).normal(size=(k // 4, k))
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, k // 4)) @ basis + 0.1 * rng.normal(size=(n, k))).astype(np.float32)


def output_error(w: np.ndarray, q: np.ndarray, scale: np.ndarray, x: np.ndarray) -> float:
    return float((((q * scale[:, None] - w) @ x.T) ** 2).mean())


def compensate(w: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    nearest, scale = affine.quantize_rows(w, 127)
    return nearest, compensated(w, scale, np.ones((), np.float32), Second.of(x, np.abs(x).max(axis=0))), scale


@pytest.mark.parametrize("k", [8, 64, 200])
def test_correlated_channels_make_up_for_one_another_on_rows_not_seen(k):
    w = np.random.default_rng(0).normal(size=(32, k)).astype(np.float32)
    nearest, found, scale = compensate(w, correlated(2000, k, 1))
    unseen = correlated(2000, k, 2)
    assert output_error(w, found, scale, unseen) < output_error(w, nearest, scale, unseen) / 3
    assert np.abs(found).max() <= 127


def test_channels_on_their_own_are_rounded_to_the_nearest():
    w = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
    nearest, found, _ = compensate(w, np.eye(64, dtype=np.float32))
    assert (nearest == found).all()


def test_the_block_changes_nothing_but_the_order_of_sums(monkeypatch):
    w = np.random.default_rng(0).normal(size=(16, 130)).astype(np.float32)
    found = []
    for block in (1, 64, 1000):
        monkeypatch.setattr(rounding, "BLOCK", block)
        found.append(compensate(w, correlated(500, 130, 1))[1])
    assert min((found[0] == other).mean() for other in found) > 0.9  # a sum that lands beside a tie may round the other way


def test_the_grid_of_a_migrated_linear_is_that_of_its_multiplier():
    rng = np.random.default_rng(0)
    x = correlated(500, 32, 1)
    multiplier = np.exp(rng.normal(size=32)).astype(np.float32)
    w = rng.normal(size=(16, 32)).astype(np.float32) * multiplier
    nearest, scale = affine.quantize_rows(w / multiplier)
    found = compensated(w, scale, multiplier, Second.of(x, np.abs(x).max(axis=0)))
    assert output_error(w, found * multiplier, scale, x) < output_error(w, nearest * multiplier, scale, x) / 3


def test_with_few_rows_or_dead_channels_int8_is_no_worse_than_to_the_nearest():
    spec = Input("x", "float32", (64,))
    rng = np.random.default_rng(0)
    w = weight("w", rng.normal(size=(32, 64)).astype(np.float32))
    graph = Graph([spec], {"y": Node(Op.LINEAR, (input_node(spec), w, weight("b", np.zeros(32, np.float32))))})
    for n in (16, 40, 1000):
        x = correlated(n, 64, 1)
        x[:, :3] = 0
        (auto,), (nearest,) = (ptq.choose(graph, {"x": x}, rounding=how) for how in ("auto", "nearest"))
        assert auto.error <= nearest.error
    assert auto.rounding == "compensated"
