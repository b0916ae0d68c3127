"""Changed rows of tables become a version in seconds: what they score, what is shared, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import burnish
from burnish import testing
from burnish.backends.native import Native
from burnish.cli import main
from burnish.errors import ServeError
from burnish.graph.node import Graph, Node, weight
from burnish.graph.ops import Op
from burnish.inputs import Input
from burnish.runtime.artifact import Artifact
from burnish.serve.delta import add
from burnish.serve.versions import Versions, publish

pytest.importorskip("ziglang")
if Native().missing():
    pytest.skip(str(Native().missing()), allow_module_level=True)
WIDTH, ROWS = 8, 50
RECIPES = ("fp32", "fp16-tables", "bf16-tables", "int8-tables", "int8-int4-tables")


def model(tables: dict[str, np.ndarray]) -> Graph:
    """A ranker that reads one row of each table and adds what is in them, by position."""
    ids = Input("ids", "int64", (len(tables),), cardinality=ROWS)
    node = Node(Op.INPUT, half=ids.halves[0])
    rows = []
    for i, (name, array) in enumerate(tables.items()):
        one = Node(Op.RESHAPE, (Node(Op.SLICE, (node,), axis=0, start=i, stop=i + 1),), shape=())
        rows.append(Node(Op.LOOKUP, (weight(name, array), one)))
    x = Node(Op.CONCAT, tuple(rows), axis=0)
    rng = np.random.default_rng(7)
    w = weight("w", rng.standard_normal((1, x.shape[0])).astype(np.float32))
    score = Node(Op.RESHAPE, (Node(Op.LINEAR, (x, w, weight("b", np.zeros(1, np.float32)))),), shape=())
    return Graph((ids,), {"score": score})


def tables(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((ROWS, WIDTH)).astype(np.float32) for name in ("user.weight", "item.weight")}


def calibration() -> dict[str, np.ndarray]:
    return {"ids": np.random.default_rng(1).integers(0, ROWS, (256, 2))}


def build(recipe: str, arrays: dict[str, np.ndarray]) -> Artifact:
    return burnish.compile(model(arrays), recipe, calibration(), backend="native")


def changed_rows(path: Path, arrays: dict[str, np.ndarray], kind: str) -> tuple[Path, dict[str, np.ndarray]]:
    """A file of new rows of `item.weight`, and the tables as they are then."""
    rng = np.random.default_rng(3)
    ids = np.array([49, 0, 17])
    rows = rng.standard_normal((3, WIDTH)).astype(np.float32)
    after = {name: array.copy() for name, array in arrays.items()}
    after["item.weight"][ids] = rows
    to = path / f"rows.{kind}"
    if kind == "npz":
        np.savez(to, **{"item.weight.ids": ids, "item.weight.rows": rows})
    else:
        polars = pytest.importorskip("polars")
        polars.DataFrame({"table": ["item.weight"] * 3, "id": ids, "row": rows.tolist()}).write_parquet(to)
    return to, after


def rows() -> np.ndarray:
    found = np.random.default_rng(2).integers(0, ROWS, (500, 2))
    found[:3, 1] = [49, 0, 17]
    return found


def scores(path: Path) -> np.ndarray:
    with burnish.load(path, verify=True) as scorer:
        return scorer.rows({"ids": rows()})


@pytest.mark.parametrize("recipe, kind", [*((recipe, "npz") for recipe in RECIPES), ("int8-tables", "parquet")])
def test_a_delta_scores_like_a_build_of_the_whole_model_with_these_rows(tmp_path, recipe, kind):
    """Bit for bit, but for what calibration chose: there a row that is not of the delta scores as it did."""
    arrays = tables()
    publish(build(recipe, arrays).save(tmp_path / "made").path, tmp_path / "ranker")
    versions = Versions(tmp_path / "ranker")
    file, after = changed_rows(tmp_path, arrays, kind)
    assert publish(file, versions.path) == "2"
    assert versions.current() == "2"
    got, before = scores(versions.where("2")), scores(versions.where("1"))
    whole = scores(build(recipe, after).save(tmp_path / "whole").path)
    changed = np.isin(rows()[:, 1], (49, 0, 17))
    np.testing.assert_array_equal(got[~changed], before[~changed])
    assert (got[changed] != before[changed]).all()
    if "int8" in recipe:  # activations of the whole model have other scales, of its own calibration
        np.testing.assert_allclose(got, whole, atol=0.1)
        assert np.abs(got - whole).mean() < 0.1 * np.abs(got - before)[changed].mean()
    else:
        np.testing.assert_array_equal(got, whole)
    told = Artifact.read(versions.where("2")).manifest.measured["delta"]
    assert told == {"of": Artifact.read(versions.where("1")).manifest.sha256, "rows": {"item.weight": 3}}


@pytest.mark.parametrize("recipe", ("int8-tables", "int8-int4-tables"))
def test_rows_are_narrowed_by_the_rule_that_narrowed_the_table(tmp_path, recipe):
    """A delta of a table's own rows changes no bit of the weights."""
    arrays = tables()
    publish(build(recipe, arrays).save(tmp_path / "made").path, tmp_path / "ranker")
    np.savez(tmp_path / "rows.npz", **{"item.weight.ids": np.arange(ROWS), "item.weight.rows": arrays["item.weight"]})
    old, new = (Versions(tmp_path / "ranker").where(n) for n in ("1", publish(tmp_path / "rows.npz", tmp_path / "ranker")))
    assert (old / "weights.bin").read_bytes() == (new / "weights.bin").read_bytes()


