"""The gRPC side of a server, asked by an unmodified tritonclient and by hand: the scorer's bits, and REST's sentences."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import burnish
from burnish import testing
from burnish.errors import ServeError
from burnish.graph.node import Graph
from burnish.serve import grpc_server
from burnish.serve.messages import protocol
from burnish.serve.process import Server, free_port
from burnish.serve.server import Options, serve

pytest.importorskip("onnxruntime")
grpc = pytest.importorskip("grpc")
triton = pytest.importorskip("tritonclient.grpc")
DATATYPES = {"float32": "FP32", "int64": "INT64"}
EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]
FIELDS = {"float32": "fp32_contents", "int64": "int64_contents"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A ranker with mixed inputs and two outputs."""
    one = testing.dcn_v2(dense=5, ids=6, width=4, cross=1, deep=(16, 8), mixed=True)
    (_, score), *_ = one.outputs
    artifact = burnish.compile(Graph(one.inputs, {"score": score, "logit": score.inputs[0]}), recipe="fp32", backend="onnxruntime")
    return artifact.save(tmp_path_factory.mktemp("served") / "ranker").path


@pytest.fixture(scope="module")
def scorer(path):
    with burnish.load(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(path):
    with Server(path, grpc=free_port(), limits={"body_bytes": 1 << 20, "rows": 4096}) as started:
        yield started


def address(server: Server) -> str:
    return f"{server.host}:{server.options['grpc']}"


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(address(server)) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(server):
    """ModelInfer, and the message that it takes, without a client."""
    with grpc.insecure_channel(address(server)) as channel:
        request, response = (protocol()[name] for name in protocol().methods["ModelInfer"])
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        yield call, request


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


def tensors(arrays: dict[str, np.ndarray], kind: Any = None) -> list[Any]:
    made = []
    for name, array in arrays.items():
        tensor = (kind or triton.InferInput)(name, list(array.shape), DATATYPES[array.dtype.name])
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


def typed(request: Any, arrays: dict[str, np.ndarray], **more: Any) -> Any:
    """A message with typed contents."""
    message = request(model_name="ranker", **more)
    for name, array in arrays.items():
        tensor = message.inputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
        getattr(tensor.contents, FIELDS[array.dtype.name]).extend(array.ravel().tolist())
    return message


def test_the_messages_have_the_names_and_numbers_of_the_protocol():
    pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")
    config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    known = {**config.DESCRIPTOR.message_types_by_name, **pb2.DESCRIPTOR.message_types_by_name}
    ours = protocol()

    def facts(field: Any) -> tuple[Any, ...]:
        one_of = field.containing_oneof and field.containing_oneof.name
        kind = field.TYPE_INT32 if field.type == field.TYPE_ENUM else field.type  # the same on the wire
        return field.name, field.number, kind, field.message_type and field.message_type.full_name, one_of

    def agree(mine: Any, theirs: Any) -> None:
        for field in mine.fields:
            other = theirs.fields_by_name[field.name]
            assert facts(field) == facts(other)
            if field.message_type:
                agree(field.message_type, other.message_type)

    for name, message in ours.messages.items():
        agree(message.DESCRIPTOR, known[name])
    service = pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for name, types in ours.methods.items():
        method = service.methods_by_name[name]
        assert types == (method.input_type.name, method.output_type.name)
        assert (name in ours.streams) == method.server_streaming == method.client_streaming
    sent = pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"1", b"2"])
    sent.parameters["timeout"].int64_param = 7
    sent.inputs.add(name="x", shape=[1, 2]).contents.int64_contents.extend([1, 2])
    assert ours["ModelInferRequest"].FromString(sent.SerializeToString()).SerializeToString(deterministic=True) == sent.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("n", [1, 16, 129])
def test_tritonclient_gets_the_scorers_bits_in_both_forms(client, scorer, n):
    request, candidates, table = call(n, seed=n)
    outputs = [triton.InferRequestedOutput("logit"), triton.InferRequestedOutput("score")]
    for arrays, expected in ((wire(request, candidates), scorer(request, candidates)), (table, scorer.rows(table))):
        answer = client.infer("ranker", tensors(arrays), outputs=outputs, request_id="r7", model_version="1")
        assert [output.name for output in answer.get_response().outputs] == ["logit", "score"]
        assert answer.get_response().id == "r7"
        for name in ("score", "logit"):
            assert answer.as_numpy(name).dtype == np.float32
            assert answer.as_numpy(name).tobytes() == expected[name].tobytes()


