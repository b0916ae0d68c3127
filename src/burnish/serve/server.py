"""`burnish serve`: an artifact behind the Open Inference Protocol v2, on granian (RSGI), one worker process a core.

Weights are mapped, so workers share them. `app` is what runs in a worker, `keeper` what follows versions beside them.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import gc
import math
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from burnish.errors import BurnishError, ServeError
from burnish.runtime.artifact import Artifact
from burnish.runtime.scorer import load
from burnish.serve import grpc_server, log, sign, trace
from burnish.serve.access import Access
from burnish.serve.app import DRAIN_SECONDS, Application
from burnish.serve.follower import Follower, Repository
from burnish.serve.front import Front
from burnish.serve.grpc_server import Listen
from burnish.serve.keeper import Keeper, Live, told
from burnish.serve.metrics import Board
from burnish.serve.protocol import Signature
from burnish.serve.rollout import edges
from burnish.serve.sample import Sampler
from burnish.serve.versions import Versions
from burnish.serve.wire import LIMITS, Limits
from burnish.serve.worker import VERSION, Served, Worker, objective_ms

_FILES = 128  # open files of a worker beside its connections


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How an artifact is served. Ports of REST, gRPC (needs grpcio) and metrics; None for none, or for metrics at /metrics of REST.

    `name` is the model's in the protocol, by default the directory's. `deadline_ms` is the time of a request that does not say its own, by
    default the p99 of the objective that the artifact was chosen for, else a second; what cannot be answered in time is refused.
    `admin` allows calls that change what is served. `tokens`: a file of bearer tokens (`access`). `tls_cert`, `tls_key` (PEM): both
    protocols over TLS (1.3; gRPC takes 1.2, too); `client_ca`: to clients with a certificate of that authority only. `trust`: the public
    key (PEM) that must have signed an artifact. `log`: text, json, or requests (json, and a line a request).
    """

    http: int = 8000
    grpc: int | None = None
    metrics: int | None = None
    host: str = "127.0.0.1"
    workers: int = 1
    name: str | None = None
    deadline_ms: float | None = None
    admin: bool = False
    tokens: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    trust: Path | None = None
    log: str = "text"
    limits: Limits = LIMITS


DEFAULTS = Options()


def serve(path: str | Path, options: Options = DEFAULTS) -> None:
    """Serve the artifact at `path` until SIGTERM or SIGINT, then finish the requests in flight and return.

    Where `path` has versions (`burnish.serve.versions`), the current one is served, and another as soon as it is made the current one.
    ServeError when a port cannot be had, ArtifactError when the artifact cannot be read or is not trusted, both before anything starts.
    """
    from granian.constants import HTTPModes, Interfaces, Loops
    from granian.log import LogLevels
    from prometheus_client import start_http_server

    versions = Versions(path) if Versions.are_in(path) else None
    version = versions.current() if versions else VERSION
    artifact = Artifact.read(versions.where(version) if versions else path)
    name = _checked(path, options)
    access = Access.read(options.admin, options.tokens)
    if options.trust is not None:
        if absent := sign.missing():
            raise ServeError(absent)
        sign.check(artifact.path, options.trust)
        artifact.verify()
    Signature.of(artifact.manifest.inputs, artifact.manifest.outputs)
    _, golden = artifact.golden()
    for port, option in ((options.http, "http"), (options.grpc, "grpc"), (options.metrics, "metrics")):
        if port is not None:
            _check_port(options.host, port, option)
    os.environ[log.ENVIRONMENT] = options.log  # for the workers, too
    board = Board.create(options.workers, _facts(artifact, name, version))
    keeper = None
    if versions is not None:

        def switched(to: str) -> None:
            board.facts = _facts(Artifact.read(versions.where(to)), name, to)
            board.arm = keeper.told.arm if keeper else 0

        keeper = Keeper(versions, version, board.path.with_suffix(".live"), board, switched, options.trust)
    if options.metrics is not None:
        start_http_server(options.metrics, addr=options.host, registry=board.registry)
    server = Front(
        board,
        "burnish",  # the name of the processes; what runs in them is the loader below
        address=options.host,
        port=options.http,
        interface=Interfaces.RSGI,
        loop=Loops.asyncio,
        http=HTTPModes.http1,
        websockets=False,
        workers=options.workers,
        backpressure=_connections(options.limits),
        respawn_failed_workers=True,
        workers_kill_timeout=DRAIN_SECONDS,
        ssl_cert=options.tls_cert,
        ssl_key=options.tls_key,
        ssl_ca=options.client_ca,
        ssl_client_verify=options.client_ca is not None,
        log_level=LogLevels.error,
    )
    live = keeper.live if keeper else None
    loader = functools.partial(_application, Path(path), name, options, access, board.path, live, edges(next(iter(golden.values()))))
    program = artifact.program
    where = f"http{'s' if options.tls_cert else ''}://{options.host}:{options.http}/v2/models/{name}"
    log.say(f"{name} ({program.backend}, {program.target}) is served at {where}", version=version)
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


