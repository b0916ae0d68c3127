"""Another checkpoint is told from another architecture."""

import msgspec

from burnish import testing
from burnish.search.architecture import architecture, difference


def kept(**options):
    """As report.json keeps it. The seed is of no other test: equal weights have the name that was met first."""
    options = {"seed": 90210} | options
    return msgspec.json.decode(msgspec.json.encode(architecture(testing.dcn_v2(ids=4, **{"deep": (32, 16)} | options))))


def test_other_weights_are_the_same_architecture():
    assert difference(kept(seed=90210), kept(seed=90211)) is None


def test_names_of_equal_weights_met_elsewhere_change_nothing():
    first = kept(seed=90212)
    renamed = testing.dcn_v2(ids=3, deep=(32, 16), seed=90213)  # the same draws under other names, for the weights that are drawn first
    other = kept(seed=90213)
    assert renamed is not None and difference(first, other) is None
    names = {"weights": [["x", shape] for _, shape in other["weights"]], "wiring": other["wiring"]}
    assert difference(first, names) is None


def test_a_table_may_have_more_rows():
    assert difference(kept(cardinality=1000), kept(cardinality=1200)) is None


def test_another_width_and_another_layer_are_named():
    assert "(24, 32) and was (16, 32)" in difference(kept(), kept(deep=(32, 24)))
    assert difference(kept(), kept(deep=(32, 16, 8))) == "w18, b17 is new; w16 is (8, 16) and was (1, 16), b15 is (8,) and was (1,)"
    assert difference(kept(deep=(32, 16, 8)), kept()).startswith("it lacks w18, b17; w16 is ")


def test_the_same_weights_in_another_order_are_told():
    assert (
        difference(kept(parallel=False, request=0.5), kept(request=0.25)) == "its weights have the same shapes, and are used in another way"
    )
