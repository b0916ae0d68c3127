"""The WebAssembly export: run by wasmtime, by Node, and by a browser; the same bits in each."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import burnish
from burnish.backends.native import Native
from burnish.errors import BuildError
from burnish.export import export
from burnish.graph.node import Graph, Node
from burnish.graph.ops import Op
from burnish.host import Host
from burnish.inputs import Input
from burnish.recipe import Recipe
from burnish.runtime.artifact import Artifact
from burnish.testing.builders import Weights, as_request, features, linear, mlp, reshape, rows
from burnish.testing.wasm_backend import WasmEngine

EXAMPLE = Path(__file__).parents[2] / "examples" / "browser"
CHROMIUM = "/usr/bin/chromium"


def ranker() -> Graph:
    """A small ranker with inputs named as the demo's."""
    sides = ("request",) * 11 + ("candidate",) * 10
    ids = Input("ids", "int64", (21,), sides, tuple(20 + i for i in range(21)))
    dense = Input("dense", "float32", (5,), ("request", *["candidate"] * 4))
    w = Weights(3)
    top = linear(mlp(features((ids, dense), 8, w), (70, 33), w), 1, w)
    return Graph((ids, dense), {"score": reshape(Node(Op.SIGMOID, (top,)))})


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    absent = Native().missing()
    if absent:
        pytest.skip(absent)
    graph = ranker()
    made = burnish.compile(graph, "int8-int4-tables", rows(graph, 300, seed=9))
    return made.save(tmp_path_factory.mktemp("artifact") / "ranker")


