"""`burnish serve`: an artifact behind the Open Inference Protocol v2, on granian (RSGI), one worker process a core.

Scoring runs in the worker's event loop: a worker is one core, a request is a millisecond, and handing it to another thread would cost more
than it waits; `admission` has the order. Weights are mapped, so workers share them. `docs/serving.md` has the protocol with examples.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import functools
import math
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
from granian.rsgi import ProtocolClosed

from burnish.errors import BurnishError, InputError, ServeError
from burnish.host import versions
from burnish.runtime.artifact import Artifact
from burnish.runtime.scorer import Scores, load
from burnish.serve import protocol
from burnish.serve.admission import OVERLOADED
from burnish.serve.grpc_server import GrpcServer, missing
from burnish.serve.metrics import CONTENT_TYPE, GONE, Board
from burnish.serve.protocol import Call, Signature
from burnish.serve.versions import LOOK_SECONDS, Follower, Keeper, Repository, Versions, told
from burnish.serve.wire import LIMITS, Limits, Refused
from burnish.serve.worker import VERSION, Served, Worker, objective_ms

_COMPRESSED = "compressed bodies are not supported. Send the tensors as binary data"
_JSON = [("content-type", "application/json")]
_LATER = [*_JSON, ("retry-after", "1")]  # whole seconds, of which a queue of milliseconds needs none
HEADER_TIMEOUT = "x-request-timeout-ms"
_FILES = 128  # open files of a worker beside its connections
DRAIN_SECONDS = 30  # what requests in flight have to finish after SIGTERM


class _LoadParameters(msgspec.Struct):
    version: str | None = None


class _Load(msgspec.Struct):
    parameters: _LoadParameters = msgspec.field(default_factory=_LoadParameters)


class Application:
    """The RSGI application of one worker: REST, and gRPC beside it where it has an address. `metrics` answers /metrics here, `admin` the
    calls that change what is served."""

    def __init__(
        self,
        worker: Worker,
        board: Board,
        metrics: bool = True,
        grpc: str | None = None,
        admin: bool = False,
        follower: Follower | None = None,
    ) -> None:
        self.worker = worker
        self.board = board
        self.metrics = metrics
        self.admin = admin
        self._follower = follower
        self._grpc: GrpcServer | None = None
        self._grpc_address = grpc
        self._metadata = msgspec.json.encode(protocol.server_metadata(versions("burnish").get("burnish", "")))
        self._reading: dict[asyncio.Task[Any], float] = {}  # bodies that are arriving, and since when
        self._watched = False  # whether a timer looks after them

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Before the first request."""
        if self._follower is not None:
            self._follower.start(loop)
        if self._grpc_address is not None:

            async def start(address: str) -> GrpcServer:  # which must be made where it runs
                server = GrpcServer(self.worker, self.board, address)
                await server.start()
                return server

            try:
                self._grpc = loop.run_until_complete(start(self._grpc_address))
            except BurnishError as error:
                sys.exit(str(error))

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """After the last."""
        if self._grpc is not None:
            loop.run_until_complete(self._grpc.stop(DRAIN_SECONDS))

    async def __rsgi__(self, scope: Any, http: Any) -> None:
        path = scope.path
        try:
            if path.endswith("/infer"):
                await self._infer(scope, http, path)
            elif path.startswith("/v2/repository/models/"):
                await self._load(scope, http, path)
            else:
                self._tell(scope, http, path)
        except Refused as refused:
            # asked only now, because a compressed body is never valid JSON
            compressed = scope.headers.get("content-encoding", "identity") != "identity"
            self._refuse(http, *((415, _COMPRESSED) if compressed else (refused.status, str(refused))))
        except InputError as error:
            self._refuse(http, 400, str(error))
        except ProtocolClosed:  # the client went away while it was sending; nobody is there to answer
            self.worker.counters.answered(GONE)
        except Exception:  # a fault of ours ends one request, not the worker
            traceback.print_exc()
            self._refuse(http, 500, "the server failed on this request; its log has the reason")

    async def _infer(self, scope: Any, http: Any, path: str) -> None:
        worker = self.worker
        model = self._model(path.removesuffix("/infer"))
        if scope.method != "POST":
            raise Refused(f"{path} takes POST, not {scope.method}", 405)
        headers = scope.headers
        timeout = _timeout(headers)

        def answer(call: Call, scores: Scores) -> None:
            text, length = protocol.encode(model.signature, call, scores, model.name, model.version)
            if length is None:
                http.response_bytes(200, _JSON, text)
            else:
                http.response_bytes(200, [("content-type", "application/octet-stream"), (protocol.HEADER_LENGTH, str(length))], text)

        worker.turns.inside += 1
        size = 0
        try:
            body = await self._body(http, headers)
            arrived, size = time.perf_counter(), len(body)
            model = self._model(path.removesuffix("/infer"))  # again: another version may have come meanwhile
            asked, cut = protocol.outline(model.signature, body, headers.get(protocol.HEADER_LENGTH), worker.limits, model.layouts)
            await worker.score(model, asked, body, cut, arrived, timeout, answer)
        finally:
            worker.turns.inside -= 1
            worker.release(size)

    async def _load(self, scope: Any, http: Any, path: str) -> None:
        """POST /v2/repository/models/<name>/load: a version becomes the current one, when it is verified."""
        worker = self.worker
        name, _, verb = path.removeprefix("/v2/repository/models/").partition("/")
        if verb not in ("load", "unload"):
            raise Refused(f"there is nothing at {path}. A model is loaded at /v2/repository/models/<name>/load", 404)
        if scope.method != "POST":
            raise Refused(f"{path} takes POST, not {scope.method}", 405)
        if not self.admin:
            raise Refused("this server does not change what it serves by a call. Start it with --admin", 403)
        worker.model(name)
        if verb == "unload":
            raise Refused(f"model {name!r} is the only one here and stays. Load another version of it, or end the server")
        if worker.repository is None:
            raise Refused("this server has one artifact and no versions. Serve a directory that `burnish publish` made")
        body = await self._body(http, scope.headers)
        worker.release(len(body))
        try:
            asked = msgspec.json.decode(body or b"{}", type=_Load)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refused(f"the body is not a load request: {error}") from None
        version = await worker.repository.load(asked.parameters.version)
        while worker.model(name).version != version and told(worker.repository.live).version == version:
            await asyncio.sleep(LOOK_SECONDS / 2)  # opened and warmed on a thread
        http.response_bytes(200, _JSON, b"")

    async def _body(self, http: Any, headers: Any) -> bytes:
        """The body, whole, held until it is released. Refused when it is too long, or too long on its way."""
        task = asyncio.current_task()
        assert task is not None
        if not self._watched:
            self._watched = True
            asyncio.get_running_loop().call_later(self.worker.limits.body_seconds, self._give_up)
        self._reading[task] = time.perf_counter()
        size = self._announced(headers)
        try:
            if size is None:
                return await self._parts(http)
            self.worker.hold(size)
            try:
                return cast(bytes, await http())
            except BaseException:
                self.worker.release(size)
                raise
        except asyncio.CancelledError:
            if task in self._reading:  # not ours
                raise
            task.uncancel()
            raise Refused(f"the body did not arrive within {self.worker.limits.body_seconds:g} seconds", 408) from None
        finally:
            self._reading.pop(task, None)

    def _give_up(self) -> None:
        """End the reading of bodies that have taken too long, and look again when the next one will have."""
        limit, now = self.worker.limits.body_seconds, time.perf_counter()
        for task, since in list(self._reading.items()):
            if now - since < limit:
                asyncio.get_running_loop().call_later(limit - (now - since), self._give_up)
                return
            del self._reading[task]
            task.cancel()
        self._watched = False

    def _announced(self, headers: Any) -> int | None:
        """The body's length where it is known, so that it may be read whole; Refused when it is not allowed."""
        length, most = headers.get("content-length"), self.worker.limits.body_bytes
        if length is None or not length.isdigit():
            return None
        if int(length) > most:
            raise Refused(f"the body has {length} bytes; at most {most} are allowed", 413)
        return int(length)

    async def _parts(self, http: Any) -> bytes:
        """A body of unknown length, read no further than the limit."""
        parts, size, most = [], 0, self.worker.limits.body_bytes
        try:
            async for part in http:
                self.worker.hold(len(part))
                size += len(part)
                if size > most:
                    raise Refused(f"the body has more than {most} bytes, which is what is allowed", 413)
                parts.append(part)
        except BaseException:
            self.worker.release(size)
            raise
        return b"".join(parts)

    def _tell(self, scope: Any, http: Any, path: str) -> None:
        """Everything but inference: health, metadata, metrics."""
        path, method = path.rstrip("/"), "GET"
        answer, headers = b"", _JSON
        if path == "/metrics" and self.metrics:
            answer, headers = self.board.text(), [("content-type", CONTENT_TYPE)]
        elif path == "/v2":
            answer = self._metadata
        elif path in ("/v2/health/live", "/v2/health/ready"):
            headers = []
        elif path == "/v2/repository/index":
            answer, method = msgspec.json.encode(self.worker.index()), "POST"
        elif path == "/v2/models/stats":
            answer = msgspec.json.encode(self.worker.statistics(self.board))
        elif path.endswith("/stats"):
            model = self._model(path.removesuffix("/stats"))
            answer = msgspec.json.encode(self.worker.statistics(self.board, model.name))
        elif path.endswith("/ready"):
            self._model(path.removesuffix("/ready"))
            headers = []
        elif path.startswith("/v2/models/"):
            answer = self._model(path).metadata
        else:
            raise Refused(f"there is nothing at {path or '/'}. The protocol's addresses begin with /v2", 404)
        if scope.method != method and (method, scope.method) != ("GET", "HEAD"):
            raise Refused(f"{path} takes {method}, not {scope.method}", 405)
        http.response_bytes(200, headers, answer)

    def _model(self, path: str) -> Served:
        """The model at /v2/models/<name>[/versions/<version>]."""
        found = self.worker.at.get(path)
        if found is not None:
            return found
        match path.split("/"):
            case ["", "v2", "models", name, *rest] if not rest or (rest[0] == "versions" and len(rest) == 2):
                return self.worker.model(name, *rest[1:])
        raise Refused(f"there is nothing at {path}. A model is at /v2/models/<name>", 404)

    def _refuse(self, http: Any, status: int, sentence: str) -> None:
        self.worker.counters.answered(status)
        http.response_bytes(status, _JSON if status != OVERLOADED else _LATER, msgspec.json.encode({"error": sentence}))


