"""An artifact: a directory that computes a ranker, written whole or not at all, and able to say when it is damaged.

    manifest.json        what it is: inputs, outputs, recipe, programs, sha256 of every other file, and of itself
    weights.bin          constants, mapped by the engines that can
    program/<name>/...   one a program
    golden.npz           rows and what they score: inputs by name as a plain table, outputs as `output:<name>`
    manifest.sig         where it was signed (burnish.serve.sign)

A byte flipped anywhere is found: every other file is hashed in the manifest, and the manifest carries the sha256 of its own text with
that one value left blank.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from burnish.backends.table import Program
from burnish.errors import ArtifactError
from burnish.host import Host
from burnish.inputs import Input

SCHEMA = 1
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
SIGNATURE = "manifest.sig"  # optional: burnish.serve.sign
_BLANK = b"0" * 64
_SEAL = re.compile(rb'"sha256": "([0-9a-f]{64})"\s*}\s*\Z')  # the last field of a manifest of any schema


class Output(msgspec.Struct, frozen=True):
    """One output of a ranker: (rows, *shape). A value of shape () or (1,) is one score a row and comes back as (rows,)."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()


class File(msgspec.Struct, frozen=True):
    bytes: int
    sha256: str


class Golden(msgspec.Struct, frozen=True):
    """How golden.npz was made, and how far an engine may be from it: relative to the larger of 1 and the largest output."""

    rows: int
    made_by: str  # "engine", or "interpreter" where the program was built for another machine
    tolerance: float  # of the largest difference
    mean_tolerance: float  # of the mean difference
    exact: bool  # the engine promises the same bits on every machine of its target


class Manifest(msgspec.Struct, frozen=True):
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    recipe: dict[str, Any]
    programs: tuple[Program, ...]  # the most capable first: the first that runs here is used
    host: Host  # built for
    golden: Golden
    files: dict[str, File]  # every file but the manifest
    versions: dict[str, str] = {}
    measured: dict[str, Any] = {}
    created: str = ""  # ISO 8601, UTC
    schema: int = SCHEMA
    sha256: str = _BLANK.decode()  # of this text with this value as 64 zeros