def _checked(path: str | Path, options: Options) -> str:
    """The model's name; ServeError for options that cannot be followed."""
    name = options.name if options.name is not None else Path(path).resolve().name
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ServeError(f"{name!r} cannot be the name of a model. Use letters, digits, '.', '_' and '-'")
    if options.workers < 1:
        raise ServeError(f"a server cannot have {options.workers} workers. Give at least 1")
    if options.deadline_ms is not None and not 0 < options.deadline_ms < math.inf:
        raise ServeError(f"a deadline of {options.deadline_ms:g} ms cannot be met. Give milliseconds above 0")
    if options.log not in log.FORMS:
        raise ServeError(f"there is no log of the form {options.log!r}. Use one of {', '.join(log.FORMS)}")
    if (options.tls_cert is None) != (options.tls_key is None):
        raise ServeError("TLS takes a certificate and its key. Give both --tls-cert and --tls-key")
    if options.client_ca is not None and options.tls_cert is None:
        raise ServeError("--client-ca asks clients for certificates, which is part of TLS. Give --tls-cert and --tls-key, too")
    for file in (options.tls_cert, options.tls_key, options.client_ca):
        try:
            if file is not None and b"-----BEGIN " not in file.read_bytes():
                raise ServeError(f"{file} has no certificate or key in PEM")
        except OSError as error:
            raise ServeError(f"{file} cannot be read: {error.strerror}") from None
    if options.grpc is not None and (absent := grpc_server.missing()):
        raise ServeError(absent)
    if trace.wanted() and (absent := trace.missing()):
        raise ServeError(absent)
    return name


def _facts(artifact: Artifact, name: str, version: str) -> dict[str, str]:
    """The labels of burnish_info."""
    program = artifact.program
    return {"model": name, "version": version, "backend": program.backend, "target": program.target}


def _application(
    path: Path,
    name: str,
    options: Options,
    access: Access,
    board_path: Path,
    live: Path | None,
    inner: Sequence[float],
) -> Application:
    """What a worker runs: it maps the artifact, takes a row of the board, and a core when there are several workers."""
    # a fork has its parent's handlers, which would swallow a signal that comes before granian sets the worker's own
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    _end_with_parent()
    board = Board(board_path, {})
    counters = board.claim()
    if options.workers > 1 and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[counters.index % len(cores)]})

    def opened(version: str) -> Served:
        scorer = load(Versions(path).where(version) if live else path)
        ms = objective_ms(scorer.artifact.manifest.measured) if options.deadline_ms is None else options.deadline_ms
        return Served(name, scorer, version, ms / 1000)

    def opened_and_warm(version: str) -> Served:
        model = opened(version)
        worker.warm(model, learn=False)
        return model

    def settle(now: Live, found: dict[str, Served]) -> None:
        worker.follow(now, found)
        board.facts = _facts(worker.models[name].scorer.artifact, name, now.version)
        board.arm = now.arm

    now = told(live) if live else Live(VERSION)
    try:
        model = opened(now.version)
        model.arm = board.arm = now.arm
        worker = Worker({name: model}, counters, options.limits, Repository(Versions(path), live) if live else None, Sampler(inner))
        worker.warm(model)
        board.facts = _facts(model.scorer.artifact, name, now.version)
        if trace.wanted():
            worker.spans = trace.Spans()
        gc.collect()
        gc.freeze()  # what lives as long as the worker is not looked through again and again
        counters.started()
    except BurnishError as error:
        sys.exit(str(error))
    address = f"[{options.host}]" if ":" in options.host else options.host
    listen = None if options.grpc is None else Listen(f"{address}:{options.grpc}", options.tls_cert, options.tls_key, options.client_ca)
    follower = Follower(live, [now.version], opened_and_warm, settle) if live else None
    return Application(worker, board, options.metrics is None, listen, access, follower)


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