@pytest.fixture(scope="module")
def exported(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wasm") / "out"
    export(artifact.path, "wasm", out=out)
    return out


def test_the_module_alone_repeats_the_golden_rows_bit_for_bit(artifact: Artifact, exported: Path) -> None:
    """In wasmtime, which gives it no import; from the memory that export.json says."""
    if importlib.util.find_spec("wasmtime") is None:
        pytest.skip("WebAssembly programs are run by wasmtime: pip install wasmtime")
    told = json.loads((exported / "export.json").read_text())
    engine = WasmEngine(
        (exported / "ranker.wasm").read_bytes(),
        (exported / "weights.bin").read_bytes(),
        artifact.manifest.inputs,
        artifact.manifest.programs[0].facts,
    )
    table, golden = artifact.golden()
    got = engine.rows(table, 64)
    np.testing.assert_array_equal(got["score"], golden["score"])
    assert told["target"] == "simd128" and told["code_bytes"] < 300_000
    assert told["total_bytes"] == told["code_bytes"] + (exported / "weights.bin").stat().st_size


@pytest.fixture
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("there is no node here: apt-get install nodejs")
    return found


def said_by(node: str, script: str, out: Path) -> dict[str, object]:
    """What a script that has `load` prints as JSON."""
    path = out / "script.mjs"
    path.write_text(f'import {{ load }} from "./ranker.mjs";\n{script}')
    done = subprocess.run([node, str(path)], capture_output=True, text=True)
    path.unlink()
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_node_scores_requests_as_this_machine_does(node: str, artifact: Artifact, exported: Path) -> None:
    table = rows(ranker(), 77, seed=4)
    request, candidates = as_request(ranker(), table)
    with burnish.load(artifact.path) as scorer:
        want, whole = scorer(request, candidates), scorer.rows(table)
    given = [{k: v.ravel().tolist() for k, v in part.items()} for part in (request, candidates, table)]
    script = f"""
const [request, candidates, table] = {json.dumps(given)};
const parts = [];
const ranker = await load(undefined, {{ piece: 5000, progress: (done, all) => parts.push(done / all) }});
const opened = ranker.memoryBytes;
const first = ranker.score(request, candidates);
const again = ranker.score(request, candidates);
const same = first.score.every((value, i) => value === again.score[i]);
const empty = ranker.score(request, {{ ids: [], dense: [] }}).score.length;
const verified = await ranker.verify();
console.log(JSON.stringify({{ score: [...first.score], rows: [...ranker.rows(table).score], same, empty, parts, opened, verified }}));
"""
    told = said_by(node, script, exported)
    np.testing.assert_array_equal(np.array(told["score"], np.float32), want)
    np.testing.assert_array_equal(np.array(told["rows"], np.float32), whole)
    assert told["same"] is True and told["empty"] == 0 and told["verified"] == {"rows": 64, "difference": 0}
    parts = told["parts"]
    assert isinstance(parts, list) and len(parts) > 2 and parts[-1] == 1
    assert told["opened"] == json.loads((exported / "export.json").read_text())["peak_memory_bytes"]


def test_node_refuses_what_does_not_fit_in_a_sentence(node: str, artifact: Artifact, exported: Path) -> None:
    script = """
const ranker = await load();
const request = { ids: Array(11).fill(1), dense: [0] }, candidates = { ids: Array(20).fill(1), dense: Array(8).fill(0) };
const wrong = [
  [request, { ...candidates, ids: [...Array(13).fill(1), 4000, ...Array(6).fill(1)] }],
  [request, { ...candidates, dense: Array(7).fill(0) }],
  [request, { ...candidates, dense: Array(4).fill(0) }],
  [{ ...request, dense: [0, 0] }, candidates],
  [request, { ids: candidates.ids }],
];
const said = wrong.map(([a, b]) => { try { ranker.score(a, b); return "nothing"; } catch (error) { return String(error); } });
ranker.close();
try { ranker.score(request, candidates); } catch (error) { said.push(String(error)); }
console.log(JSON.stringify({ said }));
"""
    assert said_by(node, script, exported)["said"] == [
        "RangeError: input 'ids' has an id outside its bounds at row 1",
        "RangeError: input 'dense' has 7 values, expected 4 a row for 2 rows",
        "RangeError: input 'dense' has 4 values, expected 4 a row for 2 rows",
        "RangeError: input 'dense' has 2 values, expected 1: a request has one row for all",
        "TypeError: input 'dense' is missing among the candidate values",
        "Error: the ranker is closed",
    ]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda held: held[:-64], r"Error: weights.bin has \d+ bytes, expected \d+. Copy the export again"),
        (lambda held: held + b"more", r"Error: weights.bin is longer than \d+ bytes. Copy the export again"),
        (lambda held: held[:-200] + b"\1" + held[-199:], "Error: weights.bin is damaged: its sha256 is not the one it was exported with"),
    ],
)
def test_damaged_weights_are_refused(spoil: object, sentence: str, node: str, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    (out / "weights.bin").write_bytes(spoil((out / "weights.bin").read_bytes()))  # type: ignore[operator]
    told = said_by(node, "try { await load(); } catch (error) { console.log(JSON.stringify({ said: String(error) })); }", out)
    assert re.match(sentence, str(told["said"])), told


def test_what_cannot_be_exported_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"^wasm is its own target, and met 'avx2'\. Leave --target out$"):
        export(artifact.path, "wasm", "avx2", tmp_path / "out")
    with pytest.raises(BuildError, match=r"^WebAssembly has no shared libraries\. Use --to wasm$"):
        export(artifact.path, "c", "wasm", tmp_path / "out")
    eager = burnish.compile(ranker(), Recipe(backend="onnxruntime")).save(tmp_path / "other")
    with pytest.raises(BuildError, match=r"is onnxruntime's, and WebAssembly is exported from the native backend\. Compile the model with"):
        export(eager.path, "wasm", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """A web server that answers byte ranges, as the plain one does not, and counts them."""

    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm"}
    asked: list[str] = []

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        if wanted is None:
            return super().do_GET()
        first, last = (int(n) for n in wanted.removeprefix("bytes=").split("-"))
        content = Path(self.translate_path(self.path)).read_bytes()
        type(self).asked.append(wanted)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(content[first : last + 1])
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def site(request: pytest.FixtureRequest, artifact: Artifact, tmp_path: Path) -> Iterator[str]:
    """The example's page over a few made-up baskets, on a web server of this machine."""
    random = np.random.default_rng(0)
    names = {"request": [f"r{i}" for i in range(11)], "candidate": ["product_id", *(f"c{i}" for i in range(9))]}
    dense = ["visits", "popularity", "price", "bought_before", "days_since"]
    (tmp_path / "columns.json").write_text(json.dumps({**names, "dense": dense}))
    columns = {name: random.integers(0, 20, 600) for name in (*names["request"], *names["candidate"])}
    columns |= {name: random.random(600).astype(np.float32) for name in dense}
    columns |= {
        "basket_id": np.repeat(np.arange(3), 200),
        "household_id": np.repeat(np.arange(3), 200),
        "label": random.integers(0, 2, 600),
    }
    pl.DataFrame(columns).write_parquet(tmp_path / "validation.parquet")
    out = tmp_path / "site"
    words = [sys.executable, str(EXAMPLE / "build.py"), str(artifact.path), str(out), "--data", str(tmp_path)]
    subprocess.run(words, check=True, capture_output=True)
    _Ranges.asked = []
    handler = _Ranges if request.param else type("Plain", (_Ranges,), {"do_GET": http.server.SimpleHTTPRequestHandler.do_GET})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(out)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_the_example_page_ranks_in_a_browser_what_python_ranks(site: str, request: pytest.FixtureRequest) -> None:
    if not Path(CHROMIUM).exists() or importlib.util.find_spec("playwright") is None:
        pytest.skip("the page is looked at in Chromium: apt-get install chromium, pip install playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(site)
        page.wait_for_function("document.body.dataset.ms || document.getElementById('error').textContent", timeout=60_000)
        assert page.inner_text("#error") == "" and complaints == []
        assert page.evaluate("document.body.dataset.apart") == "0", "other scores than Python's"
        assert page.inner_text("#products") == "200" and page.inner_text("#latency").endswith(" ms")
        assert page.inner_text("#parity") == "Every score has the bits that the exporting machine computed."
        scores = [float(cell) for cell in page.locator("#list td:nth-child(5)").all_inner_texts()]
        assert len(scores) == 20 and scores == sorted(scores, reverse=True)
        page.select_option("#household", "2")
        assert page.inner_text("#products") == "200"
        browser.close()
    assert len(_Ranges.asked) == (1 if "no ranges" not in request.node.callspec.id else 0)


def test_a_host_for_wasm_is_not_this_machine() -> None:
    assert Host.target("wasm").arch == "wasm32" and Host.target("wasm").isa == "simd128"
    assert not Host.here().runs("simd128")
