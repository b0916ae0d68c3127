"""Which recipe another engine is built by."""

import msgspec

from burnish.recipe import LowRank, Recipe, recipe
from burnish.search.bench import _recipe

SHRUNK = Recipe((LowRank(ranks=(("deep.0", 16),)),), "native", name="lean by 2")


def row(recipe, rate, stage=None, decided=None, backend="native"):
    return {"recipe": recipe, "backend": backend, "stage": stage, "candidates_per_second_per_core": rate, "decided": decided}


def test_the_best_that_did_not_fail_is_built_as_the_search_decided_it():
    rows = [row("int8", 5.0), row("lean by 2", 9.0, decided=msgspec.to_builtins(SHRUNK)), row("bf16", 99.0, stage="quality")]
    assert _recipe("native", {"trials": rows}) == SHRUNK


def test_one_that_was_useless_to_the_search_still_serves_to_compare_with():
    rows = [row("fp32", 2.0, stage="worth", backend="onnxruntime")]
    assert _recipe("onnxruntime", {"trials": rows}) == recipe("fp32", "onnxruntime")


def test_without_a_search_it_is_the_first_in_the_searchs_order():
    assert _recipe("openvino", None) == recipe("int8", "openvino")
