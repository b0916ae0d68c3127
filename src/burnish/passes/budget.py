"""Which of several places to shrink, and how far, so that the whole loses no more than a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

NOTHING = 1e-7  # a loss that rounding alone makes
ROUNDS = 6  # trials of the whole


@dataclass(frozen=True)
class Level:
    """One place shrunk to `size`, all others whole: what the model then costs and what it loses."""

    size: int
    macs: float
    loss: float


def spend(
    budget: float, whole: float, levels: Mapping[int, Sequence[Level]], together: Callable[[dict[int, int]], float]
) -> dict[int, int]:
    """Place -> size, for the places to shrink; `whole` is what the unchanged model costs.

    Losses of single places are taken to add up, and the step that saves most for its loss comes first. `together` then measures what was
    chosen; where the sum was wrong, more or less is spent, and the last choice that truly fits is returned.
    """
    best: dict[int, int] = {}
    least, most = 0.0, None
    allowed = budget
    tried: set[tuple[tuple[int, int], ...]] = set()
    for _ in range(ROUNDS):
        chosen = _greedy(allowed, whole, levels)
        key = tuple(sorted(chosen.items()))
        fits = key in tried or not chosen or together(chosen) <= budget + NOTHING
        tried.add(key) if fits else None
        if fits:
            best, least = chosen, allowed
            if most is None and len(chosen) == len(levels) and all(chosen[i] == levels[i][-1].size for i in chosen):
                break
        else:
            most = allowed
        allowed = allowed * 2 if most is None else (least + most) / 2
        if allowed == least:
            break
    return best


def _greedy(allowed: float, whole: float, levels: Mapping[int, Sequence[Level]]) -> dict[int, int]:
    at: dict[int, Level] = {place: Level(0, whole, 0.0) for place in levels}
    chosen: dict[int, int] = {}
    spent = 0.0
    while True:
        steps = [
            ((at[place].macs - level.macs) / max(level.loss - at[place].loss, NOTHING / 100), place, level)
            for place, own in levels.items()
            for level in own
            if level.macs < at[place].macs and spent + level.loss - at[place].loss <= allowed + NOTHING
        ]
        if not steps:
            return chosen
        _, place, level = max(steps, key=lambda step: step[0])
        spent += max(level.loss - at[place].loss, 0.0)
        at[place], chosen[place] = level, level.size
