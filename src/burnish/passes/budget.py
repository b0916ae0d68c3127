"""Which of several places to shrink, and how far, so that the whole loses no more than a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from burnish.errors import RecipeError
from burnish.graph.node import Graph
from burnish.passes.evidence import Judge, macs

NOTHING = 1e-7  # a loss that rounding alone makes
ROUNDS = 6  # trials of the whole

Sizes = Mapping[int, int]  # place -> size, of the places that shrink
Made = Callable[[Sizes, bool], Graph]  # the graph with those sizes; whether to refit what lies behind them


@dataclass(frozen=True)
class Level:
    """One place shrunk to `size`, all others whole: what the model then costs, in products or bytes, and what it loses."""

    size: int
    cost: float
    loss: float


def shrink(graph: Graph, judge: Judge, budget: float, places: Sequence[Sequence[int]], made: Made) -> Graph:
    """Of all `made(sizes, False)`, a size for some places from the sizes of each, one of least cost whose loss is within the budget.

    The sizes of a place are the largest first; they are tried one place alone, down to the first that loses too much.
    """
    whole = macs(graph)
    levels = {i: _levels(sizes, budget, judge, whole, lambda size, i=i: made({i: size}, False)) for i, sizes in enumerate(places)}  # type: ignore[misc]
    best = spend(budget, whole, levels, lambda sizes: judge.loss(made(sizes, False)))
    return better(judge, best, made) if best else graph


def at_sizes(graph: Graph, judge: Judge, given: Sequence[tuple[str, int]], names: Sequence[str], made: Made) -> Graph:
    """The graph with the places called so shrunk to the sizes given, the others whole. RecipeError for a name that no place has."""
    place = {name: i for i, name in enumerate(names)}
    for name, _ in given:
        if name not in place:
            raise RecipeError(f"a size is given for {name!r}, and nothing there can shrink; what can is {', '.join(names) or 'nothing'}")
    return better(judge, {place[name]: size for name, size in given}, made) if given else graph


def better(judge: Judge, sizes: Sizes, made: Made) -> Graph:
    """The graph with those sizes, with or without all linears behind them refitted, whichever loses less."""
    return min((made(sizes, refit) for refit in (False, True)), key=judge.loss)


def _levels(sizes: Sequence[int], budget: float, judge: Judge, whole: float, made: Callable[[int], Graph]) -> list[Level]:
    """The sizes that are cheaper than the whole and lose no more than the budget."""
    if not sizes:
        return []
    most, least = sizes[0], sizes[-1]
    high = macs(made(most))
    slope = (high - macs(made(least))) / (most - least) if most > least else 0.0  # products grow in proportion to any one size
    found: list[Level] = []
    for size in sizes:
        cost = high - slope * (most - size)
        if cost >= whole:
            continue
        level = Level(size, cost, judge.loss(made(size)))
        if level.loss > budget + NOTHING:
            break
        found.append(level)
    return found


def spend(budget: float, whole: float, levels: Mapping[int, Sequence[Level]], together: Callable[[Sizes], float]) -> dict[int, int]:
    """The sizes that save most within the budget.

    Losses of single places are taken to add up, and the step that saves most for its loss comes first. `together` then measures what was
    chosen; where the sum was wrong, more or less is spent, and the last choice that truly fits is returned.
    """
    best: dict[int, int] = {}
    fits: dict[tuple[tuple[int, int], ...], bool] = {(): True}
    allowed, least, most = budget, 0.0, None  # what the sum may be; the largest that fitted, the smallest that did not
    for _ in range(ROUNDS):
        chosen = _greedy(allowed, whole, levels)
        key = tuple(sorted(chosen.items()))
        if key not in fits:
            fits[key] = together(chosen) <= budget + NOTHING
        if fits[key]:
            best, least = chosen, allowed
        else:
            most = allowed
        allowed = 2 * allowed if most is None else (least + most) / 2
    return best


def _greedy(allowed: float, whole: float, levels: Mapping[int, Sequence[Level]]) -> dict[int, int]:
    """The sizes of least cost, step by step, whose losses add up to no more than `allowed`."""
    at = {place: Level(0, whole, 0.0) for place in levels}
    chosen: dict[int, int] = {}
    spent = 0.0
    while True:
        steps = [
            ((at[place].cost - level.cost) / max(level.loss - at[place].loss, NOTHING / 100), place, level)
            for place, own in levels.items()
            for level in own
            if level.cost < at[place].cost and spent + level.loss - at[place].loss <= allowed + NOTHING
        ]
        if not steps:
            return chosen
        _, place, level = max(steps, key=lambda step: step[0])
        spent += max(level.loss - at[place].loss, 0.0)
        at[place], chosen[place] = level, level.size
