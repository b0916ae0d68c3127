"""Which recipes on which backends are tried, and in which order: a table, so that what is tried can be read.

The order puts first what is most likely to win, with a good peer early, so that a short budget still ends in a comparison; slow compilers
come last. Peers run our quantized graphs too: their own default settings lose accuracy that ours keep (docs/decision.md), and beating a
peer at its worst would prove nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from burnish.errors import JobError
from burnish.job import Accuracy, Search
from burnish.recipe import RECIPES, Int8, LowRank, Prune, Recipe, Step, recipe
from burnish.rows import close_to
from burnish.search.trial import Trial

BASELINE = Trial("eager-original", Recipe(backend="eager", name="original"))

SECOND_WAVE = 3
REFINEMENTS = 2  # of one recipe, after its first trial
AIM = 0.85  # of the allowed loss at the interval's bad end
FARTHEST = 3.0  # times more or less in one step
WORTH = 1.2  # times more loss expected; less would save nothing that is measured
SPENT = 0.6  # of the allowed loss is what pruning may expect to cost
QUANTIZED = 0.2  # and int8; the rest is for the interval's width
RECOVERED = 0.8  # of what pruning costs is what training may be expected to take back (docs/training.md)
SPACE: tuple[tuple[str, str], ...] = (
    ("native", "int8-tables"),
    ("openvino", "int8"),
    ("native", "int8"),
    ("native", "lean"),
    ("native", "lean-trained"),
    ("openvino", "bf16"),
    ("native", "bf16"),
    ("onnxruntime", "int8"),
    ("onnxruntime", "fp32"),
    ("native", "fp32"),
    ("native", "int8-mixed-tables"),
    ("openvino", "fp32"),
    ("inductor", "fp32"),
)


def space(search: Search, accuracy: Accuracy) -> tuple[Trial, ...]:
    """The trials of a job, in the order they are tried; those that train only where it says `retrain`.

    JobError for a recipe or backend in [search] that is not known, and for a recipe there that trains and may not.
    """
    backends = tuple(dict.fromkeys(backend for backend, _ in SPACE))
    for key, given, known in (("recipes", search.recipes, tuple(RECIPES)), ("backends", search.backends, backends)):
        for name in given:
            if name not in known:
                raise JobError(f"search.{key} has {name!r}.{close_to(name, known)} Known: {', '.join(known)}")
    for name in search.recipes:
        if recipe(name).trains and not search.retrain:
            raise JobError(
                f"search.recipes has {name!r}, which trains, and search.retrain is false. Set it to true, or leave that recipe out"
            )
    named = [*SPACE, *((backend, name) for name in search.recipes for backend in backends if (backend, name) not in SPACE)]
    return tuple(
        Trial(f"{backend}-{name}", spending(recipe(name, backend), accuracy.max_drop))
        for backend, name in named
        if (search.retrain or not recipe(name).trains)
        and (not search.recipes or name in search.recipes)
        and (not search.backends or backend in search.backends)
    )


def spending(recipe: Recipe, max_drop: float) -> Recipe:
    """The recipe with its steps' expected losses of accuracy scaled to the allowed one: those of pruning add up to SPENT of it, after
    training where it trains, and Int8's is QUANTIZED of it. One that leaves no linear in float32 whatever it costs stays as it is."""
    losses = [step.loss for step in recipe.steps if isinstance(step, Prune | LowRank)]
    scale = SPENT * max_drop / (sum(losses) or 1.0) / ((1 - RECOVERED) if recipe.trains else 1)

    def scaled(step: Step) -> Step:
        match step:
            case Prune() | LowRank():
                return msgspec.structs.replace(step, loss=step.loss * scale)
            case Int8() if step.loss < 1:
                return msgspec.structs.replace(step, loss=QUANTIZED * max_drop)
        return step

    return msgspec.structs.replace(recipe, steps=tuple(map(scaled, recipe.steps)))


def shrinks(recipe: Recipe) -> bool:
    """Whether the recipe makes the model smaller by an expected loss, which takes longest to work out."""
    return any(
        (isinstance(step, Prune) and step.widths == "auto") or (isinstance(step, LowRank) and step.ranks == "auto") for step in recipe.steps
    )


