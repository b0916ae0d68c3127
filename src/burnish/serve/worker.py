"""What a worker process does for either protocol: it finds the model, gives requests their turns, scores them, and counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
import numpy as np

from burnish.runtime.scorer import Scorer, Scores
from burnish.serve import protocol
from burnish.serve.admission import OVERLOADED, Turns
from burnish.serve.metrics import Board, Row
from burnish.serve.protocol import Call, Layout, Signature
from burnish.serve.versions import Repository
from burnish.serve.wire import LIMITS, Limits, Refused

T = TypeVar("T")

VERSION = "1"
DEADLINE_MS = 1000.0  # where neither the command nor the artifact says one
WARM_ROWS = (1, 16, 128, 1024)


class Served:
    """A model under its name: the scorer, what it takes and gives, and the time of a request that does not say its own (`timeout`, s)."""

    def __init__(self, name: str, scorer: Scorer, version: str = VERSION, timeout: float = DEADLINE_MS / 1000) -> None:
        self.name = name
        self.version = version
        self.scorer = scorer
        self.timeout = timeout
        self.requests = 0  # that are waiting or being scored
        self.retired = False  # another version has its place
        self.signature = Signature.of(scorer.inputs, scorer.outputs)
        self.layouts: dict[bytes, Layout] = {}
        self.metadata = msgspec.json.encode(protocol.model_metadata(self.signature, name, version))


class Worker:
    """The models of one process, and the turns in which their requests are scored."""

    def __init__(self, models: Mapping[str, Served], counters: Row, limits: Limits = LIMITS, repository: Repository | None = None) -> None:
        self.models = dict(models)
        self.at = self._addresses()
        self.counters = counters
        self.limits = limits
        self.repository = repository
        self.turns = Turns(limits.waiting)
        self._held = 0

    def put(self, model: Served) -> None:
        """Serve a model in the place of another version of it, which is closed as soon as the requests that wait for it are over."""
        old = self.models[model.name]
        self.models[model.name] = model
        self.at = self._addresses()
        old.retired = True
        if not old.requests:
            old.scorer.close()

    def _addresses(self) -> dict[str, Served]:
        models = self.models.values()
        return {f"/v2/models/{m.name}{version}": m for m in models for version in ("", f"/versions/{m.version}")}

    def warm(self, model: Served, learn: bool = True) -> None:
        """Score golden rows of several sizes, so that the first request finds everything in place, and its time known (`learn`)."""
        table, _ = model.scorer.artifact.golden()
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
            raise Refused(f"model {name!r} has no version {version!r}. It has {found.version!r}", 404)
        return found

    def index(self) -> list[dict[str, str]]:
        """What the repository has, as Triton tells it."""
        if self.repository is not None:
            return [row for m in self.models.values() for row in self.repository.index(m.name, m.version)]
        return [{"name": m.name, "version": m.version, "state": "READY", "reason": ""} for m in self.models.values()]

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

    async def score(
        self,
        model: Served,
        asked: Layout,
        body: bytes,
        cut: int,
        arrived: float,
        timeout: float | None,
        answer: Callable[[Call, Scores], T],
    ) -> T:
        """What `answer` makes of the scores of one request, in its turn. `timeout` is what the transport says of the request's time, in s.

        Refused (503) when it cannot be answered in time.
        """
        told = [t for t in (timeout, asked.timeout) if t is not None]
        seconds = min(*told, self.limits.seconds) if told else model.timeout

        def turn() -> T:
            began = time.perf_counter()
            call = protocol.fill(asked, body, cut)
            computing = time.perf_counter()
            scores = protocol.score(model.scorer, call)
            computed = time.perf_counter()
            took = computed - arrived
            # before the answer, or a kill could lose it
            self.counters.scored(call.rows, began - arrived, computed - computing, took, took > seconds)
            return answer(call, scores)

        model.requests += 1
        try:
            return await self.turns.run(turn, asked.rows, arrived, seconds)
        finally:
            self.counters.waiting(len(self.turns))
            model.requests -= 1
            if model.retired and not model.requests:
                model.scorer.close()


def objective_ms(measured: Mapping[str, object]) -> float:
    """The time of a request as the objective says it that the artifact was chosen for (its manifest's `measured`), else the default."""
    objective = measured.get("objective")
    found = objective.get("p99_ms") if isinstance(objective, dict) else None
    return float(found) if isinstance(found, int | float) else DEADLINE_MS
