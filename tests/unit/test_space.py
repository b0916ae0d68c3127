import pytest

from burnish.errors import JobError
from burnish.job import Accuracy, Search
from burnish.recipe import LowRank, Prune, Recipe
from burnish.search.space import BASELINE, SPACE, on_more_cores, space
from burnish.search.trial import Measurement, Rejected, Trial


def space_of(search, max_drop=0.001):
    return space(search, Accuracy(max_drop=max_drop))


def test_all_is_tried_once_unless_the_job_says_less():
    every = space_of(Search(retrain=True))
    assert [(t.recipe.backend, t.recipe.name) for t in every] == list(SPACE)
    assert len({t.id for t in every}) == len(every)
    assert every[0].recipe.steps


def test_a_job_may_narrow_recipes_and_backends():
    assert [t.id for t in space_of(Search(recipes=("int8",), backends=("openvino", "native")))] == ["openvino-int8", "native-int8"]


def test_a_recipe_outside_the_table_may_be_asked_for():
    assert "onnxruntime-int8-naive" in [t.id for t in space_of(Search(recipes=("int8-naive",)))]


def test_unknown_names_are_told():
    with pytest.raises(JobError) as caught:
        space_of(Search(backends=("openvin",)))
    assert str(caught.value) == ("search.backends has 'openvin'. Did you mean 'openvino'? Known: native, openvino, onnxruntime, inductor")
    with pytest.raises(JobError, match=r"search\.recipes has 'int9'\. Did you mean 'int8'"):
        space_of(Search(recipes=("int9",)))


def slow(name, p50, stage="latency"):
    return Trial(name, Recipe(backend="openvino"), Measurement(latency_us={"p50": p50}), Rejected(stage, "too slow"))


def test_what_is_too_slow_on_one_core_is_tried_on_all_the_quickest_first():
    trials = [slow("a", 5.0), slow("b", 2.0), slow("c", 1.0, "quality"), slow("d", 3.0), slow("e", 9.0), slow(BASELINE.id, 1.0)]
    found = on_more_cores(trials, 4)
    assert [t.id for t in found] == ["b-4-threads", "d-4-threads", "a-4-threads"]
    assert {t.recipe.threads for t in found} == {4}
    assert on_more_cores(trials, 1) == ()


def test_what_trains_is_not_listed_unless_the_job_says_retrain():
    assert [t.recipe.name for t in space_of(Search()) if t.recipe.trains] == []
    assert [t.recipe.name for t in space_of(Search(retrain=True)) if t.recipe.trains] == ["lean-trained"]
    with pytest.raises(JobError) as caught:
        space_of(Search(recipes=("lean-trained",)))
    assert str(caught.value) == (
        "search.recipes has 'lean-trained', which trains, and search.retrain is false. Set it to true, or leave that recipe out"
    )


def test_pruning_may_expect_to_cost_a_share_of_what_the_job_allows():
    for max_drop in (0.0005, 0.002):
        steps = next(t for t in space_of(Search(), max_drop) if t.recipe.name == "lean").recipe.steps
        assert sum(s.loss for s in steps if isinstance(s, Prune | LowRank)) == pytest.approx(0.6 * max_drop)
        trained = next(t for t in space_of(Search(retrain=True), max_drop) if t.recipe.name == "lean-trained").recipe.steps
        assert sum(s.loss for s in trained if isinstance(s, Prune | LowRank)) == pytest.approx(3 * max_drop)
