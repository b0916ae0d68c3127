"""Versions of a served model, and how one takes the place of another while requests go on.

    DIR/current            the name of the version to serve, one line; replaced in one step
    DIR/versions/<n>/      an artifact each

Three parties: whoever writes `current` (`publish`, the load call, a person); one Keeper beside the workers, which sees that, verifies the
version in a process of its own at the lowest priority, and either tells the workers or puts the pointer back; and a Follower in each
worker, which opens and warms what was verified on a thread of the lowest priority and then exchanges the models between two requests.
Whatever is wrong with a version, the one before it goes on serving.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from burnish.errors import BurnishError, ServeError
from burnish.runtime.artifact import Artifact
from burnish.serve.protocol import Signature
from burnish.serve.wire import Refused

LOOK_SECONDS = 0.1  # between two looks at a pointer
_NAME = re.compile(r"[1-9][0-9]{0,17}")


class Versions:
    """The versions in one directory."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.pointer = self.path / "current"

    @staticmethod
    def are_in(path: str | Path) -> bool:
        return (Path(path) / "versions").is_dir()

    def names(self) -> list[str]:
        """All that are there, the oldest first."""
        try:
            found = [entry.name for entry in (self.path / "versions").iterdir() if _NAME.fullmatch(entry.name)]
        except FileNotFoundError:
            found = []
        return sorted(found, key=int)

    def where(self, name: str) -> Path:
        return self.path / "versions" / name

    def current(self) -> str:
        """What the pointer says. ServeError when it is missing or does not name a version that is there."""
        try:
            text = self.pointer.read_bytes()[:100].decode(errors="replace").strip()
        except OSError as error:
            raise ServeError(
                f"{self.pointer} cannot be read: {error.strerror}. Write the name of a version into it: {self._told()}"
            ) from None
        if not _NAME.fullmatch(text) or not self.where(text).is_dir():
            raise ServeError(f"{self.pointer} says {text!r}, which is no version there. Write the name of one into it: {self._told()}")
        return text

    def point(self, name: str) -> None:
        """Let the pointer say `name`, in one step."""
        write(self.pointer, f"{name}\n".encode())

    def add(self, artifact: str | Path) -> str:
        """Copy an artifact in as the newest version, whole or not at all; its name. The pointer is left as it is."""
        name = str(int(self.names()[-1]) + 1 if self.names() else 1)
        Artifact.read(artifact).save(self.where(name))
        return name

    def _told(self) -> str:
        return ", ".join(self.names()) or "there is none yet, `burnish publish` adds one"


def publish(artifact: str | Path, to: str | Path) -> str:
    """Add an artifact to the versions at `to` and let it be the current one; its name. A server of `to` verifies it and then serves it."""
    versions = Versions(to)
    name = versions.add(artifact)
    versions.point(name)
    return name


def write(path: Path, text: bytes) -> None:
    """Put `text` at `path` in one step; ServeError when it cannot be written, and then nothing has changed."""
    part = ""
    try:
        handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
        os.chmod(part, 0o644)
        os.replace(part, path)
    except OSError as error:
        if part:
            Path(part).unlink(missing_ok=True)
        raise ServeError(f"cannot write {path}: {error.strerror}") from None


def refusal(path: Path) -> str | None:
    """Why the artifact at `path` may not be served here, or None: verified in a process of its own, so that it may even crash."""
    code = "import sys; from burnish.serve.versions import verify; sys.exit(verify(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"verifying {path} ended with signal {-done.returncode}"
    return (done.stderr.strip().splitlines() or [f"verifying {path} ended with status {done.returncode}"])[-1]


def verify(path: str) -> str | None:
    """Hashes, instructions, golden outputs, names on the wire: None, or what is wrong. At the lowest priority."""
    os.nice(19)
    try:
        artifact = Artifact.read(path)
        artifact.verify()
        Signature.of(artifact.manifest.inputs, artifact.manifest.outputs)
    except BurnishError as error:
        return str(error)
    return None


class Live(msgspec.Struct, frozen=True):
    """What the Keeper tells the workers: the version to serve, why others are not served, and how often it has decided."""

    version: str
    refused: dict[str, str] = {}
    decisions: int = 0


def told(path: Path) -> Live:
    return msgspec.json.decode(path.read_bytes(), type=Live)


