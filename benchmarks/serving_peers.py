"""The same model behind other servers: requests that a second of CPU time answers, with ONNX Runtime's int8 and with our engine.

Each server has an environment of its own (build/peers/<name>), made on first use, one worker, and one thread of the engine. It gets the
whole plain table of a request as bytes, in the cheapest form it takes (raw, or base64 inside JSON where it takes JSON only), and answers
the scores as bytes: no JSON list of numbers anywhere. CPU time is of all its processes, so a second core that a proxy uses is counted.
`burnish serve` gets its own protocol, the request and its candidates.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from burnish.runtime.artifact import Artifact
from burnish.serve.process import Server, free_port
from burnish.testing.http_load import post, saturate
from serving_model import body, cpu_us, table

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / "build" / "peers"
ENGINE = """
import base64, json, os
import numpy as np
KIND, PATH, SPECS = os.environ["PEER_ENGINE"], os.environ["PEER_PATH"], json.loads(os.environ["PEER_INPUTS"])

def engine():
    if KIND == "ours":
        import burnish
        return burnish.load(PATH).rows
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(PATH + "/program/onnxruntime/model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda table: session.run(None, table)[0]

def table_of(raw):
    n, at, table = int.from_bytes(raw[:8], "little"), 8, {}
    for name, dtype, shape in SPECS:
        array = np.ndarray((n, *shape), dtype, raw, at)
        table[name] = array if array.flags.aligned else array.copy()
        at += array.nbytes
    return table
"""
LITSERVE = """
import litserve
from peer_engine import *

class Ranker(litserve.LitAPI):
    def setup(self, device): self.score = engine()
    def decode_request(self, request): return base64.b64decode(request["body"])
    def predict(self, raw): return self.score(table_of(raw))
    def encode_response(self, scores): return {"scores": base64.b64encode(np.ascontiguousarray(scores)).decode()}

if __name__ == "__main__":  # its workers import this file again
    server = litserve.LitServer(Ranker(), accelerator="cpu", workers_per_device=1)
    options = dict(num_api_servers=1, generate_client_file=False, log_level="error")
    server.run(host="127.0.0.1", port=int(os.environ["PEER_PORT"]), **options)
"""
MLSERVER = """
from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput
from peer_engine import *

class Ranker(MLModel):
    async def load(self):
        self.score = engine()
        return True
    async def predict(self, payload):
        scores = self.score(table_of(base64.b64decode(payload.inputs[0].data.root[0])))
        data = [base64.b64encode(np.ascontiguousarray(scores)).decode()]
        return InferenceResponse(model_name=self.name, outputs=[ResponseOutput(name="scores", shape=[1], datatype="BYTES", data=data)])
"""
BENTOML = """
import bentoml
from peer_engine import *

@bentoml.service(workers=1, traffic={"timeout": 60}, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Ranker:
    def __init__(self): self.score = engine()
    @bentoml.api
    def infer(self, body: str) -> str: return base64.b64encode(np.ascontiguousarray(self.score(table_of(base64.b64decode(body))))).decode()
"""
RAY = """
import ray, time
from ray import serve
from starlette.responses import Response
from peer_engine import *

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PEER_PORT"])})

@serve.deployment(num_replicas=1, max_ongoing_requests=64)
class Ranker:
    def __init__(self): self.score = engine()
    async def __call__(self, request): return Response(np.ascontiguousarray(self.score(table_of(await request.body()))).tobytes())

serve.run(Ranker.bind(), route_prefix="/infer")
while True: time.sleep(60)
"""


def _raw(rows: dict[str, np.ndarray]) -> bytes:
    return len(next(iter(rows.values()))).to_bytes(8, "little") + b"".join(array.tobytes() for array in rows.values())


def _json(wrap: Callable[[str], Any]) -> Callable[[bytes], bytes]:
    return lambda raw: json.dumps(wrap(base64.b64encode(raw).decode())).encode()


def _v2(text: str) -> Any:
    return {"inputs": [{"name": "body", "shape": [1], "datatype": "BYTES", "data": [text]}]}


# what to install, the program, how it is started, the address of requests, and how a body carries bytes
PEERS: dict[str, tuple[str, str, list[str], str, Callable[[bytes], bytes]]] = {
    "litserve": ("litserve", LITSERVE, ["python", "peer.py"], "/predict", _json(lambda text: {"body": text})),
    "mlserver": ("mlserver", MLSERVER, ["mlserver", "start", "."], "/v2/models/ranker/infer", _json(_v2)),
    "bentoml": ("bentoml", BENTOML, ["bentoml", "serve", "peer:Ranker", "-q"], "/infer", _json(lambda text: {"body": text})),
    "ray-serve": ("ray[serve]", RAY, ["python", "peer.py"], "/infer", lambda raw: raw),
}


def environment(name: str, make: bool) -> Path | None:
    """The bin directory of a peer's environment; None where it is not there and may not be made, or cannot be."""
    at = ENVIRONMENTS / name
    if not (at / ".made").exists():
        if not make:
            return None
        subprocess.run([sys.executable, "-m", "venv", str(at)], check=True)
        command = [str(at / "bin" / "python"), "-m", "pip", "install", "-q", PEERS[name][0], "onnxruntime", "numpy", "-e", str(ROOT)]
        if subprocess.run(command, check=False).returncode:
            return None
        (at / ".made").touch()
    return at / "bin"


def measure(artifacts: dict[str, Path], sizes: tuple[int, ...], seconds: float, folder: Path, make: bool) -> list[dict[str, Any]]:
    """A row for each server, engine and number of candidates. `artifacts`: "onnxruntime" and "ours"."""
    rows = []
    with Server(artifacts["ours"], name="ranker") as server:
        for n in sizes:
            sent, cut = body(artifacts["ours"], n)
            request = post("/v2/models/ranker/infer", sent, Inference_Header_Content_Length=str(cut), X_Request_Timeout_Ms="60000")
            found = _answered(server.process.pid, server.port, request, seconds)
            rows.append({"server": "burnish serve", "engine": "ours", "candidates": n, **found})
    for name in PEERS:
        bin_ = environment(name, make)
        if bin_ is None:
            rows.append({"server": name, "missing": "not installed" if not make else "does not install here"})
            continue
        for engine, path in artifacts.items():
            try:
                rows += [{"server": name, "engine": engine, **row} for row in _peer(name, bin_, engine, path, sizes, seconds, folder)]
            except TimeoutError as error:
                rows.append({"server": name, "engine": engine, "missing": str(error)})
    return rows


def _peer(name: str, bin_: Path, engine: str, path: Path, sizes: tuple[int, ...], seconds: float, folder: Path) -> list[dict[str, Any]]:
    _, program, command, address, wrap = PEERS[name]
    home = folder / f"{name}-{engine}"
    home.mkdir()
    port, grpc, metrics = free_port(), free_port(), free_port()
    (home / "peer_engine.py").write_text(ENGINE)
    (home / "peer.py").write_text(program)
    (home / "model-settings.json").write_text(json.dumps({"name": "ranker", "implementation": "peer.Ranker"}))
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0, "debug": False}
    (home / "settings.json").write_text(json.dumps(settings))
    specs = [(spec.name, spec.dtype, list(spec.shape)) for spec in Artifact.read(path).manifest.inputs]
    told = {"PEER_ENGINE": engine, "PEER_PATH": str(path), "PEER_INPUTS": json.dumps(specs), "PEER_PORT": str(port)}
    quiet = {"OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(home), "PYTHONPATH": str(home)}
    env = {**os.environ, **told, **quiet, "PATH": f"{bin_}:{os.environ['PATH']}"}
    command = [str(bin_ / command[0]), *command[1:], *(["--port", str(port), "--host", "127.0.0.1"] if name == "bentoml" else [])]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=home, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            rows = []
            for n in sizes:
                request = post(address, wrap(_raw(table(path, n))), Content_Type="application/json")
                _wait(process, port, address, wrap(_raw(table(path, n))), home / "log")
                rows.append({"candidates": n, **_answered(process.pid, port, request, seconds)})
            return rows
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if name == "ray-serve":
                subprocess.run([str(bin_ / "ray"), "stop", "--force"], capture_output=True, check=False, timeout=60)


def _wait(process: subprocess.Popen[bytes], port: int, address: str, data: bytes, log: Path, seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            sent = urllib.request.Request(f"http://127.0.0.1:{port}{address}", data, {"Content-Type": "application/json"})
            urllib.request.urlopen(sent, timeout=10).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"it did not answer: {(log.read_text().strip().splitlines() or ['no word'])[-1][:200]}")


def _answered(pid: int, port: int, request: bytes, seconds: float) -> dict[str, Any]:
    """Requests a CPU second, and a second, with 8 connections that ask one request after another."""
    saturate("127.0.0.1", port, request, 8, seconds / 2)
    before = cpu_us(pid)
    sent = saturate("127.0.0.1", port, request, 8, seconds)
    n = len(sent.latencies)
    failed = sum(sent.statuses.values()) - n
    return {"per_cpu_second": 1e6 * n / (cpu_us(pid) - before), "per_second": sent.goodput, "failed": failed}


def lines(rows: list[dict[str, Any]], sizes: tuple[int, ...]) -> list[str]:
    """The table, and how many times the best of the others ours is."""
    head = ["server", "engine", *(f"{n} candidates: requests a CPU second" for n in sizes)]
    made = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    names = {"ours": "ours, int8", "onnxruntime": "ONNX Runtime int8"}
    for server, engine in dict.fromkeys((row["server"], row.get("engine", "")) for row in rows):
        mine = [row for row in rows if (row["server"], row.get("engine", "")) == (server, engine)]
        missing = next((row["missing"] for row in mine if "missing" in row), None)
        by_size = {row["candidates"]: row for row in mine if "candidates" in row}
        cells = [missing or "" for _ in sizes] if missing else [f"{by_size[n]['per_cpu_second']:.0f}" for n in sizes]
        made.append(f"| {server} | {names.get(engine, '')} | {' | '.join(cells)} |")
    times = []
    for n in sizes:
        ours = next(row["per_cpu_second"] for row in rows if row["server"] == "burnish serve" and row["candidates"] == n)
        others = [row["per_cpu_second"] for row in rows if row["server"] != "burnish serve" and row.get("candidates") == n]
        if others:
            times.append(f"{ours / max(others):.1f} times the best of the others at {n} candidates")
    return [*made, "", f"`burnish serve` answers {', '.join(times)}."] if times else made
