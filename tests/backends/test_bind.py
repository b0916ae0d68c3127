"""A scorer bound to arrays: the same bits as a call, whatever the arrays hold by then."""

from __future__ import annotations

import numpy as np
import pytest

import burnish
from burnish import testing
from burnish.errors import InputError

pytest.importorskip("ziglang")


@pytest.fixture(scope="module", params=["native", "onnxruntime"])
def scorer(request, tmp_path_factory):
    if request.param == "onnxruntime":
        pytest.importorskip("onnxruntime")
    graph = testing.dcn_v2(dense=5, ids=6, width=4, cross=1, deep=(16, 8), mixed=True)
    with burnish.load(burnish.compile(graph, "fp32", backend=request.param).save(tmp_path_factory.mktemp("bound") / "r").path) as opened:
        yield opened


def halves(scorer: burnish.Scorer, n: int, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    made: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    for spec in scorer.inputs:
        for half in spec.halves:
            shape = half.shape if half.side == "request" else (n, *half.shape)
            values = rng.integers(0, 1000, shape) if half.dtype == "int64" else rng.standard_normal(shape).astype(half.dtype)
            made[half.side == "candidate"][spec.name] = values
    return made


@pytest.mark.parametrize("n", [1, 16, 129])
def test_what_is_bound_scores_what_the_arrays_hold_by_then(scorer, n):
    request, candidates = halves(scorer, n, 0)
    call = scorer.bind(request, candidates)
    for seed in (0, 1, 2):
        for mine, theirs in zip((request, candidates), halves(scorer, n, seed)):
            for name in mine:
                mine[name][...] = theirs[name]
        assert call().tobytes() == scorer(request, candidates).tobytes()


def test_what_is_bound_refuses_ids_like_a_call(scorer):
    request, candidates = halves(scorer, 3, 0)
    call = scorer.bind(request, candidates)
    candidates["cat"][1, 0] = 5000
    with pytest.raises(InputError, match="input 'cat' has id 5000 at row 1"):
        call()
    candidates["cat"][1, 0] = 5
    assert call().shape == (3,)


def test_no_candidates_and_arrays_that_are_no_arrays_can_be_bound(scorer):
    request, candidates = halves(scorer, 4, 0)
    assert scorer.bind(request, {name: a[:0] for name, a in candidates.items()})().shape == (0,)
    strided = {name: np.asfortranarray(a) for name, a in candidates.items()}
    call = scorer.bind(request, strided)
    for array in strided.values():
        array[...] = array[::-1].copy()
    assert call().tobytes() == scorer(request, strided).tobytes()