def test_everything_but_weights_golden_rows_and_manifest_is_the_same_file(tmp_path):
    arrays = tables()
    publish(build("int8-tables", arrays).save(tmp_path / "made").path, tmp_path / "ranker")
    file, _ = changed_rows(tmp_path, arrays, "npz")
    old, new = (Versions(tmp_path / "ranker").where(n) for n in ("1", publish(file, tmp_path / "ranker")))
    for name in Artifact.read(new).manifest.files:
        assert os.path.samefile(old / name, new / name) == (name not in ("weights.bin", "golden.npz")), name
    assert [p.name for p in (tmp_path / "ranker" / "versions").iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    "content, sentence",
    [
        (
            {"shop.weight.ids": [1], "shop.weight.rows": np.zeros((1, WIDTH))},
            r"has no table 'shop\.weight'\. It has item\.weight, user\.weight",
        ),
        (
            {"item.weight.ids": [ROWS], "item.weight.rows": np.zeros((1, WIDTH))},
            r"table 'item\.weight' has no row 50 in the artifact\. It has 50 rows",
        ),
        ({"item.weight.ids": [-1], "item.weight.rows": np.zeros((1, WIDTH))}, r"table 'item\.weight' has no row -1 in the artifact"),
        (
            {"item.weight.ids": [1], "item.weight.rows": np.zeros((1, 3))},
            r"rows of table 'item\.weight' have 8 values in the artifact; 3 were given",
        ),
        ({"item.weight.ids": [1, 1], "item.weight.rows": np.zeros((2, WIDTH))}, r"one appears twice\. Give each id once, as an integer"),
        ({"item.weight.ids": [1.5], "item.weight.rows": np.zeros((1, WIDTH))}, r"the ids of table 'item\.weight' in .* are float64"),
        ({"item.weight.ids": [1], "item.weight.rows": np.full((1, WIDTH), np.nan)}, r"has a value that is not finite"),
        ({"item.weight.ids": [1, 2], "item.weight.rows": np.zeros((1, WIDTH))}, r"has ids of shape \(2,\) and rows of shape \(1, 8\)"),
        ({"item.weight.ids": [1]}, r"the rows in .*rows\.npz cannot be read: .*item\.weight\.rows"),
        ({"other": [1]}, r"there are no rows in .*rows\.npz"),
    ],
)
def test_rows_that_have_no_place_are_a_sentence_and_no_version(ranker, tmp_path, content, sentence):
    np.savez(tmp_path / "rows.npz", **{name: np.asarray(value) for name, value in content.items()})
    with pytest.raises(ServeError, match=sentence):
        add(tmp_path / "rows.npz", ranker)
    assert (ranker.names(), ranker.current()) == (["1"], "1")


