"""What an artifact takes in memory: measured in a fresh process that does nothing but open it and score, beside what it claims.

Proportional set size (PSS) counts a page shared by n processes as 1/n of it, so the workers of a server add up to what the machine has
less. Mapped tables count as far as they were read: a table that no request touches costs nothing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from burnish.errors import MeasureError
from burnish.host import Host, versions
from burnish.measure.latency import PACKAGES

ROLLUP = Path("/proc/self/smaps_rollup")


class Resident(msgspec.Struct, frozen=True):
    """Memory of a process at one moment, in bytes."""

    rss: int  # pages in memory
    pss: int  # the same, shared pages by share
    anonymous: int  # of its own, not backed by a file: copies of weights, arenas, heap
    file: int  # of mapped files, by share: weights, libraries

    @classmethod
    def here(cls) -> Resident:
        """This process now; MeasureError where the system does not say (it is Linux that does)."""
        try:
            lines = ROLLUP.read_text().splitlines()[1:]
        except OSError:
            raise MeasureError(f"memory is read from {ROLLUP}, which this system does not have. Measure it on Linux") from None
        found = {key: int(value.split()[0]) * 1024 for key, _, value in (line.partition(":") for line in lines)}
        return cls(found["Rss"], found["Pss"], found["Pss_Anon"], found["Pss_File"] + found.get("Pss_Shmem", 0))

    def __sub__(self, other: Resident) -> Resident:
        return Resident(self.rss - other.rss, self.pss - other.pss, self.anonymous - other.anonymous, self.file - other.file)


class Memory(msgspec.Struct, frozen=True):
    """Growth of a process by an artifact, over one that has only imported burnish and numpy; and what the artifact says of itself."""

    opened: Resident  # after opening it; the engine's own library is part of it
    scored: Resident  # after scoring the golden rows as well
    weight_bytes: int  # claimed: constants as they lie in memory
    arena_bytes: int  # claimed: scratch memory of one thread
    file_bytes: int  # programs and weights on disk
    threads: int
    host: Host
    versions: dict[str, str]

    @property
    def beyond_claim_bytes(self) -> int:
        """PSS after scoring less weights and arenas: the engine's code, its copies and its heap; negative while tables are unread."""
        return self.scored.pss - self.weight_bytes - self.arena_bytes * self.threads

    def doubt(self) -> str | None:
        """None, or the sentence that says why the claimed weight bytes cannot be true."""
        if self.weight_bytes > 1.01 * self.file_bytes + 4096:
            return (
                f"the artifact claims {self.weight_bytes:,} bytes of weights, and its files have {self.file_bytes:,}: they cannot hold them"
            )
        return None


def resident(path: str | Path, threads: int = 1) -> Memory:
    """Open the artifact at `path` in a new process, score its golden rows, and read its memory before, between and after. MeasureError when
    that process fails, with its last line."""
    command = [sys.executable, "-m", "burnish.measure.memory", str(path), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MeasureError(f"cannot measure the memory of {path}: {last}")
    return msgspec.json.decode(done.stdout, type=Memory)


def _measure(path: str, threads: int) -> Memory:
    from burnish.runtime.artifact import GOLDEN, Artifact
    from burnish.runtime.scorer import Scorer

    artifact = Artifact.read(path)
    table, _ = artifact.golden()
    before = Resident.here()
    with Scorer(artifact, threads) as scorer:
        opened = Resident.here() - before
        scorer.rows(table)
        scored = Resident.here() - before
    return Memory(
        opened=opened,
        scored=scored,
        weight_bytes=artifact.program.weight_bytes,
        arena_bytes=artifact.program.arena_bytes,
        file_bytes=sum(file.bytes for name, file in artifact.manifest.files.items() if name != GOLDEN),
        threads=threads,
        host=Host.here(),
        versions=versions(*PACKAGES),
    )


if __name__ == "__main__":
    print(msgspec.json.encode(_measure(sys.argv[1], int(sys.argv[2]))).decode())
