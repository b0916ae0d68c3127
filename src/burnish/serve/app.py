"""`burnish serve`: an artifact behind the Open Inference Protocol v2, on granian (RSGI), one worker process a core.

Scoring runs in the worker's event loop: a worker is one core, a request is a millisecond, and handing it to another thread would cost more
than it waits. Weights are mapped, so workers share them. `docs/serving.md` has the protocol with examples.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from pathlib import Path
from typing import Any, cast

import msgspec
from granian.rsgi import ProtocolClosed

from burnish.errors import BurnishError, InputError, ServeError
from burnish.host import versions
from burnish.runtime.artifact import Artifact
from burnish.runtime.scorer import Scorer, load
from burnish.serve import protocol
from burnish.serve.metrics import CONTENT_TYPE, GONE, Board, Row
from burnish.serve.protocol import Signature
from burnish.serve.wire import LIMITS, Limits, Refused

_COMPRESSED = "compressed bodies are not supported. Send the tensors as binary data"
_JSON = [("content-type", "application/json")]
_VERSION = "1"
DRAIN_SECONDS = 30  # what requests in flight have to finish after SIGTERM


class Served:
    """A model under its name: the scorer, and what it takes and gives."""

    def __init__(self, name: str, scorer: Scorer, version: str = _VERSION) -> None:
        self.name = name
        self.version = version
        self.scorer = scorer
        self.signature = Signature.of(scorer.inputs, scorer.outputs)
        self.layouts: dict[bytes, protocol.Layout] = {}
        self.metadata = msgspec.json.encode(protocol.model_metadata(self.signature, name, version))


class Application:
    """The RSGI application of one worker. `board` answers /metrics here when it is given."""

    def __init__(self, models: dict[str, Served], counters: Row, limits: Limits = LIMITS, board: Board | None = None) -> None:
        self.models = models
        self._at = {f"/v2/models/{m.name}{version}": m for m in models.values() for version in ("", f"/versions/{m.version}")}
        self.counters = counters
        self.limits = limits
        self.board = board
        self._metadata = msgspec.json.encode(protocol.server_metadata(versions("burnish").get("burnish", "")))

    async def __rsgi__(self, scope: Any, http: Any) -> None:
        began = time.perf_counter()
        path = scope.path
        try:
            if path.endswith("/infer"):
                await self._infer(scope, http, path, began)
            else:
                self._tell(scope, http, path)
        except Refused as refused:
            # asked only now, because a compressed body is never valid JSON
            compressed = scope.headers.get("content-encoding", "identity") != "identity"
            self._refuse(http, *((415, _COMPRESSED) if compressed else (refused.status, str(refused))))
        except InputError as error:
            self._refuse(http, 400, str(error))
        except ProtocolClosed:  # the client went away while it was sending; nobody is there to answer
            self.counters.answered(GONE)
        except Exception:  # a fault of ours ends one request, not the worker
            traceback.print_exc()
            self._refuse(http, 500, "the server failed on this request; its log has the reason")

    async def _infer(self, scope: Any, http: Any, path: str, began: float) -> None:
        model = self._model(path.removesuffix("/infer"))
        if scope.method != "POST":
            raise Refused(f"{path} takes POST, not {scope.method}", 405)
        headers = scope.headers
        body = await (http() if self._announced(headers) else self._parts(http))
        call = protocol.decode(model.signature, body, headers.get(protocol.HEADER_LENGTH), self.limits, model.layouts)
        computing = time.perf_counter()
        scores = protocol.score(model.scorer, call)
        computed = time.perf_counter()
        answer, header_length = protocol.encode(model.signature, call, scores, model.name, model.version)
        self.counters.scored(call.rows, computed - computing, time.perf_counter() - began)  # before the answer, or a kill could lose it
        if header_length is None:
            http.response_bytes(200, _JSON, answer)
        else:
            http.response_bytes(200, [("content-type", "application/octet-stream"), (protocol.HEADER_LENGTH, str(header_length))], answer)

    def _announced(self, headers: Any) -> bool:
        """Whether the body's length is known and allowed, so that it may be read whole."""
        length = headers.get("content-length")
        if length is None or not length.isdigit():
            return False
        if int(length) > self.limits.body_bytes:
            raise Refused(f"the body has {length} bytes; at most {self.limits.body_bytes} are allowed", 413)
        return True

    async def _parts(self, http: Any) -> bytes:
        """A body of unknown length, read no further than the limit."""
        parts, size = [], 0
        async for part in http:
            size += len(part)
            if size > self.limits.body_bytes:
                raise Refused(f"the body has more than {self.limits.body_bytes} bytes, which is what is allowed", 413)
            parts.append(part)
        return b"".join(parts)

    def _tell(self, scope: Any, http: Any, path: str) -> None:
        """Everything but inference: health, metadata, metrics."""
        path = path.rstrip("/")
        if path == "/metrics" and self.board is not None:
            answer, headers = self.board.text(), [("content-type", CONTENT_TYPE)]
        elif path == "/v2":
            answer, headers = self._metadata, _JSON
        elif path in ("/v2/health/live", "/v2/health/ready"):
            answer, headers = b"", []
        elif path.endswith("/ready"):
            self._model(path.removesuffix("/ready"))
            answer, headers = b"", []
        elif path.startswith("/v2/models/"):
            answer, headers = self._model(path).metadata, _JSON
        else:
            raise Refused(f"there is nothing at {path or '/'}. The protocol's addresses begin with /v2", 404)
        if scope.method not in ("GET", "HEAD"):
            raise Refused(f"{path} takes GET, not {scope.method}", 405)
        http.response_bytes(200, headers, answer)

    def _model(self, path: str) -> Served:
        """The model at /v2/models/<name>[/versions/<version>]."""
        found = self._at.get(path)
        if found is not None:
            return found
        match path.split("/"):
            case ["", "v2", "models", name, *rest] if not rest or (rest[0] == "versions" and len(rest) == 2):
                model = self.models.get(name)
                if model is None:
                    raise Refused(f"there is no model {name!r}. This server has {', '.join(map(repr, self.models))}", 404)
                raise Refused(f"model {name!r} has no version {rest[1]!r}. It has {model.version!r}", 404)
        raise Refused(f"there is nothing at {path}. A model is at /v2/models/<name>", 404)

    def _refuse(self, http: Any, status: int, sentence: str) -> None:
        self.counters.answered(status)
        http.response_bytes(status, _JSON, msgspec.json.encode({"error": sentence}))


