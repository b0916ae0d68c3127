"""Every example of docs/serving.md is run against a server, and what it shows is what comes back."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import shutil
import subprocess
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest

import burnish
from burnish import testing
from burnish.graph.node import Graph, Node, input_node
from burnish.graph.ops import Op
from burnish.inputs import Input
from burnish.serve.process import Server, free_port
from burnish.serve.rollout import Limits, Rollout

pytest.importorskip("onnxruntime")
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The model that the page describes."""
    weights = testing.Weights(0)
    dense = Input("dense", "float32", (2,), side="request")
    cat = Input("cat", "int64", (3,), side=("request", "candidate", "candidate"), cardinality=(100, 200, 50))
    x = testing.concat([input_node(dense), *testing.embeddings(input_node(cat), cat, 4, weights)])
    score = Node(Op.RESHAPE, (testing.sigmoid(testing.mlp(x, (8, 1), weights, last=True)),), shape=())
    artifact = burnish.compile(Graph((dense, cat), {"score": score}), "fp32", backend="onnxruntime")
    grpc = free_port() if find_spec("grpc") else None
    with Server(artifact.save(tmp_path_factory.mktemp("served") / "ranker").path, grpc=grpc) as started:
        yield started


def close(found: Any, shown: Any) -> bool:
    """Equal, with numbers that agree to three digits."""
    if isinstance(shown, dict):
        return isinstance(found, dict) and found.keys() == shown.keys() and all(close(found[key], shown[key]) for key in shown)
    if isinstance(shown, list):
        return isinstance(found, list) and len(found) == len(shown) and all(map(close, found, shown))
    if isinstance(shown, float):
        return found == pytest.approx(shown, rel=1e-3)
    return found == shown


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_curl_line_answers_what_the_page_shows(server):
    shown = [(code, expected) for (kind, code), (_, expected) in itertools.pairwise(BLOCKS) if kind == "sh"]
    assert len(shown) == 5
    for code, expected in shown:
        told = subprocess.run(
            ["bash", "-ec", code.replace("localhost:8000", server.address)], capture_output=True, text=True, check=True
        ).stdout
        assert close(json.loads(told), json.loads(expected)), told


def test_every_python_line_prints_what_the_page_shows(server):
    pytest.importorskip("tritonclient.http")
    pytest.importorskip("tritonclient.grpc")
    shown = [(code, expected) for (kind, code), (_, expected) in itertools.pairwise(BLOCKS) if kind == "python"]
    assert len(shown) == 4
    names: dict[str, Any] = {}
    for code, expected in shown:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = code.replace("localhost:8000", server.address).replace("localhost:8001", f"{server.host}:{server.options['grpc']}")
            exec(compile(code, str(PAGE), "exec"), names)
        assert printed.getvalue() == expected


def test_the_rollout_that_the_page_shows_has_every_default(server):
    (shown,) = re.findall(r"^```\n(\{\"candidate\".*?)```", PAGE.read_text(), re.M | re.S)
    assert msgspec.json.decode(shown, type=Rollout, strict=True) == Rollout(candidate="4", mode="canary")
    told = json.loads(shown)
    assert set(told) == set(Rollout.__struct_fields__) and set(told["limits"]) == set(Limits.__struct_fields__)


def test_every_metric_that_the_page_names_is_there_and_no_other(server):
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        found = {line.split()[2] for line in answer.read().decode().splitlines() if line.startswith("# TYPE")}
    text = PAGE.read_text()
    table = text[text.index("## Seen from outside") : text.index("One request in 16")]
    assert set(re.findall(r"`((?:burnish|nv)_\w+)", table)) == found