def test_several_requests_in_one_call_score_like_one_by_one(client, scorer):
    calls = [call(n, seed=n) for n in (7, 1, 30)]
    arrays = {name: np.concatenate([wire(*each[:2])[name] for each in calls]) for name in wire(*calls[0][:2])}
    arrays["offsets"] = np.array([0, 7, 8, 38])
    expected = np.concatenate([scorer(request, candidates)["score"] for request, candidates, _ in calls])
    assert client.infer("ranker", tensors(arrays)).as_numpy("score").tobytes() == expected.tobytes()


def test_no_candidates_no_scores(client):
    request, candidates, _ = call(1)
    answer = client.infer("ranker", tensors(wire(request, {name: array[:0] for name, array in candidates.items()})))
    assert answer.as_numpy("score").shape == (0,)


def test_typed_contents_come_back_as_typed_contents(stub, scorer):
    infer, request = stub
    _, _, table = call(9)
    answer = infer(typed(request, table))
    expected = scorer.rows(table)
    assert not answer.raw_output_contents
    for output in answer.outputs:
        assert np.array(output.contents.fp32_contents, np.float32).tobytes() == expected[output.name].tobytes()


def test_the_aio_client_and_many_callers_get_their_own_scores(server, scorer):
    aio = pytest.importorskip("tritonclient.grpc.aio")

    async def main() -> bool:
        async with aio.InferenceServerClient(address(server)) as client:

            async def one(seed: int) -> bool:
                request, candidates, _ = call(1 + seed % 8, seed)
                answer = await client.infer("ranker", tensors(wire(request, candidates)))
                return answer.as_numpy("score").tobytes() == scorer(request, candidates)["score"].tobytes()

            return all(await asyncio.gather(*(one(seed) for seed in range(100))))

    assert asyncio.run(main())


