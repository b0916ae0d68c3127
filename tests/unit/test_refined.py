"""How far the model is shrunk is searched for: up while the gate has room, down where it has none, and no longer than that pays."""

import msgspec
import pytest

from burnish.job import Accuracy, Search
from burnish.recipe import LowRank, Prune
from burnish.search.decide import better
from burnish.search.space import eased, refined, space
from burnish.search.trial import Measurement, Rejected, Trial

RULE = Accuracy(max_drop=0.001)
LEAN = next(trial for trial in space(Search(), RULE) if trial.id == "native-lean")


def gated(trial: Trial, drop: float, half: float = 0.1) -> Trial:
    """The trial after the gate saw that drop, in parts of what is allowed, with so much uncertainty."""
    quality = {"verdict": {"drop": drop * RULE.max_drop, "worst": (drop + half) * RULE.max_drop}}
    rejected = Rejected("quality", "too much") if drop + half > 1 else None
    return msgspec.structs.replace(trial, measured=Measurement(quality=quality), rejected=rejected)


def losses(trial: Trial) -> float:
    return sum(step.loss for step in trial.recipe.steps if isinstance(step, Prune | LowRank))


def walk(lost) -> list[tuple[str, bool]]:
    """What is tried, and whether it passed, where a trial that expects `scale` times the first's loss loses lost(scale)."""
    trials = [gated(LEAN, lost(1.0))]
    while (trial := refined(trials, RULE)) is not None:
        assert len(trials) < 10
        trials.append(gated(trial, lost(losses(trial) / losses(LEAN))))
    return [(trial.id, trial.rejected is None) for trial in trials]


def test_what_passed_with_little_to_spare_is_left():
    assert walk(lambda scale: 0.7 * scale) == [("native-lean", True)]


def test_what_lost_too_much_is_tried_with_less():
    assert walk(lambda scale: 1.5 * scale) == [("native-lean", False), ("native-lean-by-0.5", True)]


def test_what_lost_little_is_tried_with_more():
    assert walk(lambda scale: 0.3 * scale) == [("native-lean", True), ("native-lean-by-2.5", True)]


def test_a_step_is_bounded_and_an_overshoot_comes_back_between():
    assert walk(lambda scale: 0.05 * scale**3) == [("native-lean", True), ("native-lean-by-3", False), ("native-lean-by-1.7", True)]


def test_it_ends_where_nothing_helps():
    assert walk(lambda scale: 5.0) == [("native-lean", False), ("native-lean-by-0.33", False), ("native-lean-by-0.11", False)]
    assert walk(lambda scale: -0.1) == [("native-lean", True), ("native-lean-by-3", True), ("native-lean-by-9", True)]


def test_rows_that_resolve_no_more_than_is_allowed_leave_a_trial_that_passed():
    assert refined([gated(LEAN, 0.05, half=0.9)], RULE) is None


def test_recipes_that_do_not_shrink_and_trials_that_were_not_gated_are_left():
    int8 = next(trial for trial in space(Search(), RULE) if trial.id == "native-int8")
    slow = msgspec.structs.replace(LEAN, rejected=Rejected("latency", "too slow"))
    assert refined([gated(int8, 0.1), slow], RULE) is None


def test_what_was_decided_and_fails_is_opened_again_with_less_to_lose():
    widths, ranks = Prune(loss=0.0002, widths=(("deep.0", 16),)), LowRank(loss=0.0004, ranks=(("deep.2", 16),))
    decided = msgspec.structs.replace(LEAN, recipe=msgspec.structs.replace(LEAN.recipe, steps=(widths, ranks)))
    less = eased(gated(decided, 1.0), RULE)
    assert less.recipe.steps == (Prune(loss=0.00015), LowRank(loss=0.0003))
    assert eased(gated(msgspec.structs.replace(LEAN, recipe=msgspec.structs.replace(LEAN.recipe, steps=())), 1.0), RULE) is None


def passed(id_: str, speedup: float, bytes_: int, backend: str = "native") -> Trial:
    recipe = msgspec.structs.replace(LEAN.recipe, backend=backend)
    return Trial(id_, recipe, Measurement(weight_bytes=bytes_, quality={"rows": 1}, latency_us={"speedup": speedup}))


@pytest.mark.parametrize(
    ("trial", "useless"),
    [
        (passed("slow", 4, 200), True),
        (passed("near", 8, 200), False),
        (passed("small", 4, 50), False),
        (passed("peer", 4, 200, "openvino"), False),
    ],
)
def test_a_trial_that_cannot_be_chosen_is_not_gated(trial, useless):
    told = better(trial, [passed("best", 10, 100)])
    assert (told is not None) == useless


def test_another_tools_trial_is_not_gated_where_two_of_theirs_are_faster():
    peers = [passed("a", 7, 100, "openvino"), passed("b", 6.5, 100, "onnxruntime")]
    assert better(passed("c", 4, 200, "openvino"), [*peers, passed("best", 10, 100)]).startswith(
        "lean on native, which passed, is 2.5 times"
    )
