"""What a worker process does for either protocol: it finds the model, gives requests their turns, scores them, and counts."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
import numpy as np

from burnish.runtime.scorer import Scorer, Scores
from burnish.serve import log, protocol
from burnish.serve.admission import OVERLOADED, Turns
from burnish.serve.follower import Repository
from burnish.serve.keeper import LOOK_SECONDS, Live, told
from burnish.serve.metrics import Board, Row
from burnish.serve.protocol import Layout, Signature
from burnish.serve.sample import Sampler
from burnish.serve.wire import LIMITS, Limits, Refused

T = TypeVar("T")

VERSION = "1"
DEADLINE_MS = 1000.0  # where neither the command nor the artifact says one
WARM_ROWS = (1, 16, 128, 1024)
CLOSED = "this server does not change what it serves by a call. Start it with --admin"


class Served:
    """A model under its name: the scorer, what it takes and gives, and the time of a request that does not say its own (`timeout`, s)."""

    def __init__(self, name: str, scorer: Scorer, version: str = VERSION, timeout: float = DEADLINE_MS / 1000) -> None:
        self.name = name
        self.version = version
        self.scorer = scorer
        self.timeout = timeout
        self.arm = 0  # of the metrics
        self.requests = 0  # that are waiting or being scored
        self.retired = False  # another version has its place
        self.signature = Signature.of(scorer.inputs, scorer.outputs)
        self.layouts: dict[bytes, Layout] = {}
        self.metadata = msgspec.json.encode(protocol.model_metadata(self.signature, name, version))

    def retire(self) -> None:
        """Close it as soon as the requests that wait for it are over."""
        self.retired = True
        if not self.requests:
            self.scorer.close()


class LoadParameters(msgspec.Struct):
    """What a load call may say beside the model: a version, and how to try it."""

    version: str | None = None
    mode: str | None = None
    share: float | None = None


class Worker:
    """The model of one process and the candidate beside it, and the turns in which their requests are scored."""

    def __init__(
        self,
        models: Mapping[str, Served],
        counters: Row,
        limits: Limits = LIMITS,
        repository: Repository | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self.models = dict(models)
        self.candidate: Served | None = None
        self.shadow = False  # what the candidate is for; else it is a canary
        self.share = 0.0  # of the requests that a canary answers
        self.at = self._addresses()
        self.counters = counters
        self.limits = limits
        self.repository = repository
        self.turns = Turns(limits.waiting)
        self.sampler = sampler or Sampler()
        self.logs_requests = log.form() == "requests"
        self.spans: Any = None  # a trace.Spans, where traces are wanted
        self._held = 0
        self._turn_of = 0  # counts requests without an id, of which a canary gets its share

    def follow(self, live: Live, opened: dict[str, Served]) -> None:
        """Serve what the Keeper tells of, with the versions that were opened for it, between two requests."""
        (current,) = self.models.values()
        mine = {model.version: model for model in (current, self.candidate) if model is not None} | opened
        self.models = {current.name: mine[live.version]}
        mine[live.version].arm = live.arm
        self.candidate = mine[live.candidate] if live.candidate else None
        if self.candidate is not None:
            self.candidate.arm = 1 - live.arm
        self.shadow, self.share = live.mode == "shadow", live.share
        self.sampler.every = 1 if live.trial else self.sampler.SELDOM
        self.at = self._addresses()
        for version, model in mine.items():
            if version not in (live.version, live.candidate):
                model.retire()

    def _addresses(self) -> dict[str, Served]:
        found = {f"/v2/models/{m.name}{version}": m for m in self.models.values() for version in ("", f"/versions/{m.version}")}
        if self.candidate is not None and not self.shadow:
            found[f"/v2/models/{self.candidate.name}/versions/{self.candidate.version}"] = self.candidate
        return found | {f"{path}/infer": model for path, model in found.items()}

    def warm(self, model: Served, learn: bool = True) -> None:
        """Score golden rows of several sizes, so that the first request finds everything in place, and its time known (`learn`)."""
        table, _ = model.scorer.artifact.golden()
        self.sampler.know(table)
        for rows in WARM_ROWS:
            some = {name: np.ascontiguousarray(array[np.arange(rows) % len(array)]) for name, array in table.items()}
            for _ in range(3):
                began = time.perf_counter()
                model.scorer.outputs_of(some)
                now = time.perf_counter()
            if learn:
                self.turns.service.met(rows, now - began, now)

    def model(self, name: str, version: str = "") -> Served:
        """The model of that name, and of that version where one is given."""
        found = self.models.get(name)
        if found is None:
            raise Refused(f"there is no model {name!r}. This server has {', '.join(map(repr, self.models))}", 404)
        if version and version != found.version:
            if self.candidate is not None and not self.shadow and version == self.candidate.version:
                return self.candidate
            raise Refused(f"model {name!r} has no version {version!r}. It has {found.version!r}", 404)
        return found

    def answers(self, model: Served, key: str) -> Served:
        """Who answers a request for `model`: the canary gets its share, always the same requests by their id (`key`)."""
        if self.candidate is None or self.shadow or model is self.candidate:
            return model
        if key:
            part = zlib.crc32(key.encode()) / 2**32
        else:
            self._turn_of += 1
            part = (self._turn_of * 0.6180339887498949) % 1.0  # spread evenly: the golden ratio's multiples
        return self.candidate if part < self.share else model

    def index(self) -> list[dict[str, str]]:
        """What the repository has, as Triton tells it."""
        served = {model.version: "" for model in self.models.values()}
        if self.candidate is not None:
            served[self.candidate.version] = "shadow" if self.shadow else f"canary of {self.share:.3g} of the requests"
        if self.repository is not None:
            return [row for name in self.models for row in self.repository.index(name, served)]
        return [{"name": m.name, "version": m.version, "state": "READY", "reason": ""} for m in self.models.values()]

    async def load(self, name: str, asked: LoadParameters) -> None:
        """Make a version the current one, or the candidate; returns when this worker serves it. Refused when it cannot be served."""
        self.model(name)
        repository = self._repository()
        version = await repository.load(asked.version, asked.mode, asked.share)
        wanted = "version" if asked.mode is None else "candidate"

        def serves() -> bool:
            held = self.models[name] if asked.mode is None else self.candidate
            return held is not None and held.version == version

        while not serves() and getattr(told(repository.live), wanted) == version:
            await asyncio.sleep(LOOK_SECONDS / 2)  # opened and warmed on a thread

    async def unload(self, name: str, version: str | None) -> None:
        """End the trial of a candidate; Refused for anything else."""
        self.model(name)
        if self.candidate is None or version != self.candidate.version:
            raise Refused(f"model {name!r} is the only one here and stays. Load another version of it, or end the server")
        await self._repository().drop(version)

    def _repository(self) -> Repository:
        if self.repository is None:
            raise Refused("this server has one artifact and no versions. Serve a directory that `burnish publish` made")
        return self.repository

    def statistics(self, board: Board, name: str = "", version: str = "") -> dict[str, Any]:
        """What Triton's statistics say of a model, of all workers together."""
        model = self.model(name, version) if name else next(iter(self.models.values()))
        return {"model_stats": [{"name": model.name, "version": model.version, **board.statistics()}]}

    def hold(self, size: int) -> None:
        """Account for `size` more bytes of a body, until `release`; Refused where that would be too many."""
        if self._held + size > self.limits.held_bytes:
            raise Refused(f"overloaded: the requests here have {self._held} bytes already. Try again later, or elsewhere", OVERLOADED)
        self._held += size

    def release(self, size: int) -> None:
        self._held -= size

    def seconds(self, model: Served, asked: Layout, timeout: float | None) -> float:
        """The time of a request: the shorter of what it says itself and what the transport says (`timeout`, s), else the model's."""
        if timeout is None and asked.timeout is None:
            return model.timeout
        return min(*(t for t in (timeout, asked.timeout) if t is not None), self.limits.seconds)

    async def score(
        self,
        model: Served,
        asked: Layout,
        body: bytes,
        cut: int,
        arrived: float,
        seconds: float,
        answer: Callable[[Layout, Scores], T],
        key: str = "",
        parent: str | None = None,
    ) -> T:
        """What `answer` makes of the scores of one request that `turns.refusal` has nothing against, in its turn.

        `seconds` is the request's time from when it `arrived`; `key` and `parent` are its id and its trace. Refused (503) when its turn
        comes too late.
        """

        def turn() -> T:
            computing = time.perf_counter()
            try:
                scores = protocol.scores_of(model.scorer, asked, body, cut)
            except Refused:
                raise
            except Exception:  # belongs to the request, and counts against its version: a fault, or an id that the version before has
                self.counters.failed(model.arm)
                raise
            computed = time.perf_counter()
            took = computed - arrived
            # before the answer, or a kill could lose it
            self.counters.scored(asked.rows, computing - arrived, computed - computing, took, took > seconds, model.arm, asked.requests)
            found = answer(asked, scores)
            if self.sampler.wants() or self.candidate is not None or self.logs_requests or self.spans is not None:
                self._beside(model, asked, body, cut, scores, (arrived, computing, computed), key, parent)
            return found

        model.requests += 1
        try:
            return await self.turns.admitted(turn, asked.rows, arrived, seconds)
        finally:
            model.requests -= 1
            if model.retired and not model.requests:
                model.scorer.close()

    def _beside(
        self,
        model: Served,
        asked: Layout,
        body: bytes,
        cut: int,
        scores: Scores,
        times: tuple[float, float, float],
        key: str,
        parent: str | None,
    ) -> None:
        """What is done with a request beside answering it, once the answer is on its way."""
        arrived, computing, computed = times
        if self.logs_requests:
            log.request(
                id=key,
                version=model.version,
                status=200,
                rows=asked.rows,
                queue_ms=round(1e3 * (computing - arrived), 3),
                compute_ms=round(1e3 * (computed - computing), 3),
            )
        if self.spans is not None:
            self.spans.request(model, asked.rows, key, parent, times)
        first = next(iter(scores.values())) if isinstance(scores, dict) else scores
        shadow = self.candidate if self.shadow and model is not self.candidate else None
        if self.sampler.due or shadow is not None:
            self.sampler.due = False
            kept = first.copy()  # the next request may overwrite it
            asyncio.get_running_loop().call_soon(self._compare, model, shadow, asked, body, cut, kept)

    def _compare(self, model: Served, shadow: Served | None, asked: Layout, body: bytes, cut: int, scores: np.ndarray) -> None:
        """Count a sample of inputs and scores; let the shadow score the request too. Requests that wait go first."""
        if len(self.turns) and shadow is not None:
            self.counters.skipped()
            return
        self.counters.scores(model.arm, self.sampler.bins(scores))
        call = protocol.fill(asked, body, cut)
        self.counters.ranges(*self.sampler.outside(call))
        if shadow is None or shadow.retired:
            return
        began = time.perf_counter()
        try:
            found = protocol.score(shadow.scorer, call)
        except Exception as error:  # whatever it is, it is the shadow's: the current version answered this request
            self.counters.failed(shadow.arm)
            log.say(f"version {shadow.version}, the shadow, failed on a request: {type(error).__name__}: {error}", version=shadow.version)
            return
        took = time.perf_counter() - began
        theirs = next(iter(found.values())) if isinstance(found, dict) else found
        apart = np.abs(np.asarray(theirs, np.float64) - scores)
        self.counters.shadowed(shadow.arm, took, apart.size, float(apart[np.isfinite(apart)].sum()))
        self.counters.scores(shadow.arm, self.sampler.bins(theirs))


def objective_ms(measured: Mapping[str, object]) -> float:
    """The time of a request as the objective says it that the artifact was chosen for (its manifest's `measured`), else the default."""
    objective = measured.get("objective")
    found = objective.get("p99_ms") if isinstance(objective, dict) else None
    return float(found) if isinstance(found, int | float) else DEADLINE_MS
