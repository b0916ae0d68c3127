import pytest

from burnish.errors import JobError
from burnish.job import Search
from burnish.search.space import SPACE, space


def test_all_is_tried_once_unless_the_job_says_less():
    every = space(Search())
    assert [(t.recipe.backend, t.recipe.name) for t in every] == list(SPACE)
    assert len({t.id for t in every}) == len(every)
    assert every[0].recipe.steps


def test_a_job_may_narrow_recipes_and_backends():
    assert [t.id for t in space(Search(recipes=("int8",), backends=("openvino", "native")))] == ["openvino-int8", "native-int8"]


def test_a_recipe_outside_the_table_may_be_asked_for():
    assert "onnxruntime-int8-naive" in [t.id for t in space(Search(recipes=("int8-naive",)))]


def test_unknown_names_are_told():
    with pytest.raises(JobError) as caught:
        space(Search(backends=("openvin",)))
    assert str(caught.value) == ("search.backends has 'openvin'. Did you mean 'openvino'? Known: native, openvino, onnxruntime, inductor")
    with pytest.raises(JobError, match=r"search\.recipes has 'int9'\. Did you mean 'int8'"):
        space(Search(recipes=("int9",)))