def _timeout(headers: Any) -> float | None:
    """Seconds that the header of a request gives it."""
    told = headers.get(HEADER_TIMEOUT)
    if told is None:
        return None
    try:
        seconds = float(told) / 1000
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < math.inf:
        raise Refused(f"the header X-Request-Timeout-Ms is {told!r}. Give milliseconds above 0")
    return seconds


def serve(
    path: str | Path,
    *,
    http: int = 8000,
    grpc: int | None = None,
    host: str = "127.0.0.1",
    workers: int = 1,
    metrics: int | None = None,
    name: str | None = None,
    deadline_ms: float | None = None,
    admin: bool = False,
    limits: Limits = LIMITS,
) -> None:
    """Serve the artifact at `path` until SIGTERM or SIGINT, then finish the requests in flight and return.

    `http` is the port of REST, `grpc` that of gRPC, which needs grpcio; None for none. `name` is the model's in the protocol, by default
    the directory's. `metrics` is a port of its own for /metrics; without it they are at /metrics of `http`. `deadline_ms` is the time of a
    request that does not say its own, by default the p99 of the objective that the artifact was chosen for, else a second; what cannot be
    answered in time is refused at once. Where `path` has versions (`burnish.serve.versions`), the current one is served, and another as
    soon as it is made the current one; `admin` allows a call to do that. ServeError when a port cannot be had, ArtifactError when the
    artifact cannot be read, both before anything starts.
    """
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces, Loops
    from granian.log import LogLevels
    from prometheus_client import start_http_server

    versions = Versions(path) if Versions.are_in(path) else None
    version = versions.current() if versions else VERSION
    artifact = Artifact.read(versions.where(version) if versions else path)
    name = name if name is not None else Path(path).resolve().name
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ServeError(f"{name!r} cannot be the name of a model. Use letters, digits, '.', '_' and '-'")
    if workers < 1:
        raise ServeError(f"a server cannot have {workers} workers. Give at least 1")
    if deadline_ms is not None and not 0 < deadline_ms < math.inf:
        raise ServeError(f"a deadline of {deadline_ms:g} ms cannot be met. Give milliseconds above 0")
    Signature.of(artifact.manifest.inputs, artifact.manifest.outputs)
    if grpc is not None and (absent := missing()):
        raise ServeError(absent)
    for port, option in ((http, "http"), (grpc, "grpc"), (metrics, "metrics")):
        if port is not None:
            _check_port(host, port, option)
    board = Board.create(workers, _facts(artifact, name, version))
    keeper = None
    if versions is not None:

        def switched(to: str) -> None:
            board.facts = _facts(Artifact.read(versions.where(to)), str(name), to)

        keeper = Keeper(versions, version, board.path.with_suffix(".live"), switched)
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
        backpressure=_connections(limits),
        respawn_failed_workers=True,
        workers_kill_timeout=DRAIN_SECONDS,
        log_level=LogLevels.error,
    )
    loader = functools.partial(
        _application,
        Path(path),
        name,
        deadline_ms=deadline_ms,
        limits=limits,
        board_path=board.path,
        live=keeper.live if keeper else None,
        metrics=metrics is None,
        grpc=None if grpc is None else f"[{host}]:{grpc}" if ":" in host else f"{host}:{grpc}",
        admin=admin,
        pin=workers > 1,
    )
    program = artifact.program
    print(f"{name} ({program.backend}, {program.target}) is served at http://{host}:{http}/v2/models/{name}", file=sys.stderr, flush=True)
    if keeper:
        keeper.start()
    try:
        server.serve(target_loader=cast(Any, loader), wrap_loader=False)
    except SystemExit:
        raise ServeError(
            f"a worker that serves {artifact.path} could not start, or stopped as soon as it was replaced. Its reason is above"
        ) from None
    finally:
        if keeper:
            keeper.stop()
            keeper.live.unlink(missing_ok=True)
        board.remove()


