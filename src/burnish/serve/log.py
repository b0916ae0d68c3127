"""What a server says of itself on standard error: sentences, or JSON objects one a line."""

from __future__ import annotations

import datetime
import os
import sys
from typing import Any

import msgspec

FORMS = ("text", "json", "requests")  # the last: json, and a line for each request
ENVIRONMENT = "BURNISH_LOG"  # how workers learn it


def form() -> str:
    return os.environ.get(ENVIRONMENT, "text")


def say(sentence: str, **facts: Any) -> None:
    """One event."""
    _put(sentence if form() == "text" else _line(message=sentence, **facts))


def request(**facts: Any) -> None:
    """One request, where the log has them."""
    _put(_line(**facts))


def _line(**facts: Any) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return msgspec.json.encode({"time": now, "process": os.getpid(), **facts}).decode()


def _put(line: str) -> None:
    sys.stderr.write(line + "\n")  # in one write, or lines of several workers would mix
    sys.stderr.flush()
