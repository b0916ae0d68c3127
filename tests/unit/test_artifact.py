"""An artifact is written whole or not at all, and says which file is damaged. On a backend of the test's own: the interpreter."""

from __future__ import annotations

import os
import stat

import msgspec
import numpy as np
import pytest

import burnish
from burnish.backends.table import BACKENDS
from burnish.errors import ArtifactError
from burnish.host import Host
from burnish.recipe import Recipe
from burnish.runtime import artifact as artifacts
from burnish.runtime.artifact import Artifact, difference
from burnish.testing import dcn_v2, rows
from burnish.testing.interpreter_backend import InterpreterEngine

SMALL = Recipe(backend="interpreter")


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    monkeypatch.setitem(BACKENDS, "interpreter", "burnish.testing.interpreter_backend:Interpreter")


@pytest.fixture(scope="module")
def graph():
    return dcn_v2(2, 3, 2, 1, (3,), 20)


@pytest.fixture
def saved(graph, tmp_path):
    return burnish.compile(graph, SMALL).save(tmp_path / "out" / "ranker")


def everything(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_it_can_be_used_before_it_is_saved(graph):
    artifact = burnish.compile(graph, SMALL)
    with burnish.Scorer(artifact) as scorer:
        assert scorer.rows(rows(graph, 5)).shape == (5,)
    where = artifact.path
    assert where.is_dir()
    del artifact, scorer
    assert not where.exists()


def test_it_holds_what_the_layout_says(saved, graph):
    held = everything(saved.path)
    assert set(held) == {"manifest.json", "golden.npz", "program/interpreter/graph.pickle"}
    assert set(saved.manifest.files) == set(held) - {"manifest.json"}
    again = Artifact.read(saved.path)
    assert again.manifest == saved.manifest
    assert again.manifest.inputs == graph.inputs and again.manifest.recipe["backend"] == "interpreter"
    table, outputs = again.golden()
    assert {name: (array.shape, array.dtype) for name, array in table.items()} == {
        "dense": ((64, 2), np.float32),
        "cat": ((64, 3), np.int64),
    }
    with burnish.load(saved.path) as scorer:
        np.testing.assert_array_equal(scorer.rows(table), outputs["score"])


def test_golden_rows_are_taken_from_the_calibration_rows(graph):
    given = rows(graph, 200)
    table, _ = burnish.compile(graph, SMALL, calibration=given).golden()
    assert len(table["cat"]) == 64 and (table["cat"][[0, -1]] == given["cat"][[0, -1]]).all()
    table, _ = burnish.compile(graph, SMALL, calibration={name: array[:7] for name, array in given.items()}).golden()
    np.testing.assert_array_equal(table["dense"], given["dense"][:7])


def test_one_flipped_byte_anywhere_is_found_and_named(saved):
    random = np.random.default_rng(0)
    for name, good in everything(saved.path).items():
        places = range(len(good)) if name == "manifest.json" else random.integers(0, len(good), 25)
        for at in places:
            bad = bytearray(good)
            bad[at] ^= 1 << int(random.integers(8))
            (saved.path / name).write_bytes(bad)
            with pytest.raises(ArtifactError, match=f"^{name} in the artifact at .* is damaged"):
                saved.verify()
        (saved.path / name).write_bytes(good)
    saved.verify()


def test_a_missing_or_truncated_file_is_found_when_it_is_opened(saved):
    path = saved.path / "golden.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match=rf"golden\.npz in the artifact at .* has {len(whole) - 1} bytes, expected {len(whole)}"):
        burnish.load(saved.path)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"the artifact at .* lacks golden\.npz\. Copy it again, or compile it again"):
        burnish.load(saved.path)


def test_a_directory_without_an_artifact_says_so(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ArtifactError, match=rf"^there is no artifact at {path}: it has no manifest\.json"):
            burnish.load(path)


def test_a_newer_schema_is_named(saved):
    manifest = msgspec.structs.replace(saved.manifest, schema=2)
    artifacts.write_manifest(saved.path, manifest)
    with pytest.raises(ArtifactError, match=r"has schema 2; this burnish reads schema 1\. Use the burnish that made it"):
        burnish.load(saved.path)


def test_a_program_for_another_machine_is_refused(saved):
    program = msgspec.structs.replace(saved.manifest.programs[0], target="avx1024", cpu_flags=("avx1024f",))
    artifacts.write_manifest(saved.path, msgspec.structs.replace(saved.manifest, programs=(program,)))
    with pytest.raises(
        ArtifactError, match=r"was built for avx1024, and this machine lacks avx1024f \(.*\)\. Compile it with target '\w+'$"
    ):
        burnish.load(saved.path)


def test_a_program_of_another_architecture_is_refused_even_where_it_needs_no_flags(saved):
    (program,) = saved.manifest.programs
    foreign = msgspec.structs.replace(program, target="riscv64", arch="riscv64")
    artifacts.write_manifest(saved.path, msgspec.structs.replace(saved.manifest, programs=(foreign,)))
    here = Host.here().arch
    with pytest.raises(ArtifactError, match=rf"was built for riscv64, and this machine is {here}, not riscv64 \(.*\)\. Compile it with"):
        burnish.load(saved.path)
    artifacts.write_manifest(saved.path, msgspec.structs.replace(saved.manifest, programs=(foreign, program)))
    assert artifacts.Artifact.read(saved.path).program == program


