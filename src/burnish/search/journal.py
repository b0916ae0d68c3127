"""trials.jsonl: what a search has found out so far, one line a step, so that a run killed at any moment loses the step in flight only.

A line is written whole, flushed and synced before the search goes on. A last line without its end was in flight when the run was
killed: it is cut off. The first line holds the fingerprint of everything the results depend on; a journal of other results is refused.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from burnish.errors import JobError

NAME = "trials.jsonl"
SCHEMA = 1


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One finished step: of a trial, or of the whole search where `trial` is empty."""

    step: str
    trial: str = ""
    result: dict[str, Any] = {}
    seconds: float = 0.0
    rejected: str | None = None  # the sentence, when this step ended the trial


class Lines:
    """The finished steps of one search, in order."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines
        self._found = {(line.trial, line.step): line for line in lines}

    def find(self, step: str, trial: str = "") -> Line | None:
        """The line of a finished step, or None."""
        return self._found.get((trial, step))

    def add(self, line: Line) -> Line:
        """Append a line; what comes back is what a later run will read."""
        line = msgspec.json.decode(msgspec.json.encode(line), type=Line)
        self.lines.append(line)
        self._found[line.trial, line.step] = line
        return line

    @property
    def seconds(self) -> float:
        """Time spent in finished steps, over all runs."""
        return sum(line.seconds for line in self.lines)


class Journal(Lines):
    """Those steps, kept in a file that only grows."""

    def __init__(self, path: Path, lines: list[Line], fd: int) -> None:
        super().__init__(lines)
        self.path, self._fd = path, fd

    @classmethod
    def open(cls, path: Path, fingerprint: dict[str, str]) -> Journal:
        """The journal at `path`, made when there is none; JobError when it holds the results of something else, or is damaged."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise JobError(f"cannot write {path}: {error.strerror}. Choose another --out") from None
        try:
            _lock(path, fd)
            lines = read(path)
            if len(lines) > 1:
                check_fingerprint(path, lines[0], fingerprint)
            else:
                lines = []  # stopped before its first result: nothing is lost by beginning anew
            os.ftruncate(fd, _whole(path.read_bytes()) if lines else 0)
            journal = cls(path, lines, fd)
            if not lines:
                journal.add(Line("begin", result={"schema": SCHEMA, "fingerprint": fingerprint}))
        except BaseException:
            os.close(fd)
            raise
        return journal

    def add(self, line: Line) -> Line:
        """Append a line; it is on the disk when this returns. What comes back is what a later run will read."""
        text = msgspec.json.encode(line) + b"\n"
        try:
            if os.write(self._fd, text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._fd)
        except OSError as error:
            raise JobError(f"cannot write {self.path}: {error.strerror}. Make room, and go on with --resume") from None
        return super().add(line)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._fd)


def read(path: Path) -> list[Line]:
    """The finished steps in a journal; none when there is no file. JobError for a line that is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise JobError(f"cannot read {path}: {error.strerror}") from None
    lines = []
    for number, text in enumerate(data[: _whole(data)].splitlines(), start=1):
        try:
            lines.append(msgspec.json.decode(text, type=Line))
        except msgspec.DecodeError as error:
            raise JobError(f"{path} is damaged at line {number}: {error}. Delete the directory and start again") from None
    return lines


def fits(path: Path, fingerprint: dict[str, str]) -> bool:
    """Whether the results of the journal at `path` depend on what `fingerprint` says."""
    lines = read(path)
    return bool(lines) and not _changed(lines[0], fingerprint)


def _changed(first: Line, fingerprint: dict[str, str]) -> list[str]:
    kept = first.result.get("fingerprint", {})
    return [name for name in {**kept, **fingerprint} if kept.get(name) != fingerprint.get(name)]


def check_fingerprint(path: Path, first: Line, fingerprint: dict[str, str]) -> None:
    """Refuse a journal whose results depend on other things than `fingerprint` says, naming them."""
    changed = _changed(first, fingerprint)
    if changed:
        raise JobError(
            f"{path.parent} holds the trials of something else: {', '.join(changed)} changed since. "
            "Choose another --out, or delete that directory"
        )


def _lock(path: Path, fd: int) -> None:
    """Refuse a journal that another process writes; the lock ends with its process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise JobError(f"another search is writing to {path.parent}. Wait for it, or choose another --out") from None


def _whole(data: bytes) -> int:
    """How many bytes of `data` are whole lines."""
    return data.rfind(b"\n") + 1
