"""The RSGI application of one worker: REST, and gRPC beside it where it has an address.

Scoring runs in the worker's event loop: a worker is one core, a request is a millisecond, and handing it to another thread would cost more
than it waits; `admission` has the order. `docs/serving.md` has the protocol with examples.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
import traceback
from typing import Any, cast

import msgspec
from granian.rsgi import ProtocolClosed

from burnish.errors import BurnishError, InputError, ServeError
from burnish.host import versions
from burnish.runtime.scorer import Scores
from burnish.serve import log, protocol
from burnish.serve.access import Access
from burnish.serve.admission import OVERLOADED
from burnish.serve.follower import Follower
from burnish.serve.grpc_server import GrpcServer, Listen
from burnish.serve.metrics import CONTENT_TYPE, GONE, Board
from burnish.serve.openapi import page
from burnish.serve.protocol import Layout
from burnish.serve.wire import Refused
from burnish.serve.worker import LoadParameters, Served, Worker

_COMPRESSED = "compressed bodies are not supported. Send the tensors as binary data"
_JSON = [("content-type", "application/json")]
_LATER = [*_JSON, ("retry-after", "1")]  # whole seconds, of which a queue of milliseconds needs none
_WHO = [*_JSON, ("www-authenticate", "Bearer")]
HEADER_TIMEOUT = "x-request-timeout-ms"
HEADER_ID = "x-request-id"
DRAIN_SECONDS = 30  # what requests in flight have to finish after SIGTERM


class _Load(msgspec.Struct):
    parameters: LoadParameters = msgspec.field(default_factory=LoadParameters)


class Application:
    """`metrics` answers /metrics here; `access` says who may call what."""

    def __init__(
        self,
        worker: Worker,
        board: Board,
        metrics: bool = True,
        grpc: Listen | None = None,
        access: Access | None = None,
        follower: Follower | None = None,
    ) -> None:
        self.worker = worker
        self.board = board
        self.metrics = metrics
        self.access = access or Access()
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

            async def start(listen: Listen) -> GrpcServer:  # which must be made where it runs
                server = GrpcServer(self.worker, self.board, listen, self.access)
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
        if self.worker.spans is not None:
            self.worker.spans.close()

    async def __rsgi__(self, scope: Any, http: Any) -> None:
        path = scope.path
        try:
            if self.access.tokens and not path.startswith("/v2/health/"):
                self.access.check(scope.headers.get("authorization"))
            if path.endswith("/infer"):
                await self._infer(scope, http, path)
            elif path.startswith("/v2/repository/models/"):
                await self._repository(scope, http, path)
            else:
                self._tell(scope, http, path)
        except Refused as refused:
            # asked only now, because a compressed body is never valid JSON
            compressed = scope.headers.get("content-encoding", "identity") != "identity"
            self._refuse(scope, http, *((415, _COMPRESSED) if compressed else (refused.status, str(refused))))
        except (InputError, ServeError) as error:
            self._refuse(scope, http, 400, str(error))
        except ProtocolClosed:  # the client went away while it was sending; nobody is there to answer
            self.worker.counters.answered(GONE)
        except Exception:  # a fault of ours ends one request, not the worker
            traceback.print_exc()
            self._refuse(scope, http, 500, "the server failed on this request; its log has the reason")

    async def _infer(self, scope: Any, http: Any, path: str) -> None:
        worker = self.worker
        self._model(path)
        if scope.method != "POST":
            raise Refused(f"{path} takes POST, not {scope.method}", 405)
        headers = scope.headers
        told = headers.get(HEADER_TIMEOUT)
        timeout = None if told is None else _timeout(told)

        def answer(asked: Layout, scores: Scores) -> None:
            text, length = protocol.encode(model.signature, asked, scores, model.name, model.version)
            if length is None:
                http.response_bytes(200, _JSON, text)
            else:
                http.response_bytes(200, [("content-type", "application/octet-stream"), (protocol.HEADER_LENGTH, str(length))], text)

        worker.turns.inside += 1
        size = 0
        try:
            body = await self._body(http, headers)
            arrived, size = time.perf_counter(), len(body)
            model = self._model(path)  # again: another version may have come meanwhile
            told = headers.get(protocol.HEADER_LENGTH)
            asked, cut = protocol.outline(model.signature, body, told, worker.limits, model.layouts)
            seconds = worker.seconds(model, asked, timeout)
            sentence = worker.turns.refusal(asked.rows, arrived, seconds)
            if sentence is not None:  # said here and not raised: under overload most requests end here
                self._refuse(scope, http, OVERLOADED, sentence)
                return
            if worker.candidate is None and not worker.logs_requests and worker.spans is None:
                await worker.score(model, asked, body, cut, arrived, seconds, answer)
                return
            key = asked.id or headers.get(HEADER_ID, "")
            chosen = worker.answers(model, key)
            if chosen is not model:
                model = chosen
                asked, cut = protocol.outline(model.signature, body, told, worker.limits, model.layouts)
            await worker.score(model, asked, body, cut, arrived, seconds, answer, key, headers.get("traceparent"))
        finally:
            worker.turns.inside -= 1
            worker.release(size)

    async def _repository(self, scope: Any, http: Any, path: str) -> None:
        """POST /v2/repository/models/<name>/load: a version becomes the current one, or the candidate, when it is verified; /unload: a
        candidate's trial ends."""
        worker = self.worker
        name, _, verb = path.removeprefix("/v2/repository/models/").partition("/")
        if verb not in ("load", "unload"):
            raise Refused(f"there is nothing at {path}. A model is loaded at /v2/repository/models/<name>/load", 404)
        if scope.method != "POST":
            raise Refused(f"{path} takes POST, not {scope.method}", 405)
        self.access.check_admin(scope.headers.get("authorization"))
        body = await self._body(http, scope.headers)
        worker.release(len(body))
        try:
            asked = msgspec.json.decode(body or b"{}", type=_Load).parameters
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refused(f"the body is not a load request: {error}") from None
        if verb == "load":
            await worker.load(name, asked)
        else:
            await worker.unload(name, asked.version)
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
            self.worker.counters.waiting(len(self.worker.turns))
            answer, headers = self.board.text(), [("content-type", CONTENT_TYPE)]
        elif path == "/v2":
            answer = self._metadata
        elif path in ("/v2/health/live", "/v2/health/ready"):
            answer = b'{"live":true}' if path.endswith("live") else b'{"ready":true}'  # KServe's client reads them
        elif path == "/v2/repository/index":
            answer, method = msgspec.json.encode(self.worker.index()), "POST"
        elif path == "/v2/models/stats":
            answer = msgspec.json.encode(self.worker.statistics(self.board))
        elif path == "/v2/openapi.json":
            answer = msgspec.json.encode(page(list(self.worker.models.values()), self.worker.limits))
        elif path.endswith("/stats"):
            model = self._model(path.removesuffix("/stats"))
            answer = msgspec.json.encode(self.worker.statistics(self.board, model.name, model.version))
        elif path.endswith("/config"):
            answer = msgspec.json.encode(protocol.model_config(self._model(path.removesuffix("/config"))))
        elif path.endswith("/ready"):
            answer = msgspec.json.encode({"name": self._model(path.removesuffix("/ready")).name, "ready": True})
        elif path.startswith("/v2/models/"):
            answer = self._model(path).metadata
        else:
            raise Refused(f"there is nothing at {path or '/'}. The protocol's addresses begin with /v2", 404)
        if scope.method != method and (method, scope.method) != ("GET", "HEAD"):
            raise Refused(f"{path} takes {method}, not {scope.method}", 405)
        http.response_bytes(200, headers, answer)

    def _model(self, path: str) -> Served:
        """The model at /v2/models/<name>[/versions/<version>][/infer]."""
        found = self.worker.at.get(path)
        if found is not None:
            return found
        match path.removesuffix("/infer").split("/"):
            case ["", "v2", "models", name, *rest] if not rest or (rest[0] == "versions" and len(rest) == 2):
                return self.worker.model(name, *rest[1:])
        raise Refused(f"there is nothing at {path.removesuffix('/infer')}. A model is at /v2/models/<name>", 404)

    def _refuse(self, scope: Any, http: Any, status: int, sentence: str) -> None:
        self.worker.counters.answered(status)
        if self.worker.logs_requests:
            log.request(id=scope.headers.get(HEADER_ID, ""), path=scope.path, status=status, error=sentence)
        headers = {OVERLOADED: _LATER, 401: _WHO}.get(status, _JSON)
        http.response_bytes(status, headers, msgspec.json.encode({"error": sentence}))


def _timeout(told: str) -> float:
    """Seconds that the header of a request gives it."""
    try:
        seconds = float(told) / 1000
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < math.inf:
        raise Refused(f"the header X-Request-Timeout-Ms is {told!r}. Give milliseconds above 0")
    return seconds
