"""Versions of a served model, and how one takes the place of another while requests go on.

    DIR/current            the name of the version to serve, one line; replaced in one step
    DIR/rollout.json       optional: a candidate beside it, and when a version is taken back (`rollout`)
    DIR/versions/<n>/      an artifact each

Three parties: whoever writes these files (`publish`, the load call, a person); one Keeper beside the workers (`keeper`), which sees that,
verifies the version in a process of its own at the lowest priority, and either tells the workers or puts the files back; and a Follower in
each worker (`follower`), which opens and warms what was verified on a thread of the lowest priority and then exchanges the models between
two requests. Whatever is wrong with a version, the one before it goes on serving.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import msgspec

from burnish.errors import ServeError
from burnish.runtime.artifact import Artifact
from burnish.serve import rollout, sign
from burnish.serve.rollout import Rollout

Mark = tuple[int, int]
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

    def point(self, name: str) -> Mark:
        """Let the pointer say `name`, in one step."""
        return write(self.pointer, f"{name}\n".encode())

    def next(self) -> str:
        """The name of the version that would be added now."""
        return str(int(self.names()[-1]) + 1 if self.names() else 1)

    def add(self, artifact: str | Path) -> str:
        """Copy an artifact in as the newest version, whole or not at all, with its signature; its name. The pointer is left as it is."""
        name = self.next()
        Artifact.read(artifact).save(self.where(name))
        return name

    def rollout(self) -> Rollout:
        return Rollout.read(self.path)

    def try_out(self, plan: Rollout) -> Mark:
        """Let rollout.json say `plan`, in one step."""
        return write(self.path / rollout.FILE, plan.text())

    def _told(self) -> str:
        return ", ".join(self.names()) or "there is none yet, `burnish publish` adds one"


def publish(what: str | Path, to: str | Path, *, shadow: bool = False, canary: float | None = None, key: Path | None = None) -> str:
    """Make a version of `what` and serve it at `to`: as the current one, or beside it as its shadow, or for a share of requests; its name.

    `what` is an artifact, a file of changed table rows (.npz or .parquet, see `delta`), or the name of a version that is there already.
    `key` signs a new version (`sign`). A server of `to` verifies the version before it serves it.
    """
    versions = Versions(to)
    if shadow or canary is not None:
        plan = msgspec.structs.replace(versions.rollout(), mode="shadow" if canary is None else "canary")
        if canary is not None:
            if not 0 < canary <= 1:
                raise ServeError(f"a canary cannot have the share {canary:g} of the requests. Give a number above 0, and at most 1")
            plan = msgspec.structs.replace(plan, share=canary)
        versions.current()  # beside which it is tried
    if str(what) in versions.names() and not Path(what).exists():
        name = str(what)
    elif Path(what).suffix in (".npz", ".parquet"):
        from burnish.serve.delta import add

        name = add(Path(what), versions, key)
    else:
        name = versions.add(what)
        if key is not None:
            sign.sign(versions.where(name), key)
    if shadow or canary is not None:
        versions.try_out(msgspec.structs.replace(plan, candidate=name))
    else:
        versions.point(name)
    return name


def mark(path: Path) -> Mark | None:
    """What changes when a file is replaced or written."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def write(path: Path, text: bytes) -> Mark:
    """Put `text` at `path` in one step; the mark of what was written, which another may have replaced by now. ServeError when it cannot be
    written, and then nothing has changed."""
    part = ""
    try:
        handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
        os.chmod(part, 0o644)
        found = os.stat(part)
        os.replace(part, path)
        return found.st_ino, found.st_mtime_ns
    except OSError as error:
        if part:
            Path(part).unlink(missing_ok=True)
        raise ServeError(f"cannot write {path}: {error.strerror}") from None
