"""A recipe is data: named, written, read back, and refused in one sentence where it cannot be meant."""

from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.errors import RecipeError
from burnish.graph.node import Graph, Node, input_node, weight
from burnish.graph.ops import Op
from burnish.inputs import Input
from burnish.recipe import (
    RECIPES,
    STEPS,
    FactorRequest,
    Finetune,
    Half,
    Int8,
    Recipe,
    Step,
    Tidy,
    apply,
    describe,
    recipe,
)

int8_steps = st.builds(
    Int8,
    ranges=st.sampled_from(["auto", "min-max", "percentile", "mse"]),
    migration=st.just("auto") | st.floats(0, 1),
    rounding=st.sampled_from(["auto", "nearest"]),
    bias_correction=st.booleans(),
    weight_bits=st.sampled_from([4, 8]),
    loss=st.floats(0, 1),
    narrowest=st.integers(1, 2**31),
    skip=st.lists(st.text(max_size=8), max_size=3).map(tuple),
)
plain_steps = st.sampled_from([kind() for kind in STEPS])
recipes = st.builds(
    Recipe,
    steps=st.lists(
        int8_steps | plain_steps | st.builds(Half, dtype=st.sampled_from(["bfloat16", "float16"]), narrowest=st.integers(1, 99)), max_size=6
    ).map(tuple),
    backend=st.text(max_size=12),
    threads=st.integers(1, 64),
    name=st.text(max_size=20),
)


@settings(derandomize=True, deadline=None)
@given(recipes)
def test_a_recipe_reads_back_from_toml_and_json_as_it_was_written(tmp_path_factory, written):
    folder = tmp_path_factory.mktemp("recipe")
    for name in ("r.toml", "r.json"):
        assert recipe(written.write(folder / name)) == written
    assert msgspec.json.decode(msgspec.json.encode(written), type=Recipe) == written


def test_every_step_has_a_row_and_every_row_is_a_step():
    assert set(STEPS) == set(get_args(Step))


def test_a_recipe_in_toml_reads_like_one_written_by_hand(tmp_path):
    assert recipe("int8-naive", backend="onnxruntime").without(FactorRequest).to_toml() == (
        'name = "int8-naive"\nbackend = "onnxruntime"\nthreads = 1\n\n'
        '[[steps]]\nstep = "Tidy"\n\n[[steps]]\nstep = "Embeddings"\n\n[[steps]]\nstep = "Interactions"\n\n'
        '[[steps]]\nstep = "Int8"\nranges = "min-max"\nmigration = 0.0\nrounding = "nearest"\nsymmetric = false\nbias_correction = false\n'
        'weight_bits = 8\nloss = 1.0\nnarrowest = 1\nskip = []\nschemes = "auto"\n'
    )
    by_hand = tmp_path / "mine.toml"
    by_hand.write_text('[[steps]]\nstep = "Int8"\nskip = ["head.weight"]\n')
    assert recipe(by_hand) == Recipe((Int8(skip=("head.weight",)),))


def test_named_recipes_factor_last_and_keep_their_name():
    for name, steps in RECIPES.items():
        assert recipe(name) == Recipe(steps, name=name)
        assert not steps or steps[-1] == FactorRequest()
    assert recipe("int8", backend="openvino").backend == "openvino"
    assert recipe(recipe("fp32")) == recipe("fp32")


def test_describe_says_only_what_is_not_the_default():
    assert (
        describe(Recipe((Tidy(), Int8(ranges="mse", migration=0.5), FactorRequest())))
        == "Tidy > Int8(ranges=mse, migration=0.5) > FactorRequest"
    )
    assert describe(recipe("original")) == "as captured"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[[steps]]\nstep = "Int9"', r"step 1 of the recipe .*r\.toml is 'Int9'\. Use one of Tidy, Embeddings, .*Int8"),
        ("[[steps]]\nranges = 1", r"step 1 of the recipe .*r\.toml does not say its name as `step`\. Use one of Tidy"),
        ('[[steps]]\nstep = "Half"\nwidth = 1', r"step 1 of the recipe .*, Half, has no field 'width'; its fields are dtype, narrowest"),
        ('[[steps]]\nstep = "Tidy"\nwidth = 1', r"step 1 of the recipe .*, Tidy, has no field 'width'; its fields are none"),
        (
            '[[steps]]\nstep = "Int8"\nranges = "kl"',
            r"the recipe .*r\.toml does not fit: Invalid enum value 'kl' - at `\$\.steps\[0\]\.ranges`",
        ),
        ('[[steps]]\nstep = "Int8"\nmigration = 2.0', r"step Int8 has migration 2\.0\. Use \"auto\" or a number from 0 to 1"),
        ('[[steps]]\nstep = "Qat"\nepochs = 0', r"step Qat has epochs 0\.0\. Use a number above 0"),
        ('[[steps]]\nstep = "Finetune"\nrate = -1', r"step Finetune has rate -1\.0\. Use a number above 0"),
        ("threads = 0", r"the recipe has threads = 0\. Use at least 1"),
        ("batch = 3", r"the recipe .*r\.toml does not fit: .*`batch`.*\. Its fields are steps, backend, threads, name"),
        ("steps = [", r"the recipe .*r\.toml is not TOML: "),
    ],
)
def test_a_recipe_file_that_cannot_be_meant_is_refused_in_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=sentence):
        recipe(path)


def test_names_and_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(RecipeError, match=r"no recipe 'int7'\. Use one of original, fp32, bf16, .* or a \.toml or \.json file"):
        recipe("int7")
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*gone\.json: No such file or directory"):
        recipe(tmp_path / "gone.json")


def _linear_graph() -> Graph:
    spec = Input("x", "float32", (4,))
    w = weight("w", np.eye(8, 4, dtype=np.float32))
    return Graph([spec], {"y": Node(Op.LINEAR, (input_node(spec), w, weight("b", np.zeros(8, np.float32))))})


def test_apply_asks_for_the_calibration_rows_it_needs():
    with pytest.raises(RecipeError, match=r"step Int8 of recipe 'Int8' needs calibration rows and has none\. Give calibration="):
        apply(_linear_graph(), Recipe((Int8(),)))


def test_apply_asks_for_the_train_rows_it_needs():
    with pytest.raises(RecipeError, match=r"step Finetune of recipe 'Finetune' trains, and has no train rows\. Give training="):
        apply(_linear_graph(), Recipe((Finetune(),)))


def test_apply_names_the_step_that_leaves_a_broken_graph(monkeypatch):
    monkeypatch.setattr("burnish.quantize.half.half", lambda graph, dtype, narrowest: Graph(graph.inputs, {}))
    with pytest.raises(RecipeError, match=r"step Half of recipe 'mine' left a graph that does not hold: the graph has no output"):
        apply(_linear_graph(), Recipe((Half(),), name="mine"))


def test_apply_without_steps_is_the_graph_itself():
    graph = _linear_graph()
    assert apply(graph, recipe("original")) is graph
