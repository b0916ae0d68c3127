"""The output directory of a search: whose it may be, what its results depend on, and its report."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

import burnish
from burnish.errors import JobError
from burnish.host import Host
from burnish.job import Job, Split
from burnish.runtime.artifact import exchange
from burnish.search import journal

REPORT = "report.json"
OURS = frozenset({journal.NAME, REPORT, "report.html", "artifact", "work"})


def check(out: Path) -> None:
    """Refuse a directory that cannot be written, or that holds something else than a search of ours. Writes nothing."""
    if out.exists() and not out.is_dir():
        raise JobError(f"{out} is a file. Give a directory for --out")
    nearest = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise JobError(f"cannot write to {nearest}. Choose another --out")
    held = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if held and journal.NAME not in held:
        foreign = next((name for name in held if name not in OURS), held[0])
        raise JobError(f"{out} is not empty and holds no search (it holds {foreign}). Choose another --out")


def discard(out: Path) -> None:
    """Remove a search that found nothing out yet, and its directory when it holds nothing else."""
    (out / journal.NAME).unlink(missing_ok=True)
    shutil.rmtree(out / "work", ignore_errors=True)
    if not any(out.iterdir()):
        out.rmdir()


def put(new: Path, at: Path) -> None:
    """`new` in the place of the directory `at`, which is never absent where the system can exchange two."""
    if at.exists():
        exchange(new, at)
        shutil.rmtree(new)
    else:
        new.rename(at)


def fingerprint(job: Job, model: Any, machine: str = "") -> dict[str, str]:
    """sha256 of each thing that measured results depend on. Prices, the load and the budget are not among them: they may change.
    `machine` names the machines that measure, where this one does not."""
    measured = msgspec.structs.replace(
        job,
        hosts=(),
        title="",
        path="",
        objective=msgspec.structs.replace(job.objective, qps=1.0),
        search=type(job.search)(seed=job.search.seed),
    )
    names: tuple[Split, ...] = ("validation", "calibration", "train")
    splits = {split: job.split_path(split) for split in names}
    return {
        "the job": digest(msgspec.json.encode(measured, order="deterministic")),
        "the model": model_digest(job, model),
        **{f"the {split} rows": _file(path) for split, path in splits.items() if path is not None},
        **({"the trace": _file(job.base / job.objective.trace)} if job.objective.trace else {}),
        "the machine": digest(machine.encode())
        if machine
        else digest(msgspec.json.encode(msgspec.structs.replace(Host.here(), os="", memory_bytes=0))),
        "burnish": burnish.__version__,
    }


def model_digest(job: Job, model: Any) -> str:
    """Of a model in Python: its weights, and the source files that its modules come from; of a file: its bytes, and those beside it that
    start with its name, where exporters keep large weights."""
    total = hashlib.sha256()
    if isinstance(model, Path) or not hasattr(model, "modules"):
        file = job.base / job.model.load
        for path in sorted(file.parent.glob(f"{file.name}*")):
            total.update(_file(path).encode())
        return total.hexdigest()
    import torch

    sources = {job.base / f"{job.model.load.partition('.py:')[0]}.py"}
    for module in {type(part).__module__ for part in model.modules()}:
        source = getattr(sys.modules.get(module), "__file__", None)
        if source and "site-packages" not in source:
            sources.add(Path(source))
    for path in sorted({path.resolve() for path in sources}):
        total.update(_file(path).encode())
    for name, tensor in model.state_dict().items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return total.hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> bool:
    """Write whole or not at all; False when the file already says this."""
    text = msgspec.json.format(msgspec.json.encode(content), indent=1)
    if path.exists() and path.read_bytes() == text:
        return False
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(text)
    os.replace(part, path)
    return True


def read_report(out: Path) -> dict[str, Any]:
    """report.json of a finished search; JobError when there is none."""
    path = out / REPORT
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (FileNotFoundError, NotADirectoryError):
        started = (
            " The search there is not finished: go on with `burnish optimize JOB.toml --resume`" if (out / journal.NAME).exists() else ""
        )
        raise JobError(f"no {REPORT} in {out}.{started or ' `burnish optimize` writes one'}") from None
    except (OSError, msgspec.DecodeError) as error:
        raise JobError(f"cannot read {path}: {error}") from None


def digest(data: bytes) -> str:
    """sha256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise JobError(f"no file {path}, which the job names") from None
