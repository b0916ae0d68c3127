"""In a worker: what it knows of the versions, and how it follows what the Keeper tells."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from burnish.errors import BurnishError
from burnish.serve import log
from burnish.serve.keeper import LOOK_SECONDS, Live, told
from burnish.serve.rollout import Rollout
from burnish.serve.versions import Mark, Versions, mark
from burnish.serve.wire import Refused

OTHER_SECONDS = 2.0  # that a load waits for its own decision after another one was told


class Repository:
    """What a worker knows of the versions: all that are there, and what the Keeper has said of them."""

    def __init__(self, versions: Versions, live: Path) -> None:
        self.versions = versions
        self.live = live

    def index(self, name: str, served: Mapping[str, str]) -> list[dict[str, str]]:
        """Every version and its state, as Triton tells it. `served`: what each version that this worker has open is for."""
        refused = told(self.live).refused
        rows = []
        for version in self.versions.names():
            state = "READY" if version in served else "UNAVAILABLE"
            reason = served.get(version, refused.get(version, "it is not the current version"))
            rows.append({"name": name, "version": version, "state": state, "reason": reason})
        return rows

    async def load(self, version: str | None, mode: str | None = None, share: float | None = None) -> str:
        """Make a version (the newest, where none is named) the current one, or with a mode the candidate; its name, when the Keeper has
        verified it. Refused when it cannot be served."""
        names = self.versions.names()
        version = version or (names[-1] if names else "")
        if version not in names:
            raise Refused(f"there is no version {version!r}. There are {', '.join(names)}", 404)
        now = told(self.live)
        before = now.decisions
        if mode is not None and version == now.version:
            raise Refused(f"version {version} is the current one. Try another beside it")
        if mode is None:
            self.versions.point(version)
        else:
            asked = {"candidate": version, "mode": mode, **({"share": share} if share is not None else {})}
            try:
                plan = msgspec.convert({**msgspec.to_builtins(self.versions.rollout()), **asked}, type=Rollout)
            except msgspec.ValidationError as error:
                raise Refused(f"the version cannot be tried: {error}") from None
            self.versions.try_out(plan)
        decided: float | None = None
        while True:
            now = told(self.live)
            if now.decisions != before:
                if (now.version if mode is None else now.candidate) == version:
                    return version
                decided = decided or time.monotonic()  # it may have been another decision, begun before this was asked
                if version in now.refused or time.monotonic() - decided > OTHER_SECONDS:
                    raise Refused(now.refused.get(version, f"version {now.version} was made the current one meanwhile"))
            await asyncio.sleep(LOOK_SECONDS / 2)

    async def drop(self, version: str) -> None:
        """End the trial of a candidate."""
        before = told(self.live).decisions
        self.versions.try_out(msgspec.structs.replace(self.versions.rollout(), candidate=""))
        while (now := told(self.live)).decisions == before and now.candidate == version:
            await asyncio.sleep(LOOK_SECONDS / 2)


class Follower:
    """Opens what the Keeper tells of, and hands it over on the worker's event loop. `open_` runs on a thread."""

    def __init__(
        self, live: Path, have: Iterable[str], open_: Callable[[str], Any], settle: Callable[[Live, dict[str, Any]], None]
    ) -> None:
        self.live = live
        self._have = set(have)
        self._open = open_
        self._settle = settle
        self._mark: Mark | None = None
        self._opening = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(LOOK_SECONDS, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(LOOK_SECONDS, self._look, loop)
        found = mark(self.live)
        if self._opening or found is None or found == self._mark:
            return
        self._mark = found
        now = told(self.live)
        missing = {now.version, *([now.candidate] if now.candidate else [])} - self._have
        if missing:
            self._opening = True
            threading.Thread(target=self._exchange, args=(loop, now, missing), name="version", daemon=True).start()
        else:
            self._done(now, {})

    def _exchange(self, loop: asyncio.AbstractEventLoop, now: Live, missing: set[str]) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        opened = {}
        try:
            for version in sorted(missing):
                opened[version] = self._open(version)
        except BurnishError as error:
            log.say(f"version {version} was verified and yet cannot be opened: {error}", version=version)
            self._opening = False
            return

        def done() -> None:
            self._done(now, opened)
            self._opening = False

        loop.call_soon_threadsafe(done)

    def _done(self, now: Live, opened: dict[str, Any]) -> None:
        self._settle(now, opened)
        self._have = {now.version, *([now.candidate] if now.candidate else [])}
