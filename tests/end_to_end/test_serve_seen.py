"""A server seen from outside: metrics under their names, a dashboard that reads them, logs, traces, and the page that documents it."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import burnish
from burnish import testing
from burnish.errors import ServeError
from burnish.serve.process import Server
from burnish.serve.server import Options, serve

pytest.importorskip("onnxruntime")
DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"
TABLE = {"dense": np.ones((3, 5), np.float32), "cat": np.ones((3, 6), np.int64)}


def body(id_: str = "", dense: float = 1.0) -> bytes:
    inputs = [
        {"name": "dense", "shape": [3, 5], "datatype": "FP32", "data": [dense] * 15},
        {"name": "cat", "shape": [3, 6], "datatype": "INT64", "data": TABLE["cat"].tolist()},
    ]
    return json.dumps({"inputs": inputs, **({"id": id_} if id_ else {})}).encode()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    made = burnish.compile(testing.dcn_v2(dense=5, ids=6, width=4, cross=1, deep=(16, 8)), "fp32", backend="onnxruntime")
    return made.save(tmp_path_factory.mktemp("seen") / "ranker").path


@pytest.fixture(scope="module")
def server(path):
    with Server(path, name="ranker") as started:
        yield started


def ask(server: Server, path: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    sent = urllib.request.Request(server.url + path, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(sent, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def metrics(server: Server) -> dict[str, float]:
    """Every sample without its labels; of several with one name their sum."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(ask(server, "/metrics")[1].decode()):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_tritons_counters_say_the_same_as_ours(server):
    before = metrics(server)
    for _ in range(4):
        assert ask(server, "/v2/models/ranker/infer", body())[0] == 200
    assert ask(server, "/v2/models/ranker/infer", b"{")[0] == 400
    change = {name: value - before.get(name, 0) for name, value in metrics(server).items()}
    assert (change["nv_inference_request_success"], change["nv_inference_request_failure"]) == (4, 1)
    assert (change["nv_inference_count"], change["nv_inference_exec_count"]) == (12, 4)
    for theirs, ours in (("request", "request"), ("queue", "queue"), ("compute_infer", "compute")):
        seconds = change[f"burnish_{ours}_seconds_sum"]
        assert change[f"nv_inference_{theirs}_duration_us"] == pytest.approx(1e6 * seconds) and seconds > 0
    assert (change["burnish_batch_size_count"], change["burnish_batch_size_sum"]) == (4, 4)


def test_inputs_out_of_range_and_scores_that_moved_are_seen(path):
    def after(dense: float) -> dict[str, float]:
        with Server(path, name="ranker") as server:
            for _ in range(64):  # of which every sixteenth is looked at
                assert ask(server, "/v2/models/ranker/infer", body(dense=dense))[0] == 200
            return metrics(server)

    usual, odd = after(0.5), after(1e6)
    assert usual["burnish_range_overflow_ratio"] == 0
    assert odd["burnish_range_overflow_ratio"] == 1
    assert odd["burnish_score_drift"] > 1


def test_the_dashboard_reads_metrics_that_there_are(server):
    assert ask(server, "/v2/models/ranker/infer", body())[0] == 200
    there, used = set(metrics(server)), set[str]()
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == "${source}"
        for target in panel["targets"]:
            named = set(re.findall(r"\b(burnish_\w+|nv_\w+)", target["expr"]))
            assert named and named <= there, (panel["title"], named - there)
            used |= named
    assert {"burnish_request_seconds_bucket", "burnish_score_drift", "burnish_range_overflow_ratio", "burnish_requests_total"} <= used
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_a_log_of_requests_has_an_object_a_line_with_their_ids(path):
    with Server(path, name="ranker", log="requests") as server:
        assert ask(server, "/v2/models/ranker/infer", body("seven"))[0] == 200
        assert ask(server, "/v2/models/ranker/infer", body(), X_Request_Id="eight")[0] == 200
        assert ask(server, "/v2/models/ranker/infer", b"{", X_Request_Id="nine")[0] == 400
        lines = [json.loads(line) for line in server.log.splitlines()]
    assert lines[0]["message"].startswith("ranker (onnxruntime, any) is served at http://")
    seven, eight, nine = lines[1:4]
    assert (seven["id"], seven["status"], seven["rows"], seven["version"]) == ("seven", 200, 3, "1")
    assert seven["compute_ms"] > 0 and seven["queue_ms"] >= 0 and re.match(r"\d{4}-\d\d-\d\dT", seven["time"])
    assert (eight["id"], nine["id"], nine["status"]) == ("eight", "nine", 400)
    assert nine["error"].startswith("the body is not valid JSON")
    with pytest.raises(ServeError, match=r"there is no log of the form 'xml'\. Use one of text, json, requests"):
        serve(path, Options(log="xml"))


def test_a_request_is_a_span_of_the_callers_trace_with_waiting_and_scoring_in_it(path, monkeypatch, tmp_path):
    pytest.importorskip("opentelemetry.sdk")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    out = tmp_path / "spans"
    with out.open("w") as to, Server(path, name="ranker", stdout=to) as server:
        sent = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "X_Request_Id": "seven"}
        assert ask(server, "/v2/models/ranker/infer", body(), **sent)[0] == 200
        assert server.stop() == 0
    text = out.read_text()
    found, at = [], 0
    while (at := text.find("{", at)) >= 0:
        one, at = json.JSONDecoder().raw_decode(text, at)
        found.append(one)
    spans: dict[str, Any] = {span["name"]: span for span in found}
    assert set(spans) == {"infer", "queue", "compute"}
    assert {span["context"]["trace_id"] for span in spans.values()} == {f"0x{trace}"}
    assert spans["infer"]["parent_id"] == "0x00f067aa0ba902b7"
    assert spans["compute"]["parent_id"] == spans["queue"]["parent_id"] == spans["infer"]["context"]["span_id"]
    assert spans["infer"]["attributes"] == {
        "burnish.model": "ranker", "burnish.version": "1", "burnish.rows": 3, "burnish.request_id": "seven",
    }  # fmt: skip
    assert spans["infer"]["start_time"] == spans["queue"]["start_time"] <= spans["compute"]["start_time"]


def test_traces_without_the_package_are_a_sentence(path, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setattr("burnish.serve.trace.find_spec", lambda name: None)
    with pytest.raises(ServeError, match=r"which need OpenTelemetry\. Install it: pip install 'burnish\[trace\]'"):
        serve(path)


def test_the_openapi_page_names_every_address_and_describes_what_is_sent(server):
    status, text = ask(server, "/v2/openapi.json")
    page = json.loads(text)
    assert status == 200 and page["openapi"] == "3.1.0"
    for address, methods in page["paths"].items():
        for method in methods:
            data = body() if address.endswith("/infer") else b"" if method == "post" else None
            assert ask(server, address, data)[0] == 200, address
    tensors = page["components"]["schemas"]["ranker"]["properties"]["inputs"]["items"]["oneOf"]
    (cat,) = (tensor for tensor in tensors if tensor["properties"]["name"] == {"const": "cat"})
    assert cat["properties"]["shape"]["prefixItems"][1:] == [{"const": 6}]
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(json.loads(body()), page["components"]["schemas"]["ranker"])
    wrong = json.loads(body())
    wrong["inputs"][0]["shape"] = [3, 6]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, page["components"]["schemas"]["ranker"])
