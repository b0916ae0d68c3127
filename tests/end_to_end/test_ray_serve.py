"""The exported Ray Serve application on a local Ray cluster."""

from __future__ import annotations

import importlib
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

import burnish
from burnish.export import export
from burnish.serve import protocol
from burnish.testing.builders import rows
from burnish.testing.models import dcn_v2

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")

PORT = 8417
URL = f"http://127.0.0.1:{PORT}/v2/models/ranker/infer"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    graph = dcn_v2(5, 7, 8, 2, (33, 17), 50)
    folder = tmp_path_factory.mktemp("ray")
    artifact = burnish.compile(graph, "int8", rows(graph, 300, seed=9)).save(folder / "artifact")
    export(artifact.path, "ray-serve", None, folder / "app")
    sys.path.insert(0, str(folder / "app"))
    ray.init(num_cpus=8, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(folder / "app")}})
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    yield folder / "app"
    serve.shutdown()
    ray.shutdown()
    sys.path.remove(str(folder / "app"))


@pytest.fixture(scope="module")
def deployed(exported: Path):
    """What deploys the application with so many replicas, and waits until they run; a handle to it."""
    application = importlib.import_module("app")

    def deploy(replicas: int):
        handle = serve.run(application.Ranker.options(num_replicas=replicas).bind(), name="ranker")
        while len(alive()) != replicas:
            time.sleep(0.2)
        return handle

    return deploy


def alive() -> list:
    return serve.status().applications["ranker"].deployments["ranker"].replica_states.get("RUNNING", 0) * [None]


def body(artifact: Path, candidates: int) -> tuple[bytes, dict[str, str], np.ndarray]:
    """A binary request, its headers, and the scores that burnish gives it here."""
    scorer = burnish.load(artifact)
    table, _ = scorer.artifact.golden()
    signature = protocol.Signature.of(scorer.inputs, scorer.outputs)
    tensors, data, given = [], b"", {"request": {}, "candidate": {}}
    for name, wire in signature.request.items():
        whole = table[wire.input][:, list(wire.columns)] if wire.columns is not None else table[wire.input]
        array = np.ascontiguousarray(whole[:1] if wire.side == "request" else whole[:candidates])
        given[wire.side][wire.input] = array[0] if wire.side == "request" else array
        size = {"binary_data_size": array.nbytes}
        tensors.append({"name": name, "datatype": wire.datatype, "shape": array.shape, "parameters": size})
        data += array.tobytes()
    text = msgspec.json.encode({"inputs": tensors, "parameters": {"binary_data_output": True}})
    return text + data, {"Inference-Header-Content-Length": str(len(text))}, scorer(given["request"], given["candidate"])


def ask(content: bytes, headers: dict[str, str]) -> np.ndarray:
    with urllib.request.urlopen(urllib.request.Request(URL, content, headers), timeout=20) as reply:
        text = reply.read()
        return np.frombuffer(text, np.float32, offset=int(reply.headers["Inference-Header-Content-Length"]))


class Callers:
    """Threads that ask without a pause, compare every answer, and count."""

    def __init__(self, content: bytes, headers: dict[str, str], scores: np.ndarray, threads: int = 3) -> None:
        self.right = self.wrong = 0
        self.failures: list[str] = []
        self._call = (content, headers)
        self._scores = scores
        self._end = time.monotonic() + 120  # in case nobody ends it
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while time.monotonic() < self._end:
            try:
                same = np.array_equal(ask(*self._call), self._scores)
            except OSError as error:
                self.failures.append(str(error))
                continue
            self.right += same
            self.wrong += not same

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end = 0.0
        for thread in self._threads:
            thread.join()

    def until(self, more: int) -> None:
        """Wait for so many more right answers, at most a minute."""
        wanted, end = self.right + more, time.monotonic() + 60
        while self.right < wanted and time.monotonic() < end:
            time.sleep(0.05)
        assert self.right >= wanted, self.failures[-3:]


def test_it_answers_with_the_scorers_bits_scales_under_load_and_outlives_a_killed_replica(exported: Path, deployed) -> None:
    content, headers, scores = body(exported / "artifact", 9)
    handle = deployed(1)
    assert np.array_equal(ask(content, headers), scores)
    with Callers(content, headers, scores) as callers:
        callers.until(20)
        deployed(4)
        callers.until(50)
        assert not callers.failures and not callers.wrong
        replicas = [a for a in ray.util.list_named_actors(all_namespaces=True) if "ranker#ranker" in a["name"]]
        assert len(replicas) == 4
        ray.kill(ray.get_actor(replicas[0]["name"], namespace=replicas[0]["namespace"]))
        callers.until(50)
    assert not callers.wrong and len(callers.failures) <= 3, callers.failures  # what was in flight at it, a call a thread at most
    while len(alive()) != 4:  # another takes its place
        time.sleep(0.2)
    assert handle.score.remote(*request_of(exported)).result().shape == scores.shape


def request_of(exported: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The same call as arrays, for the handle that other deployments would use."""
    scorer = burnish.load(exported / "artifact")
    table, _ = scorer.artifact.golden()
    halves = [(spec.name, half) for spec in scorer.inputs for half in spec.halves]
    taken = {half: table[name] if half.columns is None else table[name][:, list(half.columns)] for name, half in halves}
    request = {name: np.ascontiguousarray(taken[half][0]) for name, half in halves if half.side == "request"}
    return request, {name: np.ascontiguousarray(taken[half][:9]) for name, half in halves if half.side == "candidate"}


def test_a_bad_request_gets_one_sentence(exported: Path, deployed) -> None:
    deployed(1)
    with pytest.raises(urllib.error.HTTPError) as met:
        ask(b'{"inputs": []}', {})
    assert met.value.code == 400 and "error" in msgspec.json.decode(met.value.read())
