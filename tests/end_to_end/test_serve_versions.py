"""A new version takes the place of the old one while requests go on; one that is damaged in any way does not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import burnish
from burnish import testing
from burnish.errors import ArtifactError, ServeError
from burnish.runtime.artifact import Artifact, Manifest, digest, write_manifest
from burnish.serve.keeper import Keeper, refusal
from burnish.serve.process import Server, free_port
from burnish.serve.server import serve
from burnish.serve.versions import Versions, publish

pytest.importorskip("onnxruntime")
TABLE = {"dense": np.ones((3, 5), np.float32), "cat": np.ones((3, 6), np.int64)}
BODY = json.dumps(
    {
        "inputs": [
            {"name": "dense", "shape": [3, 5], "datatype": "FP32", "data": TABLE["dense"].tolist()},
            {"name": "cat", "shape": [3, 6], "datatype": "INT64", "data": TABLE["cat"].tolist()},
        ]
    }
).encode()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, Path]:
    """Two artifacts of unlike models that take the same inputs."""
    made = []
    for i in range(2):
        graph = testing.dcn_v2(dense=5, ids=6, width=4, cross=1 + i, deep=(16, 8))
        made.append(burnish.compile(graph, "fp32", backend="onnxruntime").save(tmp_path_factory.mktemp("made") / "artifact").path)
    return made[0], made[1]


@pytest.fixture(scope="module")
def scores(two) -> list[list[float]]:
    found = []
    for path in two:
        with burnish.load(path) as scorer:
            found.append(scorer.rows(TABLE).astype(float).tolist())
    assert found[0] != found[1]
    return found


@pytest.fixture
def versions(two, tmp_path) -> Versions:
    """Both, the first one current."""
    made = Versions(tmp_path / "ranker")
    assert [made.add(path) for path in two] == ["1", "2"]
    made.point("1")
    return made


def ask(server: Server, path: str, body: bytes | None = None) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url + path, body), timeout=30) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]


def infer(server: Server) -> tuple[str, list[float]]:
    """The version that answered, and its scores."""
    status, answer = ask(server, "/v2/models/ranker/infer", BODY)
    assert status == 200, answer
    return answer["model_version"], answer["outputs"][0]["data"]


def until(true: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def load(server: Server, version: str | None = None) -> tuple[int, Any]:
    body = {"parameters": {"version": version}} if version else {}
    return ask(server, "/v2/repository/models/ranker/load", json.dumps(body).encode())


def test_ten_swaps_under_load_fail_no_request_and_each_answer_is_of_one_version(versions, scores):
    with Server(versions.path, admin=True, workers=2) as server:
        failed, answered, ended = [], {"1": 0, "2": 0}, threading.Event()

        def client() -> None:
            while not ended.is_set():
                try:
                    version, found = infer(server)
                    assert found == pytest.approx(scores[int(version) - 1], abs=1e-7)
                    answered[version] += 1
                except Exception as error:  # whatever it is, the test tells it
                    failed.append(error)

        threads = [threading.Thread(target=client) for _ in range(3)]
        for thread in threads:
            thread.start()
        for i in range(10):
            assert load(server, "21"[i % 2]) == (200, None)
        ended.set()
        for thread in threads:
            thread.join()
        assert failed == []
        assert min(answered.values()) > 0
        assert "Traceback" not in server.log


def test_writing_the_pointer_is_enough_and_everything_tells_the_new_version(versions, scores):
    with Server(versions.path, metrics=free_port()) as server:
        assert infer(server) == ("1", pytest.approx(scores[0], abs=1e-7))
        versions.point("2")
        until(lambda: infer(server)[0] == "2")
        assert infer(server) == ("2", pytest.approx(scores[1], abs=1e-7))
        assert ask(server, "/v2/models/ranker")[1]["versions"] == ["2"]
        assert ask(server, "/v2/models/ranker/versions/2")[0] == 200
        assert ask(server, "/v2/models/ranker/versions/1") == (404, "model 'ranker' has no version '1'. It has '2'")
        told = ask(server, "/v2/repository/index", b"")[1]
        assert [(row["version"], row["state"]) for row in told] == [("1", "UNAVAILABLE"), ("2", "READY")]
        with urllib.request.urlopen(f"http://{server.host}:{server.options['metrics']}/metrics") as answer:
            assert 'version="2"' in answer.read().decode()


def test_a_worker_that_is_replaced_serves_the_current_version(versions):
    with Server(versions.path, admin=True) as server:
        assert load(server) == (200, None)  # the newest
        task = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        if not task.exists():
            pytest.skip("finds processes in /proc")
        os.kill(int(task.read_text().split()[0]), signal.SIGKILL)

        def answers() -> bool:
            try:
                return infer(server)[0] == "2"
            except OSError:
                return False

        until(answers)


def truncated(path: Path) -> str:
    model = path / "program" / "onnxruntime" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-10])
    return "model.onnx in the artifact at"


def flipped(path: Path) -> str:
    model = path / "program" / "onnxruntime" / "model.onnx"
    text = bytearray(model.read_bytes())
    text[len(text) // 2] ^= 1
    model.write_bytes(text)
    return "is damaged: its sha256 is not the one in manifest.json"


def incomplete(path: Path) -> str:
    (path / "manifest.json").unlink()
    return "there is no artifact at"


def unrepeatable(path: Path) -> str:
    """Whole, but it does not compute what it did: golden outputs of another model, hashes made to fit."""
    with np.load(path / "golden.npz") as kept:
        table = {name: kept[name] for name in kept.files}
    np.savez(path / "golden.npz", **{n: a + 1 if n.startswith("output:") else a for n, a in table.items()})
    manifest = msgspec.json.decode((path / "manifest.json").read_bytes(), type=Manifest)
    files = dict(manifest.files) | {"golden.npz": digest(path / "golden.npz")}
    write_manifest(path, msgspec.structs.replace(manifest, files=files))
    return "does not repeat its golden output"


def foreign(path: Path) -> str:
    """Made for a machine with an instruction that none has."""
    manifest = Artifact.read(path).manifest
    programs = tuple(msgspec.structs.replace(program, cpu_flags=("avx1024",)) for program in manifest.programs)
    write_manifest(path, msgspec.structs.replace(manifest, programs=programs))
    return "lacks avx1024"


@pytest.mark.parametrize("damage", [truncated, flipped, incomplete, unrepeatable, foreign])
def test_a_version_that_does_not_verify_is_not_served_and_the_pointer_goes_back(versions, scores, damage):
    with Server(versions.path, admin=True) as server:
        sentence = damage(versions.where("2"))
        status, error = load(server, "2")
        assert status == 400 and sentence in error
        assert infer(server) == ("1", pytest.approx(scores[0], abs=1e-7))
        until(lambda: versions.current() == "1")
        assert [row["state"] for row in ask(server, "/v2/repository/index", b"")[1]] == ["READY", "UNAVAILABLE"]
        assert sentence in ask(server, "/v2/repository/index", b"")[1][1]["reason"]


def test_a_corrupt_pointer_changes_nothing_and_is_put_right(versions, scores):
    with Server(versions.path) as server:
        for text in (b"", b"\xff\x00", b"3", b"../../etc", b"2" * 5000):
            versions.pointer.write_bytes(text)
            until(lambda: versions.pointer.read_bytes() == b"1\n")
        versions.pointer.unlink()
        until(versions.pointer.exists)
        assert infer(server) == ("1", pytest.approx(scores[0], abs=1e-7))
        assert "which is no version there. Write the name of one into it: 1, 2. Version 1 stays" in server.log


def test_calls_that_change_what_is_served_are_closed_by_default_and_know_one_model(versions, two):
    with Server(versions.path) as server:
        assert load(server) == (403, "this server does not change what it serves by a call. Start it with --admin")
        assert versions.current() == "1"
    with Server(versions.path, admin=True) as server:
        assert load(server, "../1") == (404, "there is no version '../1'. There are 1, 2")
        assert ask(server, "/v2/repository/models/other/load", b"")[0] == 404
        status, error = ask(server, "/v2/repository/models/ranker/unload", b"")
        assert status == 400 and error.startswith("model 'ranker' is the only one here and stays")
        assert ask(server, "/v2/repository/models/ranker/load", b"[1]")[0] == 400
        triton = pytest.importorskip("tritonclient.http")
        client = triton.InferenceServerClient(server.address)
        client.load_model("ranker")
        assert infer(server)[0] == "2"
        client.close()
    with Server(two[0], admin=True, name="ranker") as server:
        status, error = load(server)
        assert status == 400 and error.startswith("this server has one artifact and no versions")


def test_publish_adds_the_next_version_and_points_to_it(two, tmp_path):
    assert publish(two[0], tmp_path / "ranker") == "1"
    assert publish(two[1], tmp_path / "ranker") == "2"
    versions = Versions(tmp_path / "ranker")
    assert (versions.names(), versions.current()) == (["1", "2"], "2")
    (tmp_path / "broken").mkdir()
    with pytest.raises(ArtifactError, match="there is no artifact at"):
        publish(tmp_path / "broken", tmp_path / "ranker")
    assert (versions.names(), versions.current()) == (["1", "2"], "2")


def test_what_has_no_version_to_serve_is_a_sentence(tmp_path):
    (tmp_path / "versions").mkdir()
    with pytest.raises(ServeError, match=r"current cannot be read: .*\. Write the name of a version into it: there is none yet"):
        serve(tmp_path)


def test_a_full_disk_leaves_the_old_version(versions, tmp_path, monkeypatch, capsys):
    keeper = Keeper(versions, "1", tmp_path / "live")
    keeper.look()
    versions.point("2")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("burnish.serve.versions.os.replace", full)
        keeper.look()
    assert keeper.told.version == "1"
    assert "No space left on device. Version 1 stays" in capsys.readouterr().err


def test_a_pointer_that_vanishes_while_it_is_put_right_is_put_right_again(versions, tmp_path, monkeypatch):
    keeper = Keeper(versions, "1", tmp_path / "live")
    keeper.look()
    versions.pointer.write_bytes(b"nonsense")
    point = Versions.point

    def and_gone(self: Versions, name: str) -> object:
        found = point(self, name)
        self.pointer.unlink()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Versions, "point", and_gone)
        keeper.look()
    assert not versions.pointer.exists()
    keeper.look()
    assert versions.current() == "1"


def test_verifying_something_that_crashes_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("burnish.serve.keeper.sys.executable", shutil.which("false") or "/bin/false")
    assert refusal(tmp_path) == f"verifying {tmp_path} ended with status 1"
