"""Rows of embedding tables that changed: a new version of a native artifact in seconds, without the model, a compiler or a search.

    rows.npz        for each table two arrays: `<table>.ids` (n,) integers and `<table>.rows` (n, width) floats
    rows.parquet    columns `table` (text), `id` (integer), `row` (list of floats)

Tables have the names of the model's parameters, and rows their numbers there. Rows are narrowed by the rule that narrowed the table
(float32, bfloat16, float16, int8 or int4 with a scale a row). All files but weights, golden rows and manifest are shared with the
version before.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
import struct
import tempfile
from pathlib import Path

import msgspec
import numpy as np

from burnish.errors import ServeError
from burnish.runtime.artifact import GOLDEN, Artifact, digest, write_manifest
from burnish.runtime.scorer import Scorer
from burnish.serve import sign
from burnish.serve.versions import Versions

WEIGHTS = "weights.bin"
_AMBIGUOUS_BYTES = 1 << 16  # smaller equal arrays are kept once (graph.weights.SMALL)
_SLICE = re.compile(r"(?P<table>.*)\[(?P<start>\d+):(?P<stop>\d+)\]")
_SUFFIXES = ("int8", "int4", "bfloat16", "float16", "scale")

Rows = dict[str, tuple[np.ndarray, np.ndarray]]  # table -> ids (n,) int64, rows (n, width) float32


class Place(msgspec.Struct, frozen=True):
    """An array of a table in weights.bin: rows [first, first + rows) of the table `of`.

    `kind`: "" (float32), "bfloat16", "float16", "int8", "int4", "int8.scale", "int4.scale", or "scale" where what it belongs to is not
    found.
    """

    of: str
    first: int
    rows: int
    kind: str
    dtype: str
    width: int
    at: int  # in the file

    @property
    def is_scale(self) -> bool:
        return self.kind.endswith("scale")


def add(path: Path, versions: Versions, key: Path | None = None) -> str:
    """Add the current version with the rows in the file `path` as the newest version, signed with `key` if there is one; its name."""
    base = Artifact.read(versions.where(versions.current()))
    rows = read(path)
    with tempfile.TemporaryDirectory(prefix=".delta.", dir=versions.path / "versions") as folder:
        made = changed(base, rows, Path(folder) / "artifact")
        if key is not None:
            sign.sign(made.path, key)
        name = versions.next()
        try:
            os.rename(made.path, versions.where(name))
        except OSError as error:
            raise ServeError(f"version {name} cannot be added to {versions.path}: {error.strerror}. Publish again") from None
    return name


def changed(base: Artifact, rows: Rows, to: Path) -> Artifact:
    """`base` with other rows, at `to`, which is on the same file system; ServeError when a row has no place in it."""
    places = _places(base)
    work = [(place, *_part(place, ids, values)) for table, (ids, values) in rows.items() for place in _of(places, table, ids, values, base)]
    held = base.manifest
    shared = [name for name in held.files if name not in (WEIGHTS, GOLDEN)]
    try:
        for name in (*shared, WEIGHTS):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            if name == WEIGHTS:
                shutil.copyfile(base.path / name, to / name)
            else:
                os.link(base.path / name, to / name)
        for place, ids, values in work:
            _write(to / WEIGHTS, place, ids, values)
        table, _ = base.golden()
        os.link(base.path / GOLDEN, to / GOLDEN)  # so that it can be opened, and its scores are made again
        draft = Artifact(to, write_manifest(to, msgspec.structs.replace(held, files={**held.files, WEIGHTS: digest(to / WEIGHTS)})))
        with Scorer(draft) as scorer:
            outputs = scorer.outputs_of(table)
        (to / GOLDEN).unlink()
        np.savez(to / GOLDEN, **table, **{f"output:{name}": array for name, array in outputs.items()})  # type: ignore[arg-type]
        for name in (WEIGHTS, GOLDEN):
            with (to / name).open("rb") as file:
                os.fsync(file.fileno())
    except OSError as error:
        raise ServeError(f"the new version cannot be written beside {base.path}: {error.strerror}. Nothing was changed there") from None
    files = {**held.files, WEIGHTS: digest(to / WEIGHTS), GOLDEN: digest(to / GOLDEN)}
    count = {table: len(ids) for table, (ids, _) in rows.items()}
    measured = {**held.measured, "delta": {"of": held.sha256, "rows": count}}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Artifact(to, write_manifest(to, msgspec.structs.replace(held, files=files, measured=measured, created=now)))


def read(path: Path) -> Rows:
    """The rows in a file; ServeError for one that has none, or none that can be used."""
    try:
        found = _read_parquet(path) if path.suffix == ".parquet" else _read_npz(path)
    except (OSError, ValueError, KeyError) as error:
        raise ServeError(f"the rows in {path} cannot be read: {error}") from None
    if not found:
        raise ServeError(f"there are no rows in {path}. Give arrays TABLE.ids and TABLE.rows")
    for table, (ids, values) in found.items():
        if ids.ndim != 1 or values.ndim != 2 or len(ids) != len(values):
            raise ServeError(
                f"table {table!r} in {path} has ids of shape {ids.shape} and rows of shape {values.shape}. Give (n,) and (n, width)"
            )
        if ids.dtype.kind not in "iu" or len(np.unique(ids)) != len(ids):
            raise ServeError(
                f"the ids of table {table!r} in {path} are {ids.dtype}, or one appears twice. Give each id once, as an integer"
            )
        if not np.isfinite(values).all():
            raise ServeError(f"table {table!r} in {path} has a value that is not finite. Give finite rows")
    return {table: (ids.astype(np.int64), np.ascontiguousarray(values, np.float32)) for table, (ids, values) in found.items()}


def _read_npz(path: Path) -> Rows:
    with np.load(path, allow_pickle=False) as kept:
        names = [name.removesuffix(".ids") for name in kept.files if name.endswith(".ids")]
        return {name: (kept[f"{name}.ids"], kept[f"{name}.rows"]) for name in names}


def _read_parquet(path: Path) -> Rows:
    try:
        import polars
    except ModuleNotFoundError:
        raise ServeError("reading Parquet needs polars: pip install polars, or give the rows as .npz") from None
    frame = polars.read_parquet(path)
    if not {"table", "id", "row"} <= set(frame.columns):
        raise ServeError(f"{path} has the columns {', '.join(frame.columns)}. Give table, id and row")
    return {
        str(key[0]): (part["id"].to_numpy(), np.array(part["row"].to_list(), np.float32))
        for key, part in frame.partition_by("table", as_dict=True, maintain_order=True).items()
    }


def _places(artifact: Artifact) -> list[Place]:
    """Every table of a native artifact, from what its build told and the head of its weights (native/pack.py)."""
    program = artifact.manifest.programs[0]
    if program.backend != "native":
        raise ServeError(
            f"the artifact at {artifact.path} is {program.backend}'s; rows are changed in native artifacts only. Compile and publish one"
        )
    told = program.facts.get("table_rows")
    if told is None:
        raise ServeError(f"the artifact at {artifact.path} does not say how its tables lie: an older burnish made it. Compile it again")
    with (artifact.path / WEIGHTS).open("rb") as file:
        size = struct.calcsize("<8sII16sQ")
        head = struct.unpack("<8sII16sQ", file.read(size))
        entries = [struct.unpack("<QQ", file.read(16)) for _ in range(head[2])]
    places = []
    for number, name in program.facts["tables"].items():
        at, rows = entries[int(number)]
        stem, _, kind = name.rpartition(".")
        if kind not in _SUFFIXES:
            stem, kind = name, ""
        cut = _SLICE.fullmatch(stem)
        dtype, width = told[number]
        places.append(Place(cut["table"] if cut else stem, int(cut["start"]) if cut else 0, rows, kind, dtype, width, at))
    kinds = {(place.of, place.first): place.kind for place in places if place.kind in ("int8", "int4")}
    scales = {(place.of, place.first) for place in places if place.is_scale}
    paired = []
    for place in places:
        here = place.of, place.first
        if place.is_scale and here in kinds:
            place = msgspec.structs.replace(place, kind=f"{kinds[here]}.scale")
        elif place.kind in ("int8", "int4") and here not in scales:
            place = msgspec.structs.replace(place, kind="scale")  # its scales have another table's name
        paired.append(place)
    return paired


def _of(places: list[Place], table: str, ids: np.ndarray, values: np.ndarray, artifact: Artifact) -> list[Place]:
    """The places of a table that hold any of `ids`; ServeError when it is not there, not of that width, or without a row for one."""
    mine = [place for place in places if place.of == table]
    if not mine:
        names = sorted({place.of for place in places})
        more = ", ..." if len(names) > 20 else ""
        raise ServeError(f"the artifact at {artifact.path} has no table {table!r}. It has {', '.join(names[:20])}{more}")
    there = np.zeros(len(ids), bool)
    used = []
    for place in mine:
        inside = (ids >= place.first) & (ids < place.first + place.rows)
        if not place.is_scale:
            there |= inside
            if values.shape[1] != place.width:
                raise ServeError(f"rows of table {table!r} have {place.width} values in the artifact; {values.shape[1]} were given")
        if inside.any():
            _refuse_shared(place, artifact)
            used.append(place)
    if not there.all():
        raise ServeError(
            f"table {table!r} has no row {ids[~there][0]} in the artifact. It has {sum(p.rows for p in mine if not p.is_scale)} rows"
        )
    return used


def _refuse_shared(place: Place, artifact: Artifact) -> None:
    """ServeError where the array may be another table's too: small equal arrays are kept once, under the name that was met first."""
    held = _map(artifact.path / WEIGHTS, place, "r")
    alike = held.nbytes <= _AMBIGUOUS_BYTES and len(held) > 1 and bool((held == held[0]).all())
    if alike or place.kind == "scale":
        raise ServeError(
            f"the rows of table {place.of!r} or their scales are all alike, or are kept under another table's name: burnish keeps equal "
            "small arrays once, so they cannot be changed apart. Compile the model and publish that"
        )