class Artifact:
    """A directory of the layout above. One that `compile` made lives in a temporary directory until `save` puts it somewhere."""

    def __init__(self, path: Path, manifest: Manifest, temporary: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self._temporary = temporary  # removed with the last reference

    def __repr__(self) -> str:
        return f"Artifact({str(self.path)!r}, {', '.join(p.backend for p in self.manifest.programs)})"

    @classmethod
    def read(cls, path: str | Path) -> Artifact:
        """The artifact at `path`; ArtifactError when there is none, or one that is incomplete. Reads the manifest and file sizes only."""
        path = Path(path)
        artifact = cls(path, _read_manifest(path))
        for name, file in artifact.manifest.files.items():
            try:
                size = (path / name).stat().st_size
            except OSError:
                raise ArtifactError(f"the artifact at {path} lacks {name}. Copy it again, or compile it again") from None
            if size != file.bytes:
                raise ArtifactError(f"{name} in the artifact at {path} has {size} bytes, expected {file.bytes}. Copy it again")
        return artifact

    @property
    def program(self) -> Program:
        """The first program that this machine can run; ArtifactError when it can run none."""
        here = Host.here()
        for program in self.manifest.programs:
            if not program.unfit(here):
                return program
        best = self.manifest.programs[0]
        raise ArtifactError(
            f"the artifact at {self.path} was built for {best.target}, and {best.unfit(here)} ({here.cpu}). "
            f"Compile it with target {here.isa!r}"
        )

    @property
    def weight_bytes(self) -> int:
        """Constants as they lie in memory when the artifact is open."""
        return self.manifest.programs[0].weight_bytes

    def golden(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The golden rows and their outputs, by name."""
        with np.load(self.path / GOLDEN, allow_pickle=False) as kept:
            table = {name: kept[name] for name in kept.files}
        outputs = {name.removeprefix("output:"): table.pop(name) for name in list(table) if name.startswith("output:")}
        return table, outputs

    def verify(self) -> None:
        """ArtifactError that names the file that changed, the CPU flag that is missing, or the golden output that differs."""
        _read_manifest(self.path)
        for name, file in self.manifest.files.items():
            try:
                found = digest(self.path / name)
            except OSError as error:
                raise ArtifactError(f"{name} in the artifact at {self.path} cannot be read: {error.strerror}. Copy it again") from None
            if found != file:
                raise ArtifactError(
                    f"{name} in the artifact at {self.path} is damaged: its sha256 is not the one in {MANIFEST}. Copy it again"
                )
        self._check_golden(self.program)

    def _check_golden(self, program: Program) -> None:
        from burnish.runtime.scorer import Scorer

        rule = self.manifest.golden
        promised = rule.exact and rule.made_by == "engine" and program == self.manifest.programs[0]  # who made them; others sum otherwise
        table, expected = self.golden()
        with Scorer(self) as scorer:
            got = scorer.outputs_of(table)
        for name, want in expected.items():
            if promised and not np.array_equal(got[name], want, equal_nan=want.dtype.kind == "f"):
                raise ArtifactError(
                    f"the artifact at {self.path} does not repeat its golden output {name!r} bit for bit ({program.backend}, "
                    f"{program.target}); the largest difference is {difference(got[name], want)[0]:.3g}"
                )
            worst, mean = difference(got[name], want)
            if worst > rule.tolerance or mean > rule.mean_tolerance:
                raise ArtifactError(
                    f"the artifact at {self.path} does not repeat its golden output {name!r} on this machine: it differs by {worst:.3g} "
                    f"at most and {mean:.3g} on average, {rule.tolerance:.3g} and {rule.mean_tolerance:.3g} are allowed ({program.backend})"
                )

    def save(self, to: str | Path) -> Artifact:
        """Put the artifact at `to`, whole or not at all, in the place of an older one there; itself, its path now `to`.

        ArtifactError when `to` holds anything that is not an artifact, or cannot be written.
        """
        to = Path(to)
        owned = refuse_foreign(to)
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
        except OSError as error:
            raise ArtifactError(f"cannot write an artifact at {to}: {error.strerror}. Choose a directory that can be written") from None
        try:
            signed = [SIGNATURE] if (self.path / SIGNATURE).exists() else []
            for name in (*self.manifest.files, MANIFEST, *signed):
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                self._put(name, part / name)
            _sync(part)
            part.chmod(0o755)
            if owned:
                exchange(part, to)
            else:
                os.rename(part, to)
            _sync_directory(to.parent)
        except OSError as error:
            raise ArtifactError(f"cannot write the artifact at {to}: {error.strerror}. Nothing was changed there") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)  # the half-written one, or the older one after the exchange
        self.path = to
        self._temporary = None
        return self

    def _put(self, name: str, to: Path) -> None:
        """A copy of a file; another name for it where it would go away with the temporary directory anyhow, which costs nothing."""
        if self._temporary is not None:
            try:
                os.link(self.path / name, to)
                return
            except OSError:  # another file system, or one without links
                pass
        shutil.copyfile(self.path / name, to)

    def measured(self, **numbers: Any) -> None:
        """Keep measured numbers (JSON types) in the manifest, beside those already there."""
        self.manifest = msgspec.structs.replace(self.manifest, measured={**self.manifest.measured, **numbers})
        self.manifest = write_manifest(self.path, self.manifest)


def refuse_foreign(to: Path) -> bool:
    """True when an artifact of ours lies at `to`, False when nothing does; ArtifactError when anything else does."""
    if not to.exists():
        return False
    if not to.is_dir():
        raise ArtifactError(f"cannot write an artifact at {to}: it is a file. Choose another directory")
    held = sorted(str(path.relative_to(to)) for path in to.rglob("*") if not path.is_dir())
    if not held:
        return False
    try:
        ours = {MANIFEST, SIGNATURE, *_read_manifest(to).files}
    except ArtifactError:  # a damaged one may be replaced: then what the layout allows is ours
        ours = {name for name in held if name in (MANIFEST, SIGNATURE, GOLDEN, "weights.bin") or name.startswith("program/")}
    foreign = [name for name in held if name not in ours or MANIFEST not in held]
    if foreign:
        raise ArtifactError(f"cannot write an artifact at {to}: it holds {foreign[0]}, which is not part of one. Choose an empty directory")
    return True


def difference(got: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    """The largest and the mean |got - want|, over the larger of 1 and the largest |want|. NaN beside NaN is no difference."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        return np.inf, np.inf
    if not want.size:
        return 0.0, 0.0
    with np.errstate(invalid="ignore"):
        off = np.where((got == want) | (np.isnan(got) & np.isnan(want)), 0.0, np.abs(got - want))
    off = np.where(np.isnan(off), np.inf, off)
    finite = np.abs(want[np.isfinite(want)])
    scale = max(1.0, float(finite.max())) if finite.size else 1.0
    return float(off.max()) / scale, float(off.mean()) / scale


def digest(path: Path) -> File:
    with path.open("rb") as file:
        return File(bytes=os.fstat(file.fileno()).st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Write manifest.json with its own sha256, in place of an older one; the manifest as written."""
    text = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(manifest, sha256=_BLANK.decode())), indent=1)
    found = hashlib.sha256(text).hexdigest()
    part = directory / f".{MANIFEST}.part"
    text = found.encode().join(text.rsplit(_BLANK, 1))
    part.write_bytes(text)
    _sync_file(part)
    os.replace(part, directory / MANIFEST)
    return msgspec.json.decode(text, type=Manifest)


def _read_manifest(path: Path) -> Manifest:
    try:
        text = (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"there is no artifact at {path}: it has no {MANIFEST}. `burnish compile` or Artifact.save writes one"
        ) from None
    except OSError as error:
        raise ArtifactError(f"cannot read {path / MANIFEST}: {error.strerror}") from None
    seal = _SEAL.search(text)
    if seal is None or hashlib.sha256(text[: seal.start(1)] + _BLANK + text[seal.end(1) :]).hexdigest().encode() != seal[1]:
        raise ArtifactError(f"{MANIFEST} in the artifact at {path} is damaged: its sha256 is not the one it carries. Copy it again")
    schema = msgspec.json.decode(text, type=_Schema).schema
    if schema != SCHEMA:
        raise ArtifactError(f"the artifact at {path} has schema {schema}; this burnish reads schema {SCHEMA}. Use the burnish that made it")
    return msgspec.json.decode(text, type=Manifest)


class _Schema(msgspec.Struct):
    schema: int


def _sync(directory: Path) -> None:
    """Everything under `directory` is on the disk when this returns."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir():
            _sync_directory(path)
        else:
            _sync_file(path)
    _sync_directory(directory)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    if os.name == "nt":  # directories cannot be opened there
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def exchange(new: Path, old: Path) -> None:
    """Swap two directories. In one step where the kernel can (Linux renameat2), so that `old` is never absent; else in two renames."""
    exchange, here = 2, -100  # RENAME_EXCHANGE, AT_FDCWD: linux/fs.h, fcntl.h
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is not None and rename(here, os.fsencode(new), here, os.fsencode(old), exchange) == 0:
        return
    aside = Path(f"{new}.old")
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except OSError:
        os.rename(aside, old)
        raise
    os.rename(aside, new)
