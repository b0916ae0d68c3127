"""What calibration rows decided is said in the recipe, and said again it gives a graph of the same shapes on another checkpoint."""

import numpy as np
import pytest

from burnish import testing
from burnish.decided import decide
from burnish.errors import RecipeError
from burnish.graph.node import Graph
from burnish.graph.ops import Op
from burnish.recipe import Int8, LowRank, MixedTables, Prune, Recipe, apply, recipe

_CLEAN, _FACTOR = recipe("int8").steps[:3], recipe("int8").steps[-1]
LEAN = Recipe((*_CLEAN, Prune(loss=0.002), LowRank(loss=0.004), Int8(), MixedTables(loss=0.001), _FACTOR), name="mine")


def checkpoint(seed: int) -> Graph:
    """The same architecture with other weights."""
    return testing.dcn_v2(ids=8, deep=(128, 64), seed=seed)


def rows(graph: Graph) -> dict[str, np.ndarray]:
    return testing.rows(graph, 600, seed=5)


def shapes(graph: Graph) -> list[tuple]:
    return [(node.op, node.shape, node.dtype) for node in graph.order]


def test_every_choice_is_filled_in_and_gives_the_same_graph_again():
    graph = checkpoint(0)
    first, decided = decide(graph, LEAN, rows(graph))
    open_ = [name for step in decided.steps for name in ("widths", "ranks", "schemes", "int4") if getattr(step, name, "") == "auto"]
    assert open_ == []
    prune, low_rank, int8, tables = decided.steps[3:7]
    assert prune.widths and all(width % (4 if name.endswith(" width") else 16) == 0 for name, width in prune.widths)
    assert {kind for kind, *_ in int8.schemes} <= {"channel", "tensor"} and len(int8.schemes) >= 3
    again, same = decide(graph, decided, rows(graph))
    assert same == decided
    assert shapes(again) == shapes(first)
    assert all(np.array_equal(a["weight"].array, b["weight"].array) for a, b in zip(first.order, again.order) if a.op is Op.WEIGHT)
    assert isinstance(low_rank.ranks, tuple) and isinstance(tables.int4, tuple)


@pytest.mark.parametrize("seed", [1, 2])
def test_another_checkpoint_gets_the_shapes_that_were_decided(seed):
    graph, other = checkpoint(0), checkpoint(seed)
    first, decided = decide(graph, LEAN, rows(graph))
    assert shapes(apply(other, decided, rows(other))) == shapes(first)


def test_a_decided_recipe_reads_what_it_writes(tmp_path):
    graph = checkpoint(0)
    _, decided = decide(graph, LEAN, rows(graph))
    for name in ("recipe.toml", "recipe.json"):
        assert recipe(decided.write(tmp_path / name)) == decided


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (Prune(widths=(("gone", 16),)), r"a size is given for 'gone', and nothing there can shrink; what can is w16, w18"),
        (LowRank(ranks=(("gone", 16),)), r"a size is given for 'gone', and nothing there can shrink; what can is w\d+, "),
        (Int8(schemes=(("channel", "gone"),)), r"Int8 has a scheme for 'gone', and no linear has a weight of that name; there are w\d+, "),
        (Int8(schemes=(("row", "gone"),)), r"Int8 has the scheme \['row', 'gone'\]\. Give \"channel\" or \"tensor\""),
        (MixedTables(int4=("gone",)), r"MixedTables is to give 'gone' int4 rows, and no table of even width has that name; there are"),
    ],
)
def test_a_choice_for_what_is_not_there_is_refused(step, sentence):
    graph = apply(checkpoint(0), recipe("fp32").without(type(recipe("fp32").steps[-1])))
    with pytest.raises(RecipeError, match=sentence):
        apply(graph, Recipe((step,)), rows(graph))


def test_linears_of_different_values_share_no_scheme():
    x = testing.dcn_v2(ids=2, deep=(32, 16))
    names = [node.inputs[1]["weight"].name for node in x.order if node.op is Op.LINEAR]
    with pytest.raises(RecipeError, match=r"which do not read the same value\. Give each its own"):
        apply(x, Recipe((Int8(schemes=(("tensor", names[-1], names[-2]),)),)), rows(x))