def _mark(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced or written."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


class Keeper:
    """Follows the pointer of `versions`, from `version` on, and writes what the workers are to serve to `live`."""

    def __init__(self, versions: Versions, version: str, live: Path, switched: Callable[[str], None] = lambda version: None) -> None:
        self.versions = versions
        self.live = live
        self.told = Live(version)
        self._switched = switched
        self._mark: tuple[int, int] | None = None
        self._ended = threading.Event()
        write(live, msgspec.json.encode(self.told))
        self._thread = threading.Thread(target=self._run, name="versions", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Act on the pointer if it has changed."""
        mark = _mark(self.versions.pointer)
        if mark == self._mark:
            return
        self._mark = mark
        served, refused = self.told.version, self.told.refused
        try:
            wanted = self.versions.current()
            reason = refusal(self.versions.where(wanted)) if wanted != served else None
            refused = {name: why for name, why in refused.items() if name != wanted} | ({wanted: reason} if reason else {})
            self._tell(served if reason else wanted, refused)
            if reason:
                raise ServeError(f"version {wanted} is not served: {reason}")
        except ServeError as error:
            self._back(str(error))
            return
        if wanted != served:
            self._switched(wanted)
            print(f"version {wanted} is verified, and served from now on", file=sys.stderr, flush=True)

    def _tell(self, version: str, refused: dict[str, str]) -> None:
        live = Live(version, refused, self.told.decisions + 1)
        write(self.live, msgspec.json.encode(live))
        self.told = live

    def _back(self, why: str) -> None:
        """Put the pointer back to what is served."""
        print(f"{why}. Version {self.told.version} stays", file=sys.stderr, flush=True)
        try:
            self.versions.point(self.told.version)
        except ServeError as error:
            print(error, file=sys.stderr, flush=True)
        self._mark = _mark(self.versions.pointer)


class Repository:
    """What a worker knows of the versions: all that are there, and what the Keeper has said of them."""

    def __init__(self, versions: Versions, live: Path) -> None:
        self.versions = versions
        self.live = live

    def index(self, name: str, served: str) -> list[dict[str, str]]:
        """Every version and its state, as Triton tells it."""
        refused = told(self.live).refused
        rows = []
        for version in self.versions.names():
            state = "READY" if version == served else "UNAVAILABLE"
            reason = "" if version == served else refused.get(version, "it is not the current version")
            rows.append({"name": name, "version": version, "state": state, "reason": reason})
        return rows

    async def load(self, version: str | None) -> str:
        """Make a version (the newest, where none is named) the current one; its name, when the Keeper has verified it. Refused when it
        cannot be served."""
        names = self.versions.names()
        version = version or (names[-1] if names else "")
        if version not in names:
            raise Refused(f"there is no version {version!r}. There are {', '.join(names)}", 404)
        before = told(self.live).decisions
        self.versions.point(version)
        while (now := told(self.live)).decisions == before:
            await asyncio.sleep(LOOK_SECONDS / 2)
        if now.version != version:
            raise Refused(now.refused.get(version, f"version {now.version} was made the current one meanwhile"))
        return version


class Follower:
    """In a worker: opens what the Keeper tells of, and hands it over on the worker's event loop. `open` runs on a thread."""

    def __init__(self, live: Path, version: str, open_: Callable[[str], Callable[[], None]]) -> None:
        self.live = live
        self._version = version
        self._open = open_
        self._mark = _mark(live)
        self._opening = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(LOOK_SECONDS, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(LOOK_SECONDS, self._look, loop)
        mark = _mark(self.live)
        if self._opening or mark is None or mark == self._mark:
            return
        self._mark = mark
        wanted = told(self.live).version
        if wanted != self._version:
            self._opening = True
            threading.Thread(target=self._exchange, args=(loop, wanted), name="version", daemon=True).start()

    def _exchange(self, loop: asyncio.AbstractEventLoop, wanted: str) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            switch = self._open(wanted)
        except BurnishError as error:
            print(f"version {wanted} was verified and yet cannot be opened: {error}", file=sys.stderr, flush=True)
            self._opening = False
            return

        def done() -> None:
            switch()
            self._version, self._opening = wanted, False

        loop.call_soon_threadsafe(done)
