"""A running server under load, over HTTP and gRPC, by the rules that an engine in process is measured by."""

import numpy as np
import pytest

import burnish
from burnish import testing
from burnish.errors import MeasureError, Overloaded, ServeError
from burnish.measure import load
from burnish.measure.traffic import Traffic
from burnish.serve.client import calls_of

try:
    from burnish.serve.process import Server, free_port
except ImportError:
    from burnish.serve.process import Server, free_port

pytest.importorskip("onnxruntime")
pytest.importorskip("mlperf_loadgen", reason="load tests need mlcommons-loadgen")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    graph = testing.dcn_v2(dense=5, ids=6, width=4, cross=1, deep=(16, 8), mixed=True)
    return burnish.compile(graph, recipe="fp32", backend="onnxruntime").save(tmp_path_factory.mktemp("served") / "ranker").path


@pytest.fixture(scope="module")
def traffic():
    random = np.random.default_rng(0)
    table = {"dense": random.standard_normal((300, 5)).astype(np.float32), "cat": random.integers(0, 1000, (300, 6))}
    return Traffic.from_rows(testing.inputs(5, 6, 1000, mixed=True), table, candidates=7, calls=50)


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_scores_over_the_wire_are_checked_and_timed_like_those_in_process(path, traffic, kind):
    if kind == "grpc":
        pytest.importorskip("grpc")
    with burnish.load(path) as scorer, Server(path, grpc=free_port() if kind == "grpc" else None, deadline_ms=60_000) as server:
        inputs = scorer.inputs
        address = f"{server.url}/v2/models/ranker" if kind == "http" else f"grpc://{server.host}:{server.options['grpc']}/ranker"
        calls = calls_of(address, inputs, connections=4)
        expected = [scorer(*call) for call in traffic]
        np.testing.assert_array_equal(calls[0](*traffic[3]), expected[3])
        found = load.server(calls, traffic, qps=250, seconds=2.0, p99_us=1e7, expected=expected, tolerance=0)
        assert found.checked > 0 and (found.wrong, found.refused, found.servers) == (0, 0, 4)
        assert found.queries > 459 and (found.valid or found.cause == "overloaded")  # on a machine that others use
        assert len(found.cores) in (0, 1)  # the threads that wait for the server leave its cores to it
        wrong = [score + 1 for score in expected]
        assert load.server(calls, traffic, qps=300, seconds=0.3, p99_us=1e6, expected=wrong).cause == "wrong answers"


def test_a_refusal_ends_the_run_with_the_servers_sentence(path, traffic):
    with burnish.load(path) as scorer, Server(path) as server:
        (call,) = calls_of(f"{server.url}/v2/models/nobody", scorer.inputs, 1)
        with pytest.raises(ServeError, match=r"^the server answered 404: .*nobody"):
            call(*traffic[0])

        def fails(request, candidates):
            asked.append(None)
            return call(request, candidates) if len(asked) > 3 else None

        asked: list[None] = []
        with pytest.raises(MeasureError, match=r"^the engine failed under load: ServeError: the server answered 404"):
            load.server(fails, traffic, qps=200, seconds=0.3, p99_us=1e6, expected=[None] * len(traffic))


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_server_that_refuses_what_it_cannot_do_in_time_is_overloaded(path, traffic, kind):
    if kind == "grpc":
        pytest.importorskip("grpc")
    with burnish.load(path) as scorer, Server(path, grpc=free_port() if kind == "grpc" else None, deadline_ms=0.001) as server:
        address = f"{server.url}/v2/models/ranker" if kind == "http" else f"grpc://{server.host}:{server.options['grpc']}/ranker"
        calls = calls_of(address, scorer.inputs, 2)
        expected = [scorer(*call) for call in traffic]
        with pytest.raises(Overloaded):
            for _ in range(200):
                calls[0](*traffic[0])
        found = load.server(calls, traffic, qps=300, seconds=0.5, p99_us=1e6, expected=expected)
        assert found.cause == "overloaded" and found.refused > 0
        assert found.reason == f"overloaded: {found.refused} of {found.queries} queries were refused at 300 a second"


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("localhost:8000", "localhost:8000 is no address of a model. Give http://host:port/v2/models/NAME or grpc://host:port/NAME"),
        ("http://127.0.0.1:1/v2/models/ranker", "nothing answers at http://127.0.0.1:1"),
    ],
)
def test_an_address_where_nothing_is_gets_a_sentence(address, sentence):
    with pytest.raises(ServeError) as caught:
        calls_of(address, (), 1)
    assert str(caught.value).startswith(sentence)
