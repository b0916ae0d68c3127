"""A new version beside the old one: shadow, canary, and going back by itself; by file, by call, by command."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import burnish
from burnish import testing
from burnish.cli import main
from burnish.errors import ServeError
from burnish.graph.node import Graph, Node, weight
from burnish.graph.ops import Op
from burnish.serve.process import Server, free_port
from burnish.serve.rollout import Limits, Rollout
from burnish.serve.versions import Versions, publish

pytest.importorskip("onnxruntime")
TABLE = {"dense": np.ones((3, 5), np.float32), "cat": np.ones((3, 6), np.int64)}
SOON = Limits(requests=20)


def body(id_: str = "") -> bytes:
    inputs = [
        {"name": "dense", "shape": [3, 5], "datatype": "FP32", "data": TABLE["dense"].tolist()},
        {"name": "cat", "shape": [3, 6], "datatype": "INT64", "data": TABLE["cat"].tolist()},
    ]
    return json.dumps({"inputs": inputs, **({"id": id_} if id_ else {})}).encode()


def save(graph: Graph, folder: Path) -> Path:
    return burnish.compile(graph, "fp32", backend="onnxruntime").save(folder / "artifact").path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """An artifact, one that scores alike, one whose scores have moved, and one with fewer ids."""
    graph = testing.dcn_v2(dense=5, ids=6, width=4, cross=1, deep=(16, 8))
    (name, score), *_ = graph.outputs
    nearly = Graph(graph.inputs, {name: Node(Op.MUL, (score, weight("near", np.array(1.0001, np.float32))))})
    moved = Graph(graph.inputs, {name: Node(Op.ADD, (score, weight("far", np.array(10, np.float32))))})
    return {
        "old": save(graph, tmp_path_factory.mktemp("old")),
        "alike": save(nearly, tmp_path_factory.mktemp("alike")),
        "moved": save(moved, tmp_path_factory.mktemp("moved")),
        "other": save(testing.dcn_v2(dense=5, ids=7, width=4, cross=1, deep=(16, 8)), tmp_path_factory.mktemp("other")),
        "fewer": save(testing.dcn_v2(dense=5, ids=6, width=4, cross=1, deep=(16, 8), cardinality=1), tmp_path_factory.mktemp("fewer")),
    }


@pytest.fixture
def versions(made, tmp_path) -> Versions:
    found = Versions(tmp_path / "ranker")
    publish(made["old"], found.path)
    found.try_out(Rollout(limits=SOON))
    return found


def ask(server: Server, path: str, data: bytes | None = None, **headers: str) -> tuple[int, Any]:
    sent = urllib.request.Request(server.url + path, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(sent, timeout=30) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]


def version_of(server: Server, id_: str = "", **headers: str) -> str:
    status, answer = ask(server, "/v2/models/ranker/infer", body(id_), **headers)
    assert status == 200, answer
    return answer["model_version"]


def until(true: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def index(server: Server) -> dict[str, tuple[str, str]]:
    return {row["version"]: (row["state"], row["reason"]) for row in ask(server, "/v2/repository/index", b"")[1]}


def metric(server: Server, name: str) -> float:
    text = urllib.request.urlopen(f"{server.url}/metrics").read().decode()
    return float(next(line for line in text.splitlines() if line.startswith(name + " ")).split()[-1])


def test_a_shadow_scores_what_the_current_version_answers_and_is_compared(versions, made):
    with Server(versions.path) as server:
        assert publish(made["alike"], versions.path, shadow=True) == "2"
        until(lambda: index(server)["2"] == ("READY", "shadow"))
        for _ in range(30):
            assert version_of(server) == "1"
        until(lambda: metric(server, "burnish_shadow_scores_total") >= 60)
        apart = metric(server, "burnish_shadow_difference_total") / metric(server, "burnish_shadow_scores_total")
        with burnish.load(made["old"]) as old, burnish.load(made["alike"]) as new:
            assert apart == pytest.approx(np.abs(old.rows(TABLE) - new.rows(TABLE)).mean(), rel=1e-3)
        assert ask(server, "/v2/models/ranker/versions/2")[0] == 404  # it answers nobody
        versions.try_out(Rollout())
        until(lambda: index(server)["2"][0] == "UNAVAILABLE")
        assert "Traceback" not in server.log


def test_a_canary_answers_its_share_and_the_same_requests_always(versions, made):
    with Server(versions.path, workers=2) as server:
        publish(made["alike"], versions.path, canary=0.3)
        until(lambda: index(server)["2"] == ("READY", "canary of 0.3 of the requests"))
        until(lambda: {version_of(server) for _ in range(20)} == {"1", "2"})
        time.sleep(0.3)  # the other worker has it, too
        first = {f"user-{i}": version_of(server, f"user-{i}") for i in range(60)}
        assert first == {id_: version_of(server, id_) for id_ in first}
        assert first == {id_: version_of(server, X_Request_Id=id_) for id_ in first}
        assert 5 <= sum(version == "2" for version in first.values()) <= 35
        assert ask(server, "/v2/models/ranker/versions/2/infer", body())[1]["model_version"] == "2"
        versions.point("2")  # good enough for everybody: the same version goes on, alone
        until(lambda: {version_of(server) for _ in range(10)} == {"2"})
        until(lambda: versions.rollout().candidate == "")
        assert index(server)["1"][0] == "UNAVAILABLE"


def test_a_version_whose_scores_move_is_taken_back_by_itself(versions, made):
    with Server(versions.path, admin=True) as server:
        for _ in range(30 * 16):
            version_of(server)  # what the version before did, of which one in 16 is looked at
        publish(made["moved"], versions.path)
        until(lambda: version_of(server) == "2")
        until(lambda: version_of(server) == "1")
        assert versions.current() == "1"
        assert index(server)["2"][0] == "UNAVAILABLE"
        assert "its scores have drifted by" in index(server)["2"][1] and "0.25 is allowed" in index(server)["2"][1]
        assert "version 2 is taken back: its scores have drifted" in server.log
        time.sleep(0.5)
        assert version_of(server) == "1"  # and it stays so


def test_a_canary_that_fails_is_taken_back_and_the_current_version_answered_all_it_had(versions, made):
    with Server(versions.path) as server:
        publish(made["fewer"], versions.path, canary=0.5)  # it lost ids that clients still send
        until(lambda: index(server)["2"][0] == "READY")
        statuses = []
        while index(server)["2"][0] == "READY":
            statuses.append(ask(server, "/v2/models/ranker/infer", body())[0])
            assert len(statuses) < 1000
        assert set(statuses) == {200, 400}
        assert "it failed on" in index(server)["2"][1]
        assert versions.rollout() == Rollout(mode="canary", share=0.5, limits=SOON)
        assert {ask(server, "/v2/models/ranker/infer", body())[0] for _ in range(20)} == {200}


def test_a_shadow_that_fails_is_taken_back_and_nobody_noticed(versions, made):
    with Server(versions.path) as server:
        publish(made["fewer"], versions.path, shadow=True)
        until(lambda: index(server)["2"][0] == "READY")
        n = 0
        while index(server)["2"][0] == "READY":
            assert version_of(server) == "1"
            n += 1
            assert n < 1000
        assert "it failed on 100.00% of its requests, the version before on 0.00%" in index(server)["2"][1]


def test_a_candidate_is_loaded_and_unloaded_by_calls(versions, made):
    triton = pytest.importorskip("tritonclient.grpc")
    versions.add(made["alike"])
    with Server(versions.path, admin=True, grpc=free_port()) as server:
        load = "/v2/repository/models/ranker/load"
        status, error = ask(server, load, b'{"parameters": {"version": "1", "mode": "canary"}}')
        assert (status, error) == (400, "version 1 is the current one. Try another beside it")
        status, error = ask(server, load, b'{"parameters": {"version": "2", "mode": "canary", "share": 2}}')
        assert (status, error) == (400, "the version cannot be tried: share is 2. Give a number above 0, and at most 1")
        assert ask(server, load, b'{"parameters": {"version": "2", "mode": "blue"}}')[0] == 400
        assert ask(server, load, b'{"parameters": {"version": "2", "mode": "canary", "share": 1}}') == (200, None)
        assert version_of(server) == "2"
        with triton.InferenceServerClient(f"{server.host}:{server.options['grpc']}") as client:
            from tritonclient.grpc import service_pb2

            states = {each.version: each.reason for each in client.get_model_repository_index().models}
            assert states == {"1": "", "2": "canary of 1 of the requests"}
            unload = service_pb2.RepositoryModelUnloadRequest(model_name="ranker")
            unload.parameters["version"].string_param = "2"
            client._client_stub.RepositoryModelUnload(unload)
            until(lambda: version_of(server) == "1")
            client.load_model("ranker")  # the newest
            assert version_of(server) == "2"


def test_a_file_that_cannot_be_followed_leaves_the_current_version_alone(versions, made):
    versions.add(made["other"])
    with Server(versions.path) as server:
        for text, sentence in (
            (b"{", "rollout.json cannot be followed: Input data was truncated"),
            (b'{"candidate": "9"}', "version 9 is not tried: there is no version '9'. There are 1, 2"),
            (b'{"candidate": "2", "mode": "canary"}', "its inputs or outputs are not those of version 1"),
            (b'{"candidate": "../2"}', "there is no version '../2'"),
            (b'{"shares": 1}', "Object contains unknown field `shares`"),
            (b'{"limits": {"latency": 0.5}}', "limits.latency is 0.5. Give a number of at least 1"),
        ):
            (versions.path / "rollout.json").write_bytes(text)
            until(lambda sentence=sentence: sentence in server.log)
        assert version_of(server) == "1"
        assert "Traceback" not in server.log


def test_a_fault_while_versions_are_followed_does_not_end_the_following(versions, made):
    versions.add(made["alike"])
    manifest = versions.where("1") / "manifest.json"
    with Server(versions.path) as server:
        text = manifest.read_bytes()
        manifest.unlink()  # of what is served: a candidate cannot be held against it
        versions.try_out(Rollout(candidate="2"))
        until(lambda: "the versions could not be followed: ArtifactError: there is no artifact at" in server.log)
        manifest.write_bytes(text)
        versions.try_out(Rollout(candidate="2", mode="canary", share=1))
        until(lambda: version_of(server) == "2")


def test_publish_says_what_the_version_is_for(made, tmp_path, capsys):
    to = str(tmp_path / "ranker")
    assert main(["publish", str(made["old"]), to, "--canary", "0.1"]) == 2
    assert "current cannot be read" in capsys.readouterr().err
    assert main(["publish", str(made["old"]), to]) == 0
    assert main(["publish", str(made["alike"]), to, "--canary", "0.1"]) == 0
    assert Versions(to).rollout() == Rollout(candidate="2", mode="canary", share=0.1)
    assert main(["publish", "2", to, "--shadow", "--json"]) == 0
    assert '"role": "shadow"' in capsys.readouterr().out
    assert Versions(to).rollout() == Rollout(candidate="2", mode="shadow", share=0.1)
    assert Versions(to).current() == "1"
    assert main(["publish", "2", to]) == 0
    assert (Versions(to).current(), Versions(to).names()) == ("2", ["1", "2"])
    assert main(["publish", "2", to, "--shadow", "--canary", "0.1"]) == 2
    with pytest.raises(ServeError, match=r"a canary cannot have the share 1\.5 of the requests"):
        publish("1", to, canary=1.5)
