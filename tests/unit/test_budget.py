"""A budget is spent where it saves most, and what was spent is measured, not added up."""

import itertools

import numpy as np
import pytest

from burnish.passes.budget import Level, _greedy, spend

WHOLE = 1000.0
CHEAP = [Level(64, 900.0, 1e-5), Level(32, 800.0, 3e-5), Level(16, 750.0, 9e-5)]
DEAR = [Level(64, 950.0, 4e-5), Level(32, 600.0, 8e-5)]


def added_up(levels):
    loss_of = {(place, level.size): level.loss for place, own in levels.items() for level in own}
    return lambda sizes: sum(loss_of[chosen] for chosen in sizes.items())


def test_nothing_is_spent_without_a_budget_or_a_place():
    assert spend(0.0, WHOLE, {0: CHEAP, 1: DEAR}, added_up({0: CHEAP, 1: DEAR})) == {}
    assert spend(1.0, WHOLE, {}, lambda sizes: 0.0) == {}
    assert spend(1.0, WHOLE, {0: []}, lambda sizes: 0.0) == {}


def test_what_costs_nothing_is_taken_without_a_budget():
    free = [Level(64, 900.0, 0.0), Level(32, 800.0, 1e-12), Level(16, 700.0, 1e-3)]
    assert spend(0.0, WHOLE, {0: free}, added_up({0: free})) == {0: 32}


def test_a_dear_step_that_leads_to_a_cheap_one_is_not_in_the_way():
    assert _greedy(8e-5, WHOLE, {1: DEAR}) == {1: 32}
    assert _greedy(1.2e-4, WHOLE, {0: CHEAP, 1: DEAR}) == {0: 32, 1: 32}


def test_a_loss_that_does_not_grow_is_no_trap():
    noisy = [Level(64, 900.0, 5e-5), Level(32, 800.0, 4e-5), Level(16, 700.0, 4e-5)]
    assert _greedy(4e-5, WHOLE, {0: noisy}) == {0: 16}


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_the_whole_is_within_the_budget_though_losses_do_not_add_up(factor):
    together = added_up({0: CHEAP, 1: DEAR})
    found = spend(1.2e-4, WHOLE, {0: CHEAP, 1: DEAR}, lambda sizes: factor * together(sizes))
    assert factor * together(found) <= 1.2e-4 + 1e-7
    assert found == {0.3: {0: 16, 1: 32}, 1.0: {0: 32, 1: 32}, 3.0: {0: 32}}[factor]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_saved_is_near_the_best_that_can_be(seed):
    rng = np.random.default_rng(seed)
    levels = {}
    for place in range(3):
        macs, loss = np.cumsum(rng.uniform(0, 80, 4)), np.cumsum(rng.exponential(3e-5, 4) * 2.0 ** np.arange(4))
        levels[place] = [Level(64 - 8 * i, WHOLE - macs[i], loss[i]) for i in range(4)]
    together, saved = added_up(levels), {(p, own.size): WHOLE - own.cost for p in levels for own in levels[p]}
    all_sizes = itertools.product(*([None, *(level.size for level in own)] for own in levels.values()))
    options = [{p: size for p, size in enumerate(sizes) if size} for sizes in all_sizes]
    best = max(sum(map(saved.__getitem__, option.items())) for option in options if together(option) <= 1.5e-4)
    assert sum(map(saved.__getitem__, spend(1.5e-4, WHOLE, levels, together).items())) >= 0.8 * best
