"""Rows of a Parquet or CSV file as the arrays a model is called with; each thing that can be wrong with them is one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from burnish.errors import JobError
from burnish.inputs import Input

if TYPE_CHECKING:
    import polars as pl

EXACT_IN_FLOAT32 = 1 << 24  # whole numbers up to here


class Rows(msgspec.Struct, frozen=True):
    """Rows of one split: `table` maps input name to (N, *shape); `labels` (N,) float32 of 0 and 1, or None; `requests` (N,) int64 codes,
    or None; `slices` maps a slice column to its (N,) values."""

    table: dict[str, np.ndarray]
    labels: np.ndarray | None = None
    requests: np.ndarray | None = None
    slices: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(next(iter(self.table.values())))

    def take(self, index: np.ndarray | slice) -> Rows:
        """The rows at `index`, in its order."""
        return Rows(
            {name: array[index] for name, array in self.table.items()},
            None if self.labels is None else self.labels[index],
            None if self.requests is None else self.requests[index],
            {name: array[index] for name, array in self.slices.items()},
        )


def read(
    path: Path,
    inputs: Sequence[Input],
    columns: Mapping[str, tuple[str, ...]],
    label: str | None = None,
    request: tuple[str, ...] = (),
    slices: tuple[str, ...] = (),
    limit: int | None = None,
) -> Rows:
    """The rows of `path`: input i is made of `columns[i.name]`. At most `limit` rows, spread evenly over the file.

    JobError: the file cannot be read; a column is missing, of a type that does not convert exactly, has nulls, or ids out of bounds;
    labels other than 0 and 1; a request-side value that differs within a request.
    """
    import polars as pl

    frame = _frame(
        path, [*dict.fromkeys(c for i in inputs for c in columns[i.name]), *([label] if label else []), *request, *slices], limit
    )
    table = {spec.name: _input(path, spec, [frame[c] for c in columns[spec.name]]) for spec in inputs}
    check_ids(path, inputs, columns, table)
    labels = _labels(path, frame[label]) if label else None
    codes: np.ndarray | None = None
    if request:
        _refuse_nulls(path, frame.select(request))
        key = pl.struct(request) if len(request) > 1 else pl.col(request[0])
        codes = frame.select(key.rank("dense")).to_series().to_numpy().astype(np.int64) - 1
    for name in slices:
        _refuse_nulls(path, frame.select(name))
    rows = Rows(table, labels, codes, {name: frame[name].to_numpy() for name in slices})
    check_requests(path, inputs, columns, rows)
    return rows


def check_ids(path: Path, inputs: Sequence[Input], columns: Mapping[str, tuple[str, ...]], table: Mapping[str, np.ndarray]) -> None:
    """Refuse ids outside [0, cardinality), with the row, the column and the id."""
    for spec in inputs:
        if spec.cardinality is None or spec.dtype == "bool":
            continue
        array, names = table[spec.name], columns[spec.name]
        for c in range(spec.columns):
            bound = spec.cardinality_of(c)
            if bound is None:
                continue
            values = array[:, c] if spec.shape else array
            bad = (values < 0) | (values >= bound)
            if bad.any():
                at = np.unravel_index(int(np.argmax(bad)), bad.shape)
                raise JobError(
                    f"{path.name}: column {names[c if len(names) > 1 else 0]!r} has id {values[at]} at row {at[0]}; ids there (input "
                    f"{spec.name!r}) lie in [0, {bound}). "
                    "Raise the cardinality if the model's table is larger, or map unknown ids to a known one"
                )


def check_requests(path: Path, inputs: Sequence[Input], columns: Mapping[str, tuple[str, ...]], rows: Rows) -> None:
    """Refuse a request-side value that is not the same in all rows of a request: it would be computed once and be wrong for some."""
    if rows.requests is None or not len(rows):
        return
    order = np.argsort(rows.requests, kind="stable")
    same = np.diff(rows.requests[order]) == 0  # (N - 1,): row order[i + 1] belongs to the request of row order[i]
    for spec in inputs:
        for half in spec.halves:
            if half.side != "request":
                continue
            array = rows.table[spec.name]
            values = (array if half.columns is None else array[:, half.columns])[order].reshape(len(rows), -1)
            differs = same[:, None] & (values[1:] != values[:-1]) & ~((values[1:] != values[1:]) & (values[:-1] != values[:-1]))
            if differs.any():
                i, c = np.unravel_index(int(np.argmax(differs)), differs.shape)
                names = columns[spec.name]
                column = (half.columns or range(spec.columns))[c] if len(names) > 1 else 0
                raise JobError(
                    f"{path.name}: column {names[column]!r} is on the request side of input {spec.name!r}, but differs within one request: "
                    f"{values[i, c]} at row {order[i]}, {values[i + 1, c]} at row {order[i + 1]}. "
                    'Say side = "candidate" for it, or name the right columns in data.request'
                )


def close_to(word: str, known: Sequence[str]) -> str:
    """' Did you mean ...?', or nothing when no known word is like it."""
    import difflib

    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def _frame(path: Path, wanted: list[str], limit: int | None) -> pl.DataFrame:
    import polars as pl

    if not path.exists():
        raise JobError(f"no file {path}, which the job names under [data]")
    if path.suffix not in (".parquet", ".csv"):
        raise JobError(f"{path.name}: rows are read from .parquet and .csv files, not {path.suffix or 'a file without suffix'}")
    try:
        lazy = pl.scan_parquet(path) if path.suffix == ".parquet" else pl.scan_csv(path, infer_schema_length=10_000)
        known = lazy.collect_schema().names()
        for column in wanted:
            if column not in known:
                shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
                raise JobError(f"{path.name}: no column {column!r}.{close_to(column, known)} It has {shown}")
        lazy = lazy.select(list(dict.fromkeys(wanted)))
        if limit is not None:
            count = lazy.select(pl.len()).collect().item()
            lazy = lazy.gather_every(-(-count // limit)) if count > limit else lazy
        return lazy.collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise JobError(f"cannot read {path.name}: {str(error).splitlines()[0]}") from None


def _refuse_nulls(path: Path, frame: pl.DataFrame) -> None:
    for series in frame:
        if series.null_count():
            first = int(series.is_null().arg_max() or 0)
            raise JobError(
                f"{path.name}: column {series.name!r} has {series.null_count()} nulls, the first at row {first}. "
                "Fill them with the value the model was trained with"
            )


def _input(path: Path, spec: Input, columns: list[pl.Series]) -> np.ndarray:
    """The (N, *shape) array of one input."""
    parts = [_column(path, spec, series) for series in columns]
    if len(parts) > 1:
        return np.stack(parts, axis=1)
    if parts[0].size != len(parts[0]) * math.prod(spec.shape):
        raise JobError(
            f"{path.name}: input {spec.name!r} takes shape {list(spec.shape)} behind each row, and column {columns[0].name!r} has one "
            "value a row. List the columns, or name one that holds lists"
        )
    return parts[0].reshape(len(parts[0]), *spec.shape)


def _column(path: Path, spec: Input, series: pl.Series) -> np.ndarray:
    """(N,), or (N, items) for a column of lists."""
    import polars as pl

    _refuse_nulls(path, series.to_frame())
    where, rows, items = f"{path.name}: column {series.name!r}", len(series), math.prod(spec.shape)
    if isinstance(series.dtype, pl.List | pl.Array):
        lists = series.cast(pl.List(series.dtype.inner))
        lengths = lists.list.len()
        if rows and (lengths != items).any():
            row = int((lengths != items).arg_max() or 0)
            raise JobError(
                f"{where} has a list of {lengths[row]} items at row {row}; input {spec.name!r} takes {items} behind each row "
                f"(shape {list(spec.shape)}). Pad or cut the lists to one length"
            )
        flat = lists.list.explode()
        if flat.null_count():
            row = int(flat.is_null().arg_max() or 0) // items
            raise JobError(
                f"{where} has {flat.null_count()} nulls in its lists, the first at row {row}. Fill them with the id the model pads with"
            )
        return _cast(where, spec, flat).reshape(rows, items)
    return _cast(where, spec, series)


def _cast(where: str, spec: Input, series: pl.Series) -> np.ndarray:
    import polars as pl

    met, want = series.dtype, spec.dtype
    fits: Any
    if want == "bool":
        fits = met == pl.Boolean or (met.is_integer() and bool(series.is_in([0, 1]).all()))
    elif want in ("int32", "int64"):
        fits = met == pl.Boolean or met.is_integer()
    else:
        fits = met == pl.Boolean or met.is_float() or (met.is_integer() and (want == "float64" or _small(series)))
    if not fits:
        raise JobError(
            f"{where} is {met}, and does not convert exactly to the {want} of input {spec.name!r}. Convert it where you write the file"
        )
    values = series.to_numpy()
    if want in ("int32", "int64") and len(values) and met != pl.Boolean:
        bounds = np.iinfo(want)
        if int(values.min()) < bounds.min or int(values.max()) > bounds.max:
            raise JobError(f"{where} has values beyond {want}, which input {spec.name!r} takes. Map them to smaller ids")
    return values.astype(want)


def _small(series: pl.Series) -> bool:
    return not len(series) or max(abs(int(series.min())), abs(int(series.max()))) <= EXACT_IN_FLOAT32  # type: ignore[arg-type]


def _labels(path: Path, series: pl.Series) -> np.ndarray:
    _refuse_nulls(path, series.to_frame())
    if not (series.dtype.is_numeric() or str(series.dtype) == "Boolean"):
        raise JobError(f"{path.name}: label column {series.name!r} is {series.dtype}. Labels are 0 or 1")
    labels = series.to_numpy().astype(np.float32)
    bad = (labels != 0) & (labels != 1)
    if bad.any():
        row = int(np.argmax(bad))
        raise JobError(f"{path.name}: label {labels[row]:g} at row {row} of column {series.name!r}. Labels are 0 or 1")
    return labels
