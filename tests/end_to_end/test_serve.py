"""A served artifact, asked by an unmodified tritonclient and by hand: scores are the scorer's bits, and every mistake has a sentence."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import burnish
from burnish import testing
from burnish.errors import ArtifactError, ServeError
from burnish.graph.node import Graph
from burnish.serve.process import Server, free_port
from burnish.serve.server import Options, serve

pytest.importorskip("onnxruntime")
triton = pytest.importorskip("tritonclient.http")

DATATYPES = {"float32": "FP32", "int64": "INT64"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A ranker with mixed inputs and two outputs."""
    one = testing.dcn_v2(dense=5, ids=6, width=4, cross=1, deep=(16, 8), mixed=True)
    (_, score), *_ = one.outputs
    two = Graph(one.inputs, {"score": score, "logit": score.inputs[0]})
    artifact = burnish.compile(two, recipe="fp32", backend="onnxruntime")
    return artifact.save(tmp_path_factory.mktemp("served") / "ranker").path


@pytest.fixture(scope="module")
def scorer(path):
    with burnish.load(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(path):
    with Server(path, limits={"body_bytes": 1 << 20, "rows": 4096}) as started:
        yield started


@pytest.fixture(scope="module")
def client(server):
    opened = triton.InferenceServerClient(server.address, concurrency=8)
    yield opened
    opened.close()


def call(n: int, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One request's values, its candidates, and the same as a plain table."""
    rng = np.random.default_rng(seed)
    table = {"dense": rng.standard_normal((n, 5)).astype(np.float32), "cat": rng.integers(0, 1000, (n, 6))}
    request, candidates = {}, {}
    for spec in testing.inputs(5, 6, 1000, mixed=True):
        for half in spec.halves:
            if half.side == "request":
                table[spec.name][:, half.columns] = table[spec.name][:1, half.columns]
                request[spec.name] = table[spec.name][0][list(half.columns)]
            else:
                candidates[spec.name] = np.ascontiguousarray(table[spec.name][:, half.columns])
    return request, candidates, table


def wire(request: dict[str, np.ndarray], candidates: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{n}.request": a[None] for n, a in request.items()} | {f"{n}.candidate": a for n, a in candidates.items()}


def infer(client: Any, arrays: dict[str, np.ndarray], binary: bool, outputs: list[Any] | None = None, model: str = "ranker") -> Any:
    tensors = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
        tensor.set_data_from_numpy(array, binary_data=binary)
        tensors.append(tensor)
    return client.infer(model, tensors, outputs=outputs)


def ask(server: Server, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of a request by hand."""
    request = urllib.request.Request(server.url + path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("n", [1, 16, 129])
def test_tritonclient_gets_the_scorers_bits_in_every_form(client, scorer, n, binary_in, binary_out):
    request, candidates, table = call(n, seed=n)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("logit", "score")]
    for arrays, expected in ((wire(request, candidates), scorer(request, candidates)), (table, scorer.rows(table))):
        answer = infer(client, arrays, binary_in, outputs)
        for name in ("score", "logit"):
            assert answer.as_numpy(name).dtype == np.float32
            assert answer.as_numpy(name).tobytes() == expected[name].tobytes()


def test_several_requests_in_one_call_score_like_one_by_one(client, scorer):
    calls = [call(n, seed=n) for n in (7, 1, 30)]
    arrays = {}
    for name in wire(*calls[0][:2]):
        arrays[name] = np.concatenate([wire(request, candidates)[name] for request, candidates, _ in calls])
    arrays["offsets"] = np.array([0, 7, 8, 38])
    expected = np.concatenate([scorer(request, candidates)["score"] for request, candidates, _ in calls])
    assert infer(client, arrays, True).as_numpy("score").tobytes() == expected.tobytes()


def test_no_candidates_no_scores(client):
    request, candidates, _ = call(1)
    answer = infer(client, wire(request, {name: array[:0] for name, array in candidates.items()}), True)
    assert answer.as_numpy("score").shape == (0,)


def test_many_clients_at_once_get_their_own_scores(server, scorer):
    def work(seed: int) -> bool:
        request, candidates, _ = call(1 + seed, seed)
        expected = scorer(request, candidates)["score"].tobytes()
        client = triton.InferenceServerClient(server.address)  # a client is one thread's
        try:
            return all(infer(client, wire(request, candidates), True).as_numpy("score").tobytes() == expected for _ in range(20))
        finally:
            client.close()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_health_and_metadata_are_the_protocols(client, server):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("ranker") and client.is_model_ready("ranker", "1")
    extensions = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]
    assert client.get_server_metadata() == {"name": "burnish", "version": burnish.__version__, "extensions": extensions}
    told = client.get_model_metadata("ranker")
    assert (told["name"], told["versions"], told["platform"]) == ("ranker", ["1"], "burnish")
    assert told["inputs"] == [
        {"name": "dense", "datatype": "FP32", "shape": [-1, 5]},
        {"name": "cat", "datatype": "INT64", "shape": [-1, 6]},
    ]
    assert [o["name"] for o in told["outputs"]] == ["score", "logit"]
    assert {i["name"] for i in told["forms"]["request"]["inputs"]} == set(wire(*call(1)[:2]))


def test_the_repository_and_statistics_are_triton_s(client):
    assert client.get_model_repository_index() == [{"name": "ranker", "version": "1", "state": "READY", "reason": ""}]
    before = client.get_inference_statistics("ranker")["model_stats"][0]
    infer(client, call(3)[2], True)
    for asked in (("ranker", "1"), ("ranker",), ()):
        (after,) = client.get_inference_statistics(*asked)["model_stats"]
        assert (after["name"], after["version"]) == ("ranker", "1")
        assert after["inference_count"] == before["inference_count"] + 1
        stats = after["inference_stats"]
        assert stats["success"]["ns"] > stats["compute_infer"]["ns"] > 0
    with pytest.raises(triton.InferenceServerException, match="there is no model 'other'"):
        client.get_inference_statistics("other")


def test_what_is_not_there_is_not_found(server):
    assert not triton.InferenceServerClient(server.address).is_model_ready("other")
    for path, sentence in (
        ("/v2/models/other", "there is no model 'other'. This server has 'ranker'"),
        ("/v2/models/ranker/versions/2/ready", "model 'ranker' has no version '2'. It has '1'"),
        ("/", "there is nothing at /. The protocol's addresses begin with /v2"),
        ("/v2/models/ranker/x", "there is nothing at /v2/models/ranker/x. A model is at /v2/models/<name>"),
    ):
        status, body = ask(server, path)
        assert (status, json.loads(body)) == (404, {"error": sentence})
    assert ask(server, "/v2/models/other/infer", b"{}")[0] == 404


def test_each_address_takes_its_own_method(server):
    status, body = ask(server, "/v2/models/ranker/infer")
    assert (status, json.loads(body)["error"]) == (405, "/v2/models/ranker/infer takes POST, not GET")
    assert ask(server, "/v2", b"{}")[0] == 405


def test_a_clients_mistakes_have_a_sentence(client, server):
    _, _, table = call(3)
    table["cat"][2, 4] = 1000
    with pytest.raises(
        triton.InferenceServerException, match=r"\[400\] input 'cat' has id 1000 at row 2, column 4; ids there lie in \[0, 1000\)"
    ):
        infer(client, table, True)
    with pytest.raises(triton.InferenceServerException, match=r"\[400\] input 'cat' is missing"):
        infer(client, {"dense": table["dense"]}, True)
    with pytest.raises(triton.InferenceServerException, match=r"\[400\] input 'dense' has datatype 'INT64'; it must be FP32"):
        infer(client, {"dense": table["dense"].astype(np.int64), "cat": table["cat"]}, True)
    assert ask(server, "/v2/models/ranker/infer", b"{}", content_encoding="gzip")[0] == 415


def test_a_body_over_the_limit_is_refused_and_not_read(server):
    sentence = "the body has 2000000 bytes; at most 1048576 are allowed"
    connection = http.client.HTTPConnection(server.address, timeout=10)
    connection.putrequest("POST", "/v2/models/ranker/infer")
    connection.putheader("Content-Length", "2000000")
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]) == (413, sentence)
    connection.close()
    connection = http.client.HTTPConnection(server.address, timeout=10)
    parts = (b"x" * 65536 for _ in range(20))
    try:
        connection.request("POST", "/v2/models/ranker/infer", body=parts, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # the answer came before all was sent, and then the connection ended
    connection.close()
    assert ask(server, "/v2/health/live")[0] == 200


def test_a_chunked_body_within_the_limit_is_scored(server):
    message = {
        "inputs": [
            {"name": n, "shape": list(a.shape), "datatype": DATATYPES[a.dtype.name], "data": a.tolist()} for n, a in call(2)[2].items()
        ]
    }
    body = json.dumps(message).encode()
    connection = http.client.HTTPConnection(server.address, timeout=10)
    connection.request(
        "POST", "/v2/models/ranker/infer", body=iter([body[:99], body[99:]]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
    )
    assert len(json.loads(connection.getresponse().read())["outputs"][0]["data"]) == 2
    connection.close()


@given(
    damage=st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), min_size=1, max_size=4), cut=st.integers(0, 99), keep=st.booleans()
)
@settings(max_examples=100, deadline=None)
def test_no_body_makes_the_server_fail(server, damage, cut, keep):
    request, candidates, _ = call(3)
    inputs, raw = [], b""
    for name, array in wire(request, candidates).items():
        told = {"binary_data_size": array.nbytes}
        inputs.append({"name": name, "shape": list(array.shape), "datatype": DATATYPES[array.dtype.name], "parameters": told})
        raw += array.tobytes()
    header = json.dumps({"inputs": inputs}).encode()
    body = bytearray(header + raw)
    for at, byte in damage:
        body[at % len(body)] = byte
    status, answer = ask(
        server, "/v2/models/ranker/infer", bytes(body if keep else body[: -1 - cut]), inference_header_content_length=str(len(header))
    )
    assert status in (200, 400, 413)
    assert status == 200 or json.loads(answer)["error"]


def test_a_broken_http_request_ends_its_connection_only(server):
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall(b"\0\1\2 nonsense\r\n\r\n")
        assert connection.recv(100).startswith((b"HTTP/1.1 400", b""))
    assert ask(server, "/v2/health/live")[0] == 200


@pytest.mark.parametrize("announced", [b"Content-Length: 500\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"])
def test_a_client_that_goes_away_while_it_sends_is_not_a_fault(path, announced):
    with Server(path) as server:
        with socket.create_connection((server.host, server.port), timeout=10) as connection:
            connection.sendall(b"POST /v2/models/ranker/infer HTTP/1.1\r\nHost: x\r\n" + announced)
            time.sleep(0.2)
        for _ in range(200):
            text = ask(server, "/metrics")[1]
            ended = [counted(text, f'burnish_requests_total{{status="{status}"}}') for status in (499, 400, 500)]
            if any(ended):
                break
            time.sleep(0.02)
        assert sum(ended) == 1 and ended[2] == 0
        assert "Traceback" not in server.log


def counted(text: bytes, name: str) -> float:
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text.decode(), re.M).group(1))


def test_all_workers_count_on_one_board(path):
    with Server(path, workers=2, metrics=free_port()) as server:
        assert ask(server, "/metrics")[0] == 404  # it has its own port
        url = f"http://{server.host}:{server.options['metrics']}/metrics"
        client = triton.InferenceServerClient(server.address)
        for seed in range(10):
            infer(client, call(3 + seed, seed)[2], True, model="ranker")
        ask(server, "/v2/models/ranker/infer", b"{}")
        text = urllib.request.urlopen(url).read()
        assert counted(text, 'burnish_requests_total{status="200"}') == 10
        assert counted(text, 'burnish_requests_total{status="400"}') == 1
        assert counted(text, "burnish_candidates_sum") == sum(3 + seed for seed in range(10))
        assert counted(text, 'burnish_candidates_bucket{le="4.0"}') == 2
        assert counted(text, "burnish_compute_seconds_count") == 10
        assert counted(text, "burnish_compute_seconds_sum") < counted(text, "burnish_request_seconds_sum")
        assert b'burnish_info{backend="onnxruntime",model="ranker",target="any",version="1"} 1.0' in text
        client.close()


def test_metrics_are_at_the_same_port_unless_they_have_their_own(server):
    assert b"# TYPE burnish_request_seconds histogram" in ask(server, "/metrics")[1]


def test_a_port_in_use_is_told_before_anything_starts(server, path):
    sentence = f"port {server.port} of 127.0.0.1 is in use by another process. Choose another with --http"
    with pytest.raises(ServeError, match=re.escape(sentence)):
        serve(path, Options(http=server.port))
    with pytest.raises(ServeError, match=r"is in use by another process\. Choose another with --metrics"):
        serve(path, Options(http=free_port(), metrics=server.port))


def test_what_cannot_be_served_has_a_sentence(path, tmp_path):
    with pytest.raises(ArtifactError, match=r"there is no artifact at"):
        serve(tmp_path)
    with pytest.raises(ServeError, match=r"'a b' cannot be the name of a model\. Use letters, digits"):
        serve(path, Options(name="a b"))
    with pytest.raises(ServeError, match=r"a server cannot have 0 workers\. Give at least 1"):
        serve(path, Options(workers=0))
    with pytest.raises(ServeError, match=r"no\.such\.host:8000 is not an address to listen at"):
        serve(path, Options(host="no.such.host"))
    with pytest.raises(ServeError, match=r"cannot listen at 192\.0\.2\.1:\d+: .*\. Choose another with --http"):
        serve(path, Options(host="192.0.2.1", http=free_port()))


def test_a_worker_that_cannot_load_ends_the_server_with_a_sentence(path, tmp_path):
    damaged = shutil.copytree(path, tmp_path / "ranker")
    model = damaged / "program" / "onnxruntime" / "model.onnx"
    model.write_bytes(b"\xff" * model.stat().st_size)
    with pytest.raises(ServeError, match=r"a worker that serves .*ranker could not start"), Server(damaged):
        pass


def half_sent(server: Server) -> tuple[socket.socket, bytes]:
    """A connection with half of a request on it, and the other half."""
    message = {
        "inputs": [
            {"name": n, "shape": list(a.shape), "datatype": DATATYPES[a.dtype.name], "data": a.tolist()} for n, a in call(2)[2].items()
        ]
    }
    body = json.dumps(message).encode()
    connection = socket.create_connection((server.host, server.port), timeout=10)
    connection.sendall(b"POST /v2/models/ranker/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:60])
    time.sleep(0.2)  # until a worker has it
    return connection, body[60:]


@pytest.mark.parametrize(("workers", "number"), [(1, signal.SIGTERM), (2, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_finishes_the_requests_in_flight_and_takes_no_new_ones(path, workers, number):
    with Server(path, workers=workers) as server:
        connection, rest = half_sent(server)
        server.process.send_signal(number)
        for _ in range(200):
            try:
                socket.create_connection((server.host, server.port), timeout=1).close()
            except OSError:
                break
            time.sleep(0.02)
        else:
            pytest.fail("the server still takes connections")
        connection.sendall(rest)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")
        connection.close()
        assert server.process.wait(10) == 0
        assert "Traceback" not in server.log


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_killed_worker_is_replaced_and_a_killed_server_leaves_none(path):
    with Server(path) as server:
        client = triton.InferenceServerClient(server.address)
        infer(client, call(3)[2], True)
        (worker,) = children(server.process.pid)
        os.kill(worker, signal.SIGKILL)
        for _ in range(500):
            if children(server.process.pid) not in ([worker], []) and _live(server):
                break
            time.sleep(0.02)
        infer(client, call(3)[2], True)
        assert counted(ask(server, "/metrics")[1], 'burnish_requests_total{status="200"}') == 2
        (worker,) = children(server.process.pid)
        server.process.kill()
        for _ in range(500):
            if not Path(f"/proc/{worker}").exists():
                break
            time.sleep(0.02)
        assert not Path(f"/proc/{worker}").exists()


def _live(server: Server) -> bool:
    try:
        return ask(server, "/v2/health/live")[0] == 200
    except OSError:
        return False


def test_the_native_engine_is_served_with_its_bits(tmp_path):
    native = pytest.importorskip("burnish.backends.native").Native()
    if native.missing():
        pytest.skip(native.missing())
    artifact = burnish.compile(testing.dcn_v2(dense=5, ids=6, width=4, cross=1, deep=(16, 8), mixed=True), "fp32", backend="native")
    path = artifact.save(tmp_path / "ranker").path
    with burnish.load(path) as scorer, Server(path, workers=2) as server:
        client = triton.InferenceServerClient(server.address)
        for n in (1, 37, 129):
            request, candidates, table = call(n, seed=n)
            for arrays, expected in ((wire(request, candidates), scorer(request, candidates)), (table, scorer.rows(table))):
                assert infer(client, arrays, True).as_numpy("score").tobytes() == expected.tobytes()
        client.close()


def test_serving_imports_no_torch_and_no_compiler():
    heavy = ("torch", "ziglang", "onnx", "scipy", "polars", "altair", "cryptography", "opentelemetry", "grpc")
    code = f"import sys, burnish.serve.server; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_kserves_client_works_unmodified(server):
    """It is not among the tests' packages, as it brings half a cluster; what it reads of health is checked in any case."""
    assert ask(server, "/v2/health/live") == (200, b'{"live":true}')
    assert ask(server, "/v2/health/ready") == (200, b'{"ready":true}')
    assert json.loads(ask(server, "/v2/models/ranker/ready")[1]) == {"name": "ranker", "ready": True}
    kserve = pytest.importorskip("kserve")
    request, candidates, _ = call(5)

    async def main() -> np.ndarray:
        client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", timeout=10))
        assert await client.is_server_live(server.url) and await client.is_model_ready(server.url, "ranker")
        tensors = []
        for name, array in wire(request, candidates).items():
            tensor = kserve.InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
            tensor.set_data_from_numpy(array, binary_data=True)
            tensors.append(tensor)
        sent = kserve.InferRequest(model_name="ranker", infer_inputs=tensors)
        answer = await client.infer(server.url, sent, model_name="ranker")
        return next(output.as_numpy() for output in answer.outputs if output.name == "score")

    assert asyncio.run(main()).shape == (5,)


def test_the_aio_client_gets_the_scorers_bits(server, scorer):
    aio = pytest.importorskip("tritonclient.http.aio")
    request, candidates, _ = call(9)
    expected = scorer(request, candidates)["score"].tobytes()

    async def main() -> list[bytes]:
        async with aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_ready() and await client.is_model_ready("ranker")
            tensors = []
            for name, array in wire(request, candidates).items():
                tensor = aio.InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
                tensor.set_data_from_numpy(array)
                tensors.append(tensor)
            answers = await asyncio.gather(*(client.infer("ranker", tensors) for _ in range(20)))
            return [answer.as_numpy("score").tobytes() for answer in answers]

    assert asyncio.run(main()) == [expected] * 20