def refined(trials: Sequence[Trial], rule: Accuracy) -> Trial | None:
    """Another trial of the recipe that shrinks the model most cheaply, with its expected loss scaled so that the gate is just met.

    What the gate sees a trial lose grows with what it was told that it may, and the interval around that stays about as wide: so one
    measured trial says where the next should lie, and two on both sides of the gate that it lies between them. It ends where the scale
    would hardly change, or after REFINEMENTS.
    """
    tried: dict[str, list[tuple[float, float, Trial]]] = {}
    for trial in trials:
        room = _room(trial, rule)
        if shrinks(trial.recipe) and not trial.recipe.trains and room is not None:
            name, _, by = trial.id.partition("-by-")
            tried.setdefault(name, []).append((float(by or 1.0), room, trial))
    for name, found in tried.items():
        passed = [(scale, room) for scale, room, trial in found if trial.rejected is None]
        failed = [(scale, room) for scale, room, trial in found if trial.rejected is not None]
        low, high = max(passed, default=None), min(failed, default=None)
        at, room = low or high or (1.0, 1.0)
        wanted = at * min(max(room, 1 / FARTHEST), FARTHEST)
        if high:
            wanted = min(wanted, (low[0] * high[0]) ** 0.5 if low else high[0] / WORTH)
        scale = float(f"{wanted:.2g}")
        if len(found) > REFINEMENTS or (low and scale < low[0] * WORTH) or any(scale == each for each, _, _ in found):
            continue
        first = found[0][2]
        steps = tuple(
            msgspec.structs.replace(s, loss=s.loss * scale / found[0][0]) if isinstance(s, Prune | LowRank) else s
            for s in first.recipe.steps
        )
        again = msgspec.structs.replace(first.recipe, steps=steps, name=f"{first.recipe.name} by {scale:g}")
        return Trial(f"{name}-by-{scale:g}", again)
    return None


def eased(trial: Trial, rule: Accuracy) -> Trial | None:
    """A trial that was decided and fails the gate, its choices open again and told to lose as much less as the gate found too much; None of
    one that shrinks nothing."""
    room = _room(trial, rule)
    if room is None or not any(isinstance(step, Prune | LowRank) for step in trial.recipe.steps) or trial.recipe.trains:
        return None
    scale = min(max(room, 1 / FARTHEST), 1 / WORTH)

    def opened(step: Step) -> Step:
        choices = {name: "auto" for name in ("widths", "ranks", "schemes", "int4") if name in step.__struct_fields__}
        less = {"loss": step.loss * scale} if isinstance(step, Prune | LowRank) else {}
        return msgspec.structs.replace(step, **choices, **less)

    name = f"{trial.recipe.name.removesuffix(', eased')}, eased"
    again = msgspec.structs.replace(trial.recipe, steps=tuple(map(opened, trial.recipe.steps)), name=name)
    return Trial(f"{trial.id}-eased", again)


def _room(trial: Trial, rule: Accuracy) -> float | None:
    """How many times what it lost a trial might lose until the interval's bad end comes to AIM of what is allowed; None where the gate was
    not reached."""
    quality = trial.measured.quality
    reached = trial.rejected is None or trial.rejected.stage in ("screen", "quality")
    if quality is None or not reached or rule.max_drop <= 0:
        return None
    drop, worst = quality["verdict"]["drop"], quality["verdict"]["worst"]
    return (AIM * rule.max_drop - (worst - drop)) / drop if drop > 0 else FARTHEST


def on_more_cores(trials: Sequence[Trial], cores: int) -> tuple[Trial, ...]:
    """The second wave, for a job that nothing meets on one core: the quickest of those that were too slow, each call on all cores."""
    slow = [t for t in trials if t.rejected and t.rejected.stage == "latency" and t.measured.latency_us and t.recipe.threads == 1]
    slow.sort(key=lambda t: (t.measured.latency_us["p50"] if t.measured.latency_us else 0.0, t.id))
    chosen = [t for t in slow if t.id != BASELINE.id][:SECOND_WAVE] if cores > 1 else []
    return tuple(Trial(f"{t.id}-{cores}-threads", msgspec.structs.replace(t.recipe, threads=cores)) for t in chosen)