def _facts(artifact: Artifact, name: str, version: str) -> dict[str, str]:
    """The labels of burnish_info."""
    program = artifact.program
    return {"model": name, "version": version, "backend": program.backend, "target": program.target}


def _application(
    path: Path,
    name: str,
    *,
    deadline_ms: float | None,
    limits: Limits,
    board_path: Path,
    live: Path | None,
    metrics: bool,
    grpc: str | None,
    admin: bool,
    pin: bool,
) -> Application:
    """What a worker runs: it maps the artifact, takes a row of the board, and a core when there are several workers."""
    # a fork has its parent's handlers, which would swallow a signal that comes before granian sets the worker's own
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    _end_with_parent()
    board = Board(board_path, {})
    counters = board.claim()
    if pin and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[counters.index % len(cores)]})

    def opened(version: str) -> Served:
        scorer = load(Versions(path).where(version) if live else path)
        ms = objective_ms(scorer.artifact.manifest.measured) if deadline_ms is None else deadline_ms
        return Served(name, scorer, version, ms / 1000)

    def follow(version: str) -> Callable[[], None]:
        model = opened(version)
        worker.warm(model, learn=False)
        facts = _facts(model.scorer.artifact, name, version)

        def switch() -> None:
            worker.put(model)
            board.facts = facts

        return switch

    version = told(live).version if live else VERSION
    try:
        model = opened(version)
        worker = Worker({name: model}, counters, limits, Repository(Versions(path), live) if live else None)
        worker.warm(model)
        board.facts = _facts(model.scorer.artifact, name, version)
    except BurnishError as error:
        sys.exit(str(error))
    return Application(worker, board, metrics, grpc, admin, Follower(live, version, follow) if live else None)


def _connections(limits: Limits) -> int:
    """How many connections a worker may have; granian leaves further ones unaccepted, idle ones count. Opens as many files as it takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else limits.connections + _FILES
    wanted = min(limits.connections + _FILES, most)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(1, wanted - _FILES)


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