def test_health_metadata_repository_and_statistics_are_the_protocols(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("ranker") and client.is_model_ready("ranker", "1")
    with pytest.raises(triton.InferenceServerException, match="there is no model 'other'"):
        client.is_model_ready("other")
    told = client.get_server_metadata(as_json=True)
    assert told == {"name": "burnish", "version": burnish.__version__, "extensions": EXTENSIONS}
    told = client.get_model_metadata("ranker")
    assert (told.name, list(told.versions), told.platform) == ("ranker", ["1"], "burnish")
    assert [(t.name, t.datatype, list(t.shape)) for t in told.inputs] == [("dense", "FP32", [-1, 5]), ("cat", "INT64", [-1, 6])]
    assert [t.name for t in told.outputs] == ["score", "logit"]
    (model,) = client.get_model_repository_index().models
    assert (model.name, model.version, model.state) == ("ranker", "1", "READY")
    before = client.get_inference_statistics("ranker").model_stats[0]
    client.infer("ranker", tensors(call(3)[2]))
    after = client.get_inference_statistics("ranker").model_stats[0]
    assert after.inference_count == before.inference_count + 1
    assert after.inference_stats.success.ns > after.inference_stats.compute_infer.ns > 0


def refusal(work: Any) -> tuple[str, str]:
    """The status and the sentence of a call that is refused."""
    with pytest.raises((triton.InferenceServerException, grpc.RpcError)) as met:
        work()
    error = met.value
    if isinstance(error, grpc.RpcError):
        return error.code().name, error.details()
    return str(error.status()).removeprefix("StatusCode."), error.message()


def test_mistakes_have_a_status_and_rests_sentences(client, stub):
    infer, request = stub
    _, _, table = call(3)
    beyond = table["cat"].copy()
    beyond[2, 4] = 1000
    classes = [triton.InferRequestedOutput("score", class_count=3)]
    for arrays, outputs, sentence in (
        (table | {"cat": beyond}, None, "input 'cat' has id 1000 at row 2, column 4; ids there lie in [0, 1000)"),
        ({"dense": table["dense"]}, None, "input 'cat' is missing. The model takes 'dense', 'cat'"),
        (table | {"cat": table["dense"]}, None, "input 'cat' has datatype 'FP32'; it must be INT64"),
        ({n: np.repeat(a, 2000, 0) for n, a in table.items()}, None, "input 'dense' has 6000 rows; at most 4096 are allowed"),
        (table, [triton.InferRequestedOutput("x")], "output 'x' is not one of the model's, which are 'score', 'logit'"),
        (table, classes, "output 'score' asks for classification or shared memory, which are not supported"),
    ):
        told = refusal(lambda arrays=arrays, outputs=outputs: client.infer("ranker", tensors(arrays), outputs=outputs))
        assert told == ("INVALID_ARGUMENT", sentence)
    told = refusal(lambda: client.infer("other", tensors(table)))
    assert told == ("NOT_FOUND", "there is no model 'other'. This server has 'ranker'")
    told = refusal(lambda: client.infer("ranker", tensors(table), model_version="2"))
    assert told == ("NOT_FOUND", "model 'ranker' has no version '2'. It has '1'")
    status, sentence = refusal(lambda: infer(request(model_name="ranker")))
    assert status == "INVALID_ARGUMENT" and sentence.startswith("input 'dense.request' is missing. The model takes")


def test_what_only_messages_can_get_wrong_has_a_sentence(stub):
    infer, request = stub
    _, _, table = call(3)

    def short(message: Any) -> None:
        del message.inputs[0].contents.fp32_contents[:2]

    def elsewhere(message: Any) -> None:
        message.inputs[1].contents.int_contents.append(1)

    def both(message: Any) -> None:
        message.raw_input_contents.extend([table["dense"].tobytes(), table["cat"].tobytes()])

    def one(message: Any) -> None:
        message.raw_input_contents.append(b"")

    def few(message: Any) -> None:
        for tensor in message.inputs:
            tensor.ClearField("contents")
        message.raw_input_contents.extend([b"1234", table["cat"].tobytes()])

    def text(message: Any) -> None:
        message.parameters["timeout"].string_param = "1"

    def shared(message: Any) -> None:
        message.inputs[0].parameters["shared_memory_region"].string_param = "r"

    for damage, sentence in (
        (short, "input 'dense' has 13 values in fp32_contents, but says shape [3, 5]"),
        (elsewhere, "input 'cat' has its data in int_contents, int64_contents; INT64 goes into int64_contents"),
        (both, "input 'dense' has both contents and raw_input_contents. Send its data once"),
        (one, "the request has 2 inputs and 1 raw_input_contents. Send the contents of each, in order"),
        (few, "input 'dense' has 4 bytes in raw_input_contents; FP32 of shape [3, 5] takes 60"),
        (text, "the parameter timeout is a string_param. Give an int64_param"),
        (shared, "input 'dense' is in shared memory, which is not supported. Send its data in the body"),
    ):
        message = typed(request, table)
        damage(message)
        assert refusal(lambda message=message: infer(message)) == ("INVALID_ARGUMENT", sentence)


def test_a_message_over_the_limit_is_refused(stub, server):
    infer, request = stub
    assert refusal(lambda: infer(request(model_name="ranker", raw_input_contents=[bytes(2 << 20)])))[0] == "RESOURCE_EXHAUSTED"


def test_bytes_that_are_no_message_end_one_call(server, client):
    with grpc.insecure_channel(address(server)) as channel:
        raw = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        rng = np.random.default_rng(0)
        for size in (1, 7, 300):
            assert refusal(lambda size=size: raw(rng.bytes(size)))[0] in ("INVALID_ARGUMENT", "NOT_FOUND")
        whole = protocol()["ModelInferRequest"](model_name="ranker").SerializeToString()
        assert refusal(lambda: raw(whole[:-1])) == ("INVALID_ARGUMENT", "the message is not a ModelInferRequest")
        assert refusal(lambda: channel.unary_unary("/inference.GRPCInferenceService/TraceSetting")(b""))[0] == "UNIMPLEMENTED"
    assert client.is_server_live()


def test_what_cannot_be_in_time_is_resource_exhausted(path):
    with Server(path, grpc=free_port()) as server, triton.InferenceServerClient(address(server)) as client:
        table = {name: np.repeat(array, 20000, 0) for name, array in call(1)[2].items()}
        client.infer("ranker", tensors(table))  # and so it is known what it takes
        status, sentence = refusal(lambda: client.infer("ranker", tensors(table), timeout=10))
        assert status == "RESOURCE_EXHAUSTED" and "20000 rows take about" in sentence and "the request's time is 0.01 ms" in sentence
        assert refusal(lambda: client.infer("ranker", tensors(table), client_timeout=0.001))[0] in (
            "DEADLINE_EXCEEDED",
            "RESOURCE_EXHAUSTED",
        )
        client.infer("ranker", tensors(table), client_timeout=30)


def test_two_workers_share_the_port_and_end_with_a_signal(path, scorer):
    with Server(path, grpc=free_port(), workers=2) as server:

        def work(seed: int) -> bool:
            request, candidates, _ = call(1 + seed, seed)
            expected = scorer(request, candidates)["score"].tobytes()
            with triton.InferenceServerClient(address(server)) as client:
                return all(
                    client.infer("ranker", tensors(wire(request, candidates))).as_numpy("score").tobytes() == expected for _ in range(10)
                )

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 10
        assert "Traceback" not in server.log


def test_without_grpcio_or_its_port_there_is_a_sentence(path, server, monkeypatch):
    taken = server.options["grpc"]
    with pytest.raises(ServeError, match=re.escape(f"port {taken} of 127.0.0.1 is in use by another process. Choose another with --grpc")):
        serve(path, Options(http=free_port(), grpc=taken))
    monkeypatch.setattr(grpc_server, "find_spec", lambda name: None)
    sentence = "serving gRPC needs grpcio, which is not installed. Install it: pip install 'burnish[grpc]'"
    with pytest.raises(ServeError, match=re.escape(sentence)):
        serve(path, Options(http=free_port(), grpc=free_port()))


def test_a_stream_answers_each_request_in_order_and_survives_a_mistake(server, scorer):
    answers: list[Any] = []
    with triton.InferenceServerClient(address(server)) as client:
        client.start_stream(lambda result, error: answers.append(error or result))
        expected = []
        for n in (3, 0, 5):
            request, candidates, _ = call(max(n, 1), seed=n)
            expected.append(scorer(request, candidates)["score"].tobytes())
            arrays = wire(request, candidates) if n else {"dense": np.zeros((1, 5), np.float32)}
            client.async_stream_infer("ranker", tensors(arrays), request_id=f"r{n}")
        client.stop_stream()
    first, mistake, last = answers
    assert (first.get_response().id, last.get_response().id) == ("r3", "r5")
    assert (first.as_numpy("score").tobytes(), last.as_numpy("score").tobytes()) == (expected[0], expected[2])
    assert "input 'cat' is missing" in str(mistake)


def test_the_configuration_is_what_tritons_clients_read(client, server):
    told = client.get_model_config("ranker", as_json=True)["config"]
    assert (told["name"], told["platform"], told.get("max_batch_size", 0)) == ("ranker", "burnish", 0)
    assert [(t["name"], t["data_type"], t["dims"]) for t in told["input"]] == [
        ("dense", "TYPE_FP32", ["-1", "5"]),
        ("cat", "TYPE_INT64", ["-1", "6"]),
    ]
    assert [(t["name"], t["data_type"], t["dims"]) for t in told["output"]] == [
        ("score", "TYPE_FP32", ["-1"]),
        ("logit", "TYPE_FP32", ["-1"]),
    ]
    rest = pytest.importorskip("tritonclient.http").InferenceServerClient(server.address)
    assert rest.get_model_config("ranker")["input"][0] == {"name": "dense", "data_type": "TYPE_FP32", "dims": [-1, 5]}
    rest.close()


def test_repository_calls_are_closed_by_default(client):
    for change in (lambda: client.load_model("ranker"), lambda: client.unload_model("ranker")):
        with pytest.raises(triton.InferenceServerException, match="this server does not change what it serves by a call"):
            change()
