"""The Keeper beside the workers: it follows what a directory of versions says, verifies, tells the workers, and takes back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from burnish.errors import BurnishError, ServeError
from burnish.runtime.artifact import Artifact, Manifest
from burnish.serve import log, rollout, sign
from burnish.serve.metrics import SECONDS, Board
from burnish.serve.protocol import Signature
from burnish.serve.rollout import Arm, Rollout, judge
from burnish.serve.versions import Mark, Versions, mark, write

LOOK_SECONDS = 0.1  # between two looks at a file


def refusal(path: Path, trust: Path | None = None) -> str | None:
    """Why the artifact at `path` may not be served here, or None: verified in a process of its own, so that it may even crash."""
    code = "import sys; from burnish.serve.keeper import verify; sys.exit(verify(*sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(path), *([str(trust)] if trust else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"verifying {path} ended with signal {-done.returncode}"
    return (done.stderr.strip().splitlines() or [f"verifying {path} ended with status {done.returncode}"])[-1]


def verify(path: str, trust: str | None = None) -> str | None:
    """Signature (where keys are trusted), hashes, instructions, golden outputs, names on the wire: None, or what is wrong. At the lowest
    priority."""
    os.nice(19)
    try:
        artifact = Artifact.read(path)
        if trust is not None:
            sign.check(artifact.path, Path(trust))
        artifact.verify()
        Signature.of(artifact.manifest.inputs, artifact.manifest.outputs)
    except BurnishError as error:
        return str(error)
    return None


class Live(msgspec.Struct, frozen=True):
    """What the Keeper tells the workers: the version to serve and its arm of the metrics, the candidate beside it (which has the other arm)
    and what it is for, whether a version is on trial, why others are not served, and how often it has decided."""

    version: str
    arm: int = 0
    candidate: str = ""
    mode: Literal["shadow", "canary"] = "shadow"
    share: float = 0.0
    trial: bool = False
    refused: dict[str, str] = {}
    decisions: int = 0


def told(path: Path) -> Live:
    return msgspec.json.decode(path.read_bytes(), type=Live)


def _face(manifest: Manifest) -> object:
    """All that a client sees of a model but the bounds of ids, which may grow from version to version."""
    inputs = [(half.name, half.side, half.dtype, half.shape, half.columns) for spec in manifest.inputs for half in spec.halves]
    return inputs, [(output.name, output.dtype, () if output.shape == (1,) else output.shape) for output in manifest.outputs]


class Keeper:
    """Follows the files of `versions`, from the served `version` on, and writes what the workers are to serve to `live`.

    `board` has what the versions did, by which it takes one back; `switched` is called with the name of each new current version.
    """

    def __init__(
        self,
        versions: Versions,
        version: str,
        live: Path,
        board: Board | None = None,
        switched: Callable[[str], None] = lambda version: None,
        trust: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.versions = versions
        self.live = live
        self.told = Live(version)
        self._board = board
        self._switched = switched
        self._trust = trust
        self._clock = clock
        self._plan = Rollout()
        self._began = [self._arm(0), self._arm(1)]  # what each arm had counted when its version got it
        self._before = ""  # the version to go back to while the current one is on trial
        self._until = 0.0  # end of that trial
        self._pointer: Mark | None = None
        self._rollout: Mark | None = None
        self._ended = threading.Event()
        write(live, msgspec.json.encode(self.told))
        self._thread = threading.Thread(target=self._run, name="versions", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception as error:  # whatever it is, what is served goes on, and the next change must still be seen
                log.say(f"the versions could not be followed: {type(error).__name__}: {error}")

    def look(self) -> None:
        """Act on what has changed, and judge what is on trial."""
        pointer = mark(self.versions.pointer)
        if pointer != self._pointer:
            self._pointer = pointer
            self._follow_pointer()
        plan = mark(self.versions.path / rollout.FILE)
        if plan != self._rollout:
            self._rollout = plan
            self._follow_rollout()
        if self.told.trial:
            self._judge()

    def _follow_pointer(self) -> None:
        served, refused = self.told.version, self.told.refused
        try:
            wanted = self.versions.current()
            if wanted == served:
                self._tell(refused={name: why for name, why in refused.items() if name != wanted})
                return
            known = wanted == self.told.candidate
            reason = None if known else refusal(self.versions.where(wanted), self._trust)
            if reason:
                self._tell(refused={**refused, wanted: reason})
                raise ServeError(f"version {wanted} is not served: {reason}")
            arm = 1 - self.told.arm
            began = self._began[arm] if known else self._arm(arm)
            limits = self._plan.limits
            self._tell(
                version=wanted,
                arm=arm,
                candidate="",
                trial=limits.seconds > 0,
                refused={name: why for name, why in refused.items() if name != wanted},
            )
        except ServeError as error:
            self._back(str(error))
            return
        self._began[arm] = began
        self._before, self._until = served, self._clock() + limits.seconds
        if self._plan.candidate:
            self._drop_candidate()
        self._switched(wanted)
        log.say(f"version {wanted} is verified, and served from now on", version=wanted)

    def _follow_rollout(self) -> None:
        try:
            plan = self.versions.rollout()
            self._plan = msgspec.structs.replace(plan, candidate="")
            name = plan.candidate
            if name == self.told.version or not name:
                if self.told.candidate or name:
                    self._tell(candidate="", trial=False)
                    log.say(f"version {self.told.version} is served alone", version=self.told.version)
                if name:
                    self._drop_candidate()
                return
            reason = self._candidate_refusal(name)
            if reason:
                self._tell(candidate="", trial=False, refused={**self.told.refused, name: reason})
                raise ServeError(f"version {name} is not tried: {reason}")
            arm = 1 - self.told.arm
            if name != self.told.candidate:
                self._began[arm] = self._arm(arm)
            refused = {each: why for each, why in self.told.refused.items() if each != name}
            self._tell(candidate=name, mode=plan.mode, share=plan.share, trial=True, refused=refused)
            self._plan = plan
        except ServeError as error:
            log.say(f"{error}. Version {self.told.version} is served alone", version=self.told.version)
            if self.told.candidate:
                self._tell(candidate="", trial=False)
            return
        share = f"answers {plan.share:.3g} of the requests" if plan.mode == "canary" else "scores what it answers, too"
        log.say(f"version {name} is verified; beside version {self.told.version} it {share}", version=name)

    def _candidate_refusal(self, name: str) -> str | None:
        if name not in self.versions.names():
            return f"there is no version {name!r}. There are {', '.join(self.versions.names())}"
        reason = refusal(self.versions.where(name), self._trust) if name != self.told.candidate else None
        if reason:
            return reason
        new, old = (_face(Artifact.read(self.versions.where(each)).manifest) for each in (name, self.told.version))
        if new != old:
            return f"its inputs or outputs are not those of version {self.told.version}, beside which it would be. Make it the current one"
        return None

    def _judge(self) -> None:
        """Take back what crossed its limits; end the trial of a current version whose time is over."""
        now = self.told
        ours = self._arm(now.arm).since(self._began[now.arm])
        other = self._arm(1 - now.arm).since(self._began[1 - now.arm])
        limits = self._plan.limits
        if now.candidate:
            why = judge(other, ours, limits, SECONDS)
            if why:
                log.say(f"version {now.candidate} is taken back: {why}", version=now.candidate)
                self._tell(candidate="", trial=False, refused={**now.refused, now.candidate: why})
                self._drop_candidate()
            return
        why = judge(ours, other, limits, SECONDS)
        if why:
            log.say(f"version {now.version} is taken back: {why}", version=now.version)
            self._tell(refused={**now.refused, now.version: why}, trial=False)
            try:
                self._pointer = self.versions.point(self._before)
            except ServeError as error:
                log.say(str(error))
            else:
                self._return()
        elif self._clock() > self._until:
            self._tell(trial=False)

    def _return(self) -> None:
        """Serve the version before again. It was served until a moment ago: nothing of it is verified or judged again."""
        arm, back = 1 - self.told.arm, self._before
        self._tell(version=back, arm=arm, trial=False)
        self._switched(back)
        log.say(f"version {back} is served again", version=back)

    def _drop_candidate(self) -> None:
        self._plan = msgspec.structs.replace(self._plan, candidate="")
        try:
            self._rollout = self.versions.try_out(self._plan)
        except ServeError as error:
            log.say(str(error))

    def _tell(self, **changes: object) -> None:
        live = msgspec.structs.replace(self.told, **changes, decisions=self.told.decisions + 1)
        write(self.live, msgspec.json.encode(live))
        self.told = live

    def _back(self, why: str) -> None:
        """Put the pointer back to what is served."""
        log.say(f"{why}. Version {self.told.version} stays", version=self.told.version)
        try:
            self._pointer = self.versions.point(self.told.version)
        except ServeError as error:
            log.say(str(error))

    def _arm(self, which: int) -> Arm:
        return self._board.arm_of(which) if self._board is not None else Arm(0, 0, (0.0,), (0.0,))