def serve(
    path: str | Path,
    *,
    http: int = 8000,
    host: str = "127.0.0.1",
    workers: int = 1,
    metrics: int | None = None,
    name: str | None = None,
    limits: Limits = LIMITS,
) -> None:
    """Serve the artifact at `path` until SIGTERM or SIGINT, then finish the requests in flight and return.

    `name` is the model's in the protocol, by default the directory's. `metrics` is a port of its own for /metrics; without it they are at
    /metrics of `http`. ServeError when a port cannot be had, ArtifactError when the artifact cannot be read, both before anything starts.
    """
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces, Loops
    from granian.log import LogLevels
    from prometheus_client import start_http_server

    artifact = Artifact.read(path)
    program = artifact.program
    name = name if name is not None else artifact.path.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ServeError(f"{name!r} cannot be the name of a model. Use letters, digits, '.', '_' and '-'")
    if workers < 1:
        raise ServeError(f"a server cannot have {workers} workers. Give at least 1")
    Signature.of(artifact.manifest.inputs, artifact.manifest.outputs)
    for port, option in ((http, "http"), (metrics, "metrics")):
        if port is not None:
            _check_port(host, port, option)
    board = Board.create(workers, {"model": name, "version": _VERSION, "backend": program.backend, "target": program.target})
    if metrics is not None:
        start_http_server(metrics, addr=host, registry=board.registry)
    server = Granian(
        "burnish",  # the name of the processes; what runs in them is the loader below
        address=host,
        port=http,
        interface=Interfaces.RSGI,
        loop=Loops.asyncio,
        http=HTTPModes.http1,
        websockets=False,
        workers=workers,
        respawn_failed_workers=True,
        workers_kill_timeout=DRAIN_SECONDS,
        log_level=LogLevels.error,
    )
    loader = functools.partial(_application, artifact.path, name, limits, board.path, board.facts, metrics is None, workers > 1)
    print(f"{name} ({program.backend}, {program.target}) is served at http://{host}:{http}/v2/models/{name}", file=sys.stderr, flush=True)
    try:
        server.serve(target_loader=cast(Any, loader), wrap_loader=False)
    except SystemExit:
        raise ServeError(
            f"a worker that serves {artifact.path} could not start, or stopped as soon as it was replaced. Its reason is above"
        ) from None
    finally:
        board.remove()


