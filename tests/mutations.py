"""Ten deliberate faults, and the tests that must see each of them.

    python tests/mutations.py [NAME ...]          every fault, or the named ones; exit code 1 when one is seen by no test

Each fault is put into a copy of the source tree, and its tests run there. `test_mutations.py` keeps the table true: each piece of text must
be found exactly once, so a fault cannot go stale unseen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Fault:
    """`right` in `file` becomes `wrong`; `tests`, as pytest names them, must fail then."""

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.right != self.wrong


FAULTS = (
    Fault(
        "a wrong zero point",
        "quantize/affine.py",
        "return (np.rint(t).astype(np.int32) + zero_point).astype(np.uint8)",
        "return (np.rint(t).astype(np.int32) + zero_point - 1).astype(np.uint8)",
        ("tests/unit/test_affine.py",),
    ),
    Fault(
        "a dropped bias",
        "quantize/affine.py",
        "scale.astype(np.float32, copy=False) + bias.astype(np.float32, copy=False)",
        "scale.astype(np.float32, copy=False) + 0 * bias.astype(np.float32, copy=False)",
        ("tests/unit/test_affine.py",),
    ),
    Fault(
        "an off-by-one in the row block",
        "native/emit.py",
        "const i64 M = n - at < BLOCK ? n - at : BLOCK;",
        "const i64 M = n - at <= BLOCK ? n - at : BLOCK - 1;",
        ("tests/backends/test_native.py::test_blocks_of_any_height_give_the_same_bits",),
    ),
    Fault(
        "a swapped request/candidate split",
        "passes/factor.py",
        'return Node(node.op, (candidate, columns_of(w, columns, "candidate"), *affine, start), zero_point=zero_point)',
        'return Node(node.op, (candidate, columns_of(w, [w.shape[1] - 1 - c for c in columns], "candidate"), *affine, start), '
        "zero_point=zero_point)",
        ("tests/unit/test_factor.py",),
    ),
    Fault(
        "a late load generator",
        "measure/load.py",
        "if result.late_p99_us > max(LATE * result.slo_us, LATE_US):",
        "if result.late_p99_us > 1e9:",
        ("tests/unit/test_load.py::test_a_late_generator_makes_a_run_invalid",),
    ),
    Fault(
        "an unpaired interval",
        "measure/quality.py",
        "error = estimate.standard_error(changed.influence - original.influence, codes, units, strata)",
        "error = np.hypot(*(estimate.standard_error(e.influence, codes, units, strata) for e in pair))",
        ("tests/unit/test_quality.py",),
    ),
    Fault(
        "a flipped artifact byte",
        "runtime/artifact.py",
        "            if found != file:\n",
        "            if found.bytes != file.bytes:\n",
        ("tests/unit/test_artifact.py::test_one_flipped_byte_anywhere_is_found_and_named",),
    ),
    Fault(
        "a lost journal line",
        "search/journal.py",
        "for number, text in enumerate(data[: _whole(data)].splitlines(), start=1):",
        "for number, text in enumerate(data[: _whole(data)].splitlines()[:-1], start=1):",
        ("tests/unit/test_journal.py",),
    ),
    Fault(
        "a stale hot-swap pointer",
        "serve/follower.py",
        "        self._settle(now, opened)\n        self._have = {now.version,",
        "        self._have = {now.version,",
        ("tests/end_to_end/test_serve_versions.py::test_writing_the_pointer_is_enough_and_everything_tells_the_new_version",),
    ),
    Fault(
        "a missing bounds check",
        "runtime/scorer.py",
        "if self.slow_ids or (self.limit is not None and (array.view(self.unsigned) >= self.limit).any()):",
        "if self.slow_ids:",
        ("tests/unit/test_scorer.py",),
    ),
)


def seen(fault: Fault, tree: Path) -> str:
    """The first test that fails with the fault in `tree`, a copy of the sources; empty when none does."""
    file = tree / "src" / "burnish" / fault.file
    right = file.read_text(encoding="utf-8")
    file.write_text(right.replace(fault.right, fault.wrong), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *fault.tests]
        environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
        run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    finally:
        file.write_text(right, encoding="utf-8")
    failed = [line.split(" - ")[0].split(maxsplit=1)[1] for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if run.returncode not in (0, 1) or (run.returncode == 1 and not failed):
        sys.exit(f"the tests of {fault.name!r} did not run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return failed[0] if failed else ""


def main(names: list[str]) -> int:
    """Put each fault in; print what saw it; how many nothing saw."""
    unseen = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "burnish"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "data", "out", "build", "__pycache__", "node_modules"))
        for fault in FAULTS:
            if names and fault.name not in names:
                continue
            by = seen(fault, tree)
            unseen += not by
            print(f"{fault.name}: {by or 'SEEN BY NO TEST'}", flush=True)
    return unseen


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