def test_an_engine_that_computes_something_else_fails_verification(saved, monkeypatch):
    right = InterpreterEngine.rows
    monkeypatch.setattr(InterpreterEngine, "rows", lambda self, t, n: {name: y * 1.01 for name, y in right(self, t, n).items()})
    with pytest.raises(ArtifactError, match=r"golden output 'score' on this machine: it differs by .* 0\.0001 and 1e-05 are allowed"):
        burnish.load(saved.path, verify=True)


def test_an_engine_that_promises_its_bits_is_held_to_them(saved, monkeypatch):
    promised = msgspec.structs.replace(saved.manifest, golden=msgspec.structs.replace(saved.manifest.golden, exact=True))
    artifacts.write_manifest(saved.path, promised)
    promised = Artifact.read(saved.path)
    promised.verify()
    right = InterpreterEngine.rows
    monkeypatch.setattr(
        InterpreterEngine, "rows", lambda self, t, n: {k: np.nextafter(y, np.float32(2)) for k, y in right(self, t, n).items()}
    )
    with pytest.raises(ArtifactError, match=r"does not repeat its golden output 'score' bit for bit \(interpreter, any\); the largest"):
        promised.verify()


def test_an_older_artifact_is_replaced_whole(saved, graph):
    before = everything(saved.path)
    newer = burnish.compile(graph, SMALL, calibration=rows(graph, 9)).save(saved.path)
    assert everything(saved.path).keys() == before.keys() and newer.manifest.golden.rows == 9
    newer.verify()
    assert [path.name for path in saved.path.parent.iterdir()] == ["ranker"]  # nothing left beside it


def test_an_empty_directory_is_used(graph, tmp_path):
    burnish.compile(graph, SMALL).save(tmp_path)
    Artifact.read(tmp_path).verify()


def test_an_artifact_can_be_saved_twice(graph, tmp_path):
    artifact = burnish.compile(graph, SMALL).save(tmp_path / "a")
    artifact.save(tmp_path / "b").verify()
    (tmp_path / "b" / "golden.npz").write_bytes(b"damaged")  # in place: the first must not share it
    Artifact.read(tmp_path / "a").verify()


def test_a_directory_with_anything_else_in_it_is_left_alone(saved, graph, tmp_path):
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(
        ArtifactError, match=r"^cannot write an artifact at .*photos: it holds cat\.jpg, which is not part of one\. Choose an"
    ):
        burnish.compile(graph, SMALL).save(other)
    assert everything(other) == {"cat.jpg": b"cat"}
    (saved.path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"it holds notes\.txt"):
        burnish.compile(graph, SMALL).save(saved.path)
    with pytest.raises(ArtifactError, match=r"cannot write an artifact at .*cat\.jpg: it is a file"):
        burnish.compile(graph, SMALL).save(other / "cat.jpg")


def test_a_damaged_artifact_can_be_replaced(saved, graph):
    (saved.path / "manifest.json").write_text("{}")
    burnish.compile(graph, SMALL).save(saved.path).verify()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_directory_that_cannot_be_written_is_one_sentence(graph, tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(ArtifactError, match=r"^cannot write an artifact at .*: Permission denied\. Choose a directory that can be written"):
        burnish.compile(graph, SMALL).save(tmp_path / "ranker")


def test_a_path_below_a_file_is_one_sentence(graph, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"^cannot write an artifact at .*/file/ranker: .*\. Choose a directory that can be written$"):
        burnish.compile(graph, SMALL).save(tmp_path / "file" / "ranker")


def test_a_save_that_fails_changes_nothing(saved, graph, monkeypatch):
    before, artifact = everything(saved.path), burnish.compile(graph, SMALL, calibration=rows(graph, 9))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts.os, "link", full)  # no links there, and then no room for a copy
    monkeypatch.setattr(artifacts.shutil, "copyfile", full)
    with pytest.raises(ArtifactError, match=r"^cannot write the artifact at .*: No space left on device\. Nothing was changed there"):
        artifact.save(saved.path)
    assert everything(saved.path) == before
    assert [path.name for path in saved.path.parent.iterdir()] == ["ranker"]


def test_directories_are_exchanged_where_the_kernel_cannot_do_it_in_one_step(tmp_path, monkeypatch):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    monkeypatch.setattr(artifacts.ctypes, "CDLL", lambda *args, **kwargs: object())
    artifacts.exchange(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "is").read_text() == "new" and (tmp_path / "new" / "is").read_text() == "old"


def test_measured_numbers_are_kept_in_the_manifest(saved):
    saved.measured(latency_us={"p50": 12.5})
    saved.measured(rows=7)
    again = Artifact.read(saved.path)
    assert again.manifest.measured == {"latency_us": {"p50": 12.5}, "rows": 7}
    again.verify()


def test_a_build_for_another_machine_takes_its_golden_rows_from_the_interpreter(graph, monkeypatch):
    elsewhere = Host(cpu="other", arch="riscv64", cores=1, flags=())
    golden = burnish.compile(graph, SMALL, host=elsewhere).manifest.golden
    assert golden.made_by == "interpreter" and not golden.exact


def test_differences_are_relative_to_the_larger_of_one_and_the_largest_value():
    assert difference(np.array([0.5, 0.0]), np.array([0.25, 0.0])) == (0.25, 0.125)
    assert difference(np.array([110.0, 100.0]), np.array([100.0, 100.0])) == (0.1, 0.05)
    assert difference(np.array([np.nan, np.inf]), np.array([np.nan, np.inf])) == (0.0, 0.0)
    assert difference(np.array([1.0]), np.array([np.nan]))[0] == np.inf
    assert difference(np.zeros((2, 1)), np.zeros(2)) == (np.inf, np.inf)