def _part(place: Place, ids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows within the place, and what is written there."""
    inside = (ids >= place.first) & (ids < place.first + place.rows)
    return ids[inside] - place.first, _narrow(place.kind, values[inside])


def _narrow(kind: str, values: np.ndarray) -> np.ndarray:
    """float32 (n, W) as an array of that kind holds it: by the rules that made the table (quantize/tables.py)."""
    from burnish.graph.weights import pack_int4, to_bfloat16
    from burnish.quantize.affine import quantize_rows
    from burnish.quantize.tables import int4_rows

    match kind:
        case "int8":
            return quantize_rows(values)[0]
        case "int8.scale":
            return quantize_rows(values)[1][:, None]
        case "int4":
            return pack_int4(int4_rows(values)[0])
        case "int4.scale":
            return int4_rows(values)[1][:, None]
        case "bfloat16":
            return to_bfloat16(values)
        case "float16":
            if (np.abs(values) > np.finfo(np.float16).max).any():
                raise ServeError("a row has a value beyond float16, which its table has. Compile the model and publish that")
            return values.astype(np.float16)
    return values


def _map(path: Path, place: Place, mode: str) -> np.ndarray:
    stored = {"int4": ("uint8", place.width // 2), "bfloat16": ("uint16", place.width)}.get(place.dtype, (place.dtype, place.width))
    return np.memmap(path, stored[0], mode, place.at, (place.rows, stored[1]))  # type: ignore[call-overload]


def _write(path: Path, place: Place, ids: np.ndarray, values: np.ndarray) -> None:
    held = _map(path, place, "r+")
    held[ids] = values
    held.flush()  # type: ignore[attr-defined]