@pytest.fixture(scope="module")
def ranker(tmp_path_factory) -> Versions:
    folder = tmp_path_factory.mktemp("delta")
    publish(build("fp32", tables()).save(folder / "made").path, folder / "ranker")
    return Versions(folder / "ranker")


def test_a_table_that_may_be_two_is_not_changed(tmp_path):
    arrays = tables() | {"user.weight": np.zeros((ROWS, WIDTH), np.float32), "item.weight": np.zeros((ROWS, WIDTH), np.float32)}
    publish(build("fp32", arrays).save(tmp_path / "made").path, tmp_path / "ranker")
    np.savez(tmp_path / "rows.npz", **{"user.weight.ids": np.array([1]), "user.weight.rows": np.ones((1, WIDTH), np.float32)})
    with pytest.raises(ServeError, match="burnish keeps equal small arrays once, so they cannot be changed apart"):
        publish(tmp_path / "rows.npz", tmp_path / "ranker")


def test_a_table_of_several_columns_is_changed_by_the_row_of_the_whole_table(tmp_path):
    """Recipes cut one table of many columns' rows into one a column; the model's numbers still hold."""
    whole = np.random.default_rng(0).standard_normal((2 * ROWS, WIDTH)).astype(np.float32)
    spec = Input("ids", "int64", (2,), cardinality=(ROWS, ROWS))
    at = Node(Op.ADD, (Node(Op.INPUT, half=spec.halves[0]), weight("offsets", np.array([0, ROWS]))))
    x = Node(Op.RESHAPE, (Node(Op.LOOKUP, (weight("embedding.weight", whole), at)),), shape=(2 * WIDTH,))
    w = weight("w", np.arange(1, 2 * WIDTH + 1, dtype=np.float32)[None])
    score = Node(Op.RESHAPE, (Node(Op.LINEAR, (x, w, weight("b", np.zeros(1, np.float32)))),), shape=())
    graph = Graph((spec,), {"score": score})
    made = burnish.compile(graph, "int8-tables", {"ids": np.zeros((64, 2), np.int64)}, backend="native")
    assert any("[50:100]" in name for name in made.manifest.programs[0].facts["tables"].values())
    publish(made.save(tmp_path / "made").path, tmp_path / "ranker")
    new = np.zeros((2, WIDTH), np.float32)
    np.savez(tmp_path / "rows.npz", **{"embedding.weight.ids": np.array([3, ROWS + 4]), "embedding.weight.rows": new})
    publish(tmp_path / "rows.npz", tmp_path / "ranker")
    with burnish.load(Versions(tmp_path / "ranker").where("2")) as scorer:
        assert scorer.rows({"ids": np.array([[3, 4]])})[0] == pytest.approx(0, abs=1e-3)
        assert abs(scorer.rows({"ids": np.array([[4, 3]])})[0]) > 1


def test_artifacts_of_other_backends_say_so(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    made = burnish.compile(testing.dcn_v2(dense=5, ids=6, width=4, cross=1, deep=(16, 8)), "fp32", backend="onnxruntime")
    publish(made.save(tmp_path / "made").path, tmp_path / "ranker")
    np.savez(tmp_path / "rows.npz", **{"t.ids": np.array([1]), "t.rows": np.ones((1, 4), np.float32)})
    assert main(["publish", str(tmp_path / "rows.npz"), str(tmp_path / "ranker")]) == 2
    assert "is onnxruntime's; rows are changed in native artifacts only" in capsys.readouterr().err


def test_a_full_disk_adds_no_version(ranker, tmp_path, monkeypatch):
    np.savez(tmp_path / "rows.npz", **{"item.weight.ids": np.array([1]), "item.weight.rows": np.ones((1, WIDTH), np.float32)})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("burnish.serve.delta.shutil.copyfile", full)
    with pytest.raises(ServeError, match=r"the new version cannot be written beside .*: No space left on device\. Nothing was changed"):
        add(tmp_path / "rows.npz", ranker)
    assert ranker.names() == ["1"]
    assert [p.name for p in (ranker.path / "versions").iterdir()] == ["1"]