def _application(
    path: Path, name: str, limits: Limits, board_path: Path, facts: dict[str, str], metrics_here: bool, pin: bool
) -> Application:
    """What a worker runs: it maps the artifact, takes a row of the board, and a core when there are several workers."""
    # a fork has its parent's handlers, which would swallow a signal that comes before granian sets the worker's own
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    _end_with_parent()
    board = Board(board_path, facts)
    counters = board.claim()
    if pin and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[counters.index % len(cores)]})
    try:
        model = Served(name, load(path))
    except BurnishError as error:
        sys.exit(str(error))
    return Application({name: model}, counters, limits, board if metrics_here else None)


def _end_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent ends, so that a killed server leaves no workers behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG, linux/prctl.h


def _check_port(host: str, port: int, option: str) -> None:
    """ServeError unless this process could listen there. Workers share their port, so granian alone would join another server's."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, OverflowError):
        raise ServeError(f"{host}:{port} is not an address to listen at. Give a host of this machine and a port up to 65535") from None
    with socket.socket(family, kind, proto) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that is only waiting to be closed is free
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ServeError(f"port {port} of {host} is in use by another process. Choose another with --{option}") from None
            raise ServeError(f"cannot listen at {host}:{port}: {error.strerror}. Choose another with --{option}") from None


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens at now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class Server:
    """`serve` in a process of its own, ready to be asked: `with Server(path) as server: ... server.url`. Ends with the block."""

    def __init__(
        self, path: str | Path, *, http: int | None = None, host: str = "127.0.0.1", timeout: float = 60.0, **options: Any
    ) -> None:
        self.host = host
        self.port = http or free_port(host)
        self.timeout = timeout
        self.options = {"path": str(path), "http": self.port, "host": host, **options}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServeError("the server was not started. Use it in a with statement")
        return self._process

    @property
    def log(self) -> str:
        """What the server wrote to stderr until now."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def __enter__(self) -> Server:
        code = "import sys; from burnish.serve.app import main; sys.exit(main(sys.argv[1]))"
        self._process = subprocess.Popen([sys.executable, "-c", code, msgspec.json.encode(self.options).decode()], stderr=self._log)
        until = time.monotonic() + self.timeout
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise ServeError((self.log.strip().splitlines() or ["the server ended without a word"])[-1])
            try:
                urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=1).close()
                return self
            except OSError:  # nobody listens yet
                time.sleep(0.02)
        self.stop()
        raise ServeError(f"the server at {self.url} was not ready within {self.timeout:g} seconds")

    def stop(self, timeout: float = 10.0) -> int:
        """End the server as SIGTERM does; its exit status. One that has not ended after `timeout` seconds is killed."""
        self.process.terminate()
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.stop()
        self._log.close()


def main(options: str) -> int:
    """`serve` with options as a JSON object; the exit code. The command line is `burnish serve`; this is what Server starts."""
    told = msgspec.json.decode(options)
    if "limits" in told:
        told["limits"] = msgspec.convert(told["limits"], Limits)
    try:
        serve(told.pop("path"), **told)
    except BurnishError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
