"""A load call waits for the Keeper's decision on what it asked, whatever else is decided meanwhile. Without artifacts: what verifying them
finds is given."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from burnish.serve import keeper
from burnish.serve.follower import Repository
from burnish.serve.keeper import Keeper, told
from burnish.serve.versions import Versions

VERIFYING_SECONDS = 0.5
Verify = Callable[[str], str | None]


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    for name in "123":
        (tmp_path / "versions" / name).mkdir(parents=True)
    made = Versions(tmp_path)
    made.point("1")
    return made


@pytest.fixture
def follow(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Verify], Repository]]:
    """A Keeper that follows `versions`, where verifying a version answers what the function says, and a worker's view of it."""
    started: list[Keeper] = []

    def start(verify: Verify) -> Repository:
        monkeypatch.setattr(keeper, "refusal", lambda path, trust: verify(path.name))
        monkeypatch.setattr(Keeper, "_candidate_refusal", lambda self, name: verify(name))
        started.append(Keeper(versions, "1", versions.path / "live"))
        started[0].start()
        return Repository(versions, versions.path / "live")

    yield start
    started[0].stop()


@pytest.mark.parametrize("mode", [None, "shadow"])
def test_a_load_waits_for_its_own_decision_when_another_one_is_told_before_it(versions, follow, mode):
    verifying, go_on = threading.Event(), threading.Event()

    def verify(version: str) -> None:
        if version == "2":
            verifying.set()
            assert go_on.wait(10)
        else:
            time.sleep(VERIFYING_SECONDS)  # as the hashes of a large artifact do

    repository = follow(verify)
    versions.point("2")
    assert verifying.wait(10)
    threading.Timer(0.2, go_on.set).start()
    assert asyncio.run(repository.load("3", mode)) == "3"
    now = told(repository.live)
    assert (now.version, now.candidate) == (("3", "") if mode is None else ("2", "3"))
