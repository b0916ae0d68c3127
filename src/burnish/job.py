"""The user's file: one TOML that names the model, its inputs, the rows, the objective and the prices.

Why our own walk over the types, and not msgspec's conversion in one call: a wrong key must be told with its path (`inputs.cat.sides`)
and the keys that are known there, and msgspec's message has neither for a dictionary of tables.
"""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from burnish.errors import InputError, JobError
from burnish.inputs import Input
from burnish.rows import Rows, close_to, read
from burnish.trace import Trace
from burnish.trace import read as read_trace

Split = Literal["train", "calibration", "validation"]
Metric = Literal["auc", "gauc", "log_loss", "normalized_entropy", "calibration", "ece", "ndcg", "mrr", "topk_overlap", "kendall_tau"]
HERE = "this machine"  # the name of the host that measures
Positive = Annotated[float, msgspec.Meta(gt=0)]


class Model(msgspec.Struct, frozen=True):
    """[model], the trained ranker"""

    load: Annotated[str, "`file.py:function` that returns the nn.Module, or a `.pt2` or `.onnx` file"]
    output: Annotated[str | None, "of several outputs, the one that the label judges"] = None


class InputTable(msgspec.Struct, frozen=True):
    """[inputs.NAME], one table for each argument of the model's forward, named as it is there"""

    dtype: Annotated[Literal["float32", "float64", "int64", "int32", "bool"], "what the model is given"] = "float32"
    columns: Annotated[str | tuple[str, ...] | None, "a column, or a list of columns put side by side; left out: the column named NAME"] = (
        None
    )
    shape: Annotated[int | tuple[int, ...] | None, "shape behind the rows; needed for a column that holds lists of fixed length"] = None
    side: Annotated[
        Literal["request", "candidate"] | tuple[Literal["request", "candidate"], ...],
        "`request` (same for all candidates of a request) or `candidate`; one, or one for each column",
    ] = "candidate"
    cardinality: Annotated[
        int | tuple[int, ...] | None,
        "ids lie in [0, cardinality); one, or one for each column (0: no ids there); left out: found in the model",
    ] = None


class Data(msgspec.Struct, frozen=True):
    """[data], Parquet or CSV files"""

    validation: Annotated[str, "rows on which accuracy and latency are measured"]
    label: Annotated[str, "the column with 0 or 1"]
    calibration: Annotated[str | None, "rows from which quantization takes its ranges; left out: `train`"] = None
    train: Annotated[str | None, "the rows the model was trained on"] = None
    request: Annotated[str | tuple[str, ...] | None, "the column, or columns, that tell one request from another"] = None
    slices: Annotated[tuple[str, ...], "columns whose values divide the rows into slices to be looked at one by one"] = ()


class Objective(msgspec.Struct, frozen=True):
    """[objective], what the deployment must do"""

    p99_ms: Annotated[Positive, "99 of 100 requests are answered within this time, from their intended start"]
    qps: Annotated[Positive, "requests a second over all machines, at the busiest time"]
    candidates: Annotated[
        Annotated[int, msgspec.Meta(ge=1)] | str, "candidates to be scored in one request: a number, or the column of the trace that has it"
    ] = 128
    trace: Annotated[
        str | None, "requests as they came, Parquet or CSV with a column `timestamp` (dates with times, or seconds); left out: Poisson"
    ] = None


class Accuracy(msgspec.Struct, frozen=True):
    """[accuracy], what it may lose"""

    metric: Annotated[Metric, "the metric that must not get worse (docs/measurement.md)"] = "auc"
    max_drop: Annotated[
        Annotated[float, msgspec.Meta(ge=0)], "the loss that is allowed; the bad end of the interval must lie inside it"
    ] = 0.001
    drop_type: Annotated[Literal["relative", "absolute"], "`relative`: a share of the original's value"] = "relative"
    confidence: Annotated[Annotated[float, msgspec.Meta(gt=0.5, lt=1)], "of the interval, two-sided"] = 0.95
    k: Annotated[Annotated[int, msgspec.Meta(ge=1)], "how many of the best `ndcg` and `topk_overlap` look at"] = 10


class Search(msgspec.Struct, frozen=True):
    """[search], how long to look, and where"""

    budget_minutes: Annotated[Positive, "no new trial is started after this time"] = 10.0
    retrain: Annotated[bool, "`false`: weights are never trained"] = False
    recipes: Annotated[tuple[str, ...], "only these recipes; left out: all"] = ()
    backends: Annotated[tuple[str, ...], "only these backends; left out: all"] = ()
    seed: Annotated[int, "of every random choice"] = 0


class Reserve(msgspec.Struct, frozen=True):
    """[reserve], what is planned beyond the load"""

    headroom: Annotated[Annotated[float, msgspec.Meta(ge=0, lt=1)], "share of what a replica can carry that is kept free for bursts"] = 0.2
    growth: Annotated[Annotated[float, msgspec.Meta(ge=0)], "share by which the load may grow before more machines are bought"] = 0.0
    swap: Annotated[Annotated[float, msgspec.Meta(ge=0, lt=1)], "share of the machines that are away while a new version comes in"] = 0.0
    spare_machines: Annotated[Annotated[int, msgspec.Meta(ge=0)], "machines that may fail (N+1: one)"] = 1


class HostTable(msgspec.Struct, frozen=True):
    """[[hosts]], a machine that may serve; `this machine` is the one that measures"""

    name: Annotated[str, "`this machine`, a kind of place/prices.toml, or a name of yours"]
    price_per_hour: Annotated[
        Positive | None, "US dollars for one hour of the whole machine; left out: the price file's, if it has the name"
    ] = None
    cores: Annotated[Annotated[int, msgspec.Meta(ge=1)] | None, "how many it has; left out: the price file's, else this machine's"] = None
    measured: Annotated[str | None, "what `burnish bench --json` wrote there; left out: estimated"] = None
    device: Annotated[str | None, "a profile of place/devices.toml: the model runs on the user's device"] = None


class Placing(msgspec.Struct, frozen=True):
    """[placement], where the caller is, and what must hold wherever the model runs"""

    link: Annotated[str, "how a caller reaches the cloud: a link of place/devices.toml"] = "datacenter"
    rtt_ms: Annotated[tuple[Positive, Positive] | None, "median and p99 round trip of your callers; left out: the link's"] = None
    p99_ms: Annotated[Positive | None, "what the caller may wait, network included; left out: the objective's"] = None
    offline: Annotated[bool, "it must answer without a network"] = False
    private: Annotated[bool, "what is known of the request may not leave the device"] = False
    updates_per_day: Annotated[Annotated[float, msgspec.Meta(ge=0)], "new versions that go to every device"] = 1.0
    devices: Annotated[Annotated[int, msgspec.Meta(ge=0)], "how many devices get them"] = 0


class Job(msgspec.Struct, frozen=True):
    """The whole file. Relative paths in it are relative to the file."""

    model: Model
    inputs: dict[str, InputTable]
    data: Data
    objective: Objective
    accuracy: Accuracy = Accuracy()
    search: Search = Search()
    reserve: Reserve = Reserve()
    hosts: tuple[HostTable, ...] = ()
    placement: Placing = Placing()
    title: Annotated[str, "the report's title; left out: the file's name"] = ""
    path: str = ""  # the file it was read from; not a key

    @classmethod
    def read(cls, path: str | Path) -> Job:
        """The job in a TOML file; JobError names the key that is wrong, and what is known there."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise JobError(f"no job file {path}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise JobError(f"cannot read the job file {path}: {error}") from None
        try:
            content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise JobError(f"{path} is not TOML: {error}") from None
        return cls.from_dict(content, path)

    @classmethod
    def from_dict(cls, content: dict[str, Any], path: str | Path = "job.toml") -> Job:
        """The job in nested dictionaries, as TOML would give them; paths in it are relative to the folder of `path`."""
        path = Path(path)
        job = _convert(content, cls, "", path.name)
        if isinstance(job.objective.candidates, str) and job.objective.trace is None:
            raise JobError(
                f"{path.name}: objective.candidates names the column {job.objective.candidates!r} of a trace, and there is no trace. "
                "Give a number, or the trace's file in objective.trace"
            )
        if not job.inputs:
            raise JobError(f"{path.name}: no inputs. Give one table [inputs.NAME] for each argument of the model's forward")
        return msgspec.structs.replace(job, path=str(path.resolve()), title=job.title or path.resolve().parent.name)

    @property
    def base(self) -> Path:
        """The folder that relative paths start from."""
        return Path(self.path).parent

    @property
    def signature(self) -> tuple[Input, ...]:
        """The inputs as the model's forward takes them, in the file's order."""
        return tuple(self._input(name, table) for name, table in self.inputs.items())

    def _input(self, name: str, table: InputTable) -> Input:
        columns = table.columns
        shape = table.shape if table.shape is not None else (len(columns),) if isinstance(columns, tuple) else ()
        ids = table.cardinality if not isinstance(table.cardinality, tuple) else tuple(n or None for n in table.cardinality)
        try:
            spec = Input(name, table.dtype, shape, table.side, ids)  # type: ignore[arg-type]
        except InputError as error:
            raise JobError(f"{Path(self.path).name}: {error}") from None
        if isinstance(columns, tuple) and len(columns) > 1 and spec.shape != (len(columns),):
            raise JobError(
                f"{Path(self.path).name}: inputs.{name} has {len(columns)} columns and shape {spec.shape}. "
                "Leave shape out, or give one column that holds lists"
            )
        return spec

    @property
    def trace(self) -> Trace | None:
        """The requests of objective.trace; JobError says what is wrong with it."""
        named, column = self.objective.trace, self.objective.candidates
        return None if named is None else read_trace(self.base / named, column if isinstance(column, str) else None)

    @property
    def candidates(self) -> int:
        """Candidates in one request, on average where the trace has them."""
        given, trace = self.objective.candidates, self.trace if isinstance(self.objective.candidates, str) else None
        return given if isinstance(given, int) else round(float(trace.counts.mean()))  # type: ignore[union-attr]

    @property
    def source(self) -> str:
        """What the model is loaded from, wherever the process stands."""
        return str(self.base / self.model.load)

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """The columns of the data that feed each input."""
        named = {name: table.columns for name, table in self.inputs.items()}
        return {name: (name,) if of is None else (of,) if isinstance(of, str) else of for name, of in named.items()}

    def split_path(self, split: Split) -> Path | None:
        """The file of a split, or None when the job names none; calibration falls back to train."""
        named = getattr(self.data, split) or (self.data.train if split == "calibration" else None)
        return self.base / named if named else None

    def rows(self, split: Split, limit: int | None = None, inputs: tuple[Input, ...] | None = None) -> Rows:
        """The rows of a split, checked against `inputs` (default: the job's own; a captured graph knows more cardinalities).

        `limit` takes at most so many rows, spread evenly over the file. JobError says what is wrong with which column.
        """
        path = self.split_path(split)
        if path is None:
            more = " or data.train" if split == "calibration" else ""
            raise JobError(f"{Path(self.path).name}: no {split} rows. Name a file in data.{split}{more}")
        request = self.data.request
        return read(
            path,
            inputs or self.signature,
            self.columns,
            self.data.label if split != "calibration" else None,
            () if split == "calibration" else (request,) if isinstance(request, str) else request or (),
            self.data.slices if split == "validation" else (),
            limit,
        )


# what to write where a key that is missing does not say it by its name
ADD = {"inputs": "Add a table [inputs.NAME] for each argument of the model's forward, or for each key where forward takes a dict"}


def _convert(value: Any, kind: Any, path: str, file: str) -> Any:
    """`value` as `kind`; JobError with the key's path. Structs, dicts and tuples of structs are walked, all else is msgspec's."""
    where = f"{file}: {path}" if path else f"{file}:"
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if not isinstance(value, dict):
            raise JobError(f"{where}: expected a table, got {_named(value)}".replace("::", ":"))
        hints = get_type_hints(kind, include_extras=True)
        known = [field.name for field in msgspec.structs.fields(kind) if not (kind is Job and field.name == "path")]
        for key in value:
            if key not in known:
                at = f"[{path}]" if path else "the top level"
                raise JobError(f"{file}: unknown key {key!r} in {at}.{close_to(key, known)} Known there: {', '.join(known)}")
        for field in msgspec.structs.fields(kind):
            if field.required and field.name not in value:
                at = f"{path}.{field.name}" if path else field.name
                what = "table" if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct) else "key"
                told = f". {ADD[at]}" if at in ADD else ""
                raise JobError(f"{file}: {what} {at} is missing{told}")
        return kind(**{key: _convert(item, hints[key], f"{path}.{key}" if path else key, file) for key, item in value.items()})
    if get_origin(kind) is dict and isinstance(value, dict):
        return {key: _convert(item, get_args(kind)[1], f"{path}.{key}", file) for key, item in value.items()}
    if get_origin(kind) is tuple and _is_struct(get_args(kind)[0]) and isinstance(value, list):
        return tuple(_convert(item, get_args(kind)[0], f"{path}[{i}]", file) for i, item in enumerate(value))
    if isinstance(value, float) and not math.isfinite(value):
        raise JobError(f"{where} is {value}. Give a finite number")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        said = str(error).split(" - at ")[0].replace("`", "")
        if said.startswith("Invalid enum"):
            said = "expected " + " or ".join(repr(word) for word in _words(kind))
        raise JobError(
            f"{where}: {said[0].lower()}{said[1:]}, got {_named(value)}".replace(f", got {type(value).__name__}, got", ", got")
        ) from None


def _words(kind: Any) -> list[str]:
    """The words a Literal allows, inside Annotated, tuples and unions too."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return list(dict.fromkeys(word for part in get_args(kind) for word in _words(part)))


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _named(value: Any) -> str:
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)


def reference() -> str:
    """docs/job_file.md, made from the types above."""
    lines = [
        "# The job file",
        "",
        "One TOML file says what to make cheaper and what it must keep. Relative paths are relative to the file; unknown keys are refused.",
        "This page is made from the types by `python -m burnish.job > docs/job_file.md`.",
    ]
    for field in msgspec.structs.fields(Job):
        inner = next((kind for kind in (field.type, *get_args(field.type)) if _is_struct(kind)), None)
        if inner is not None:
            title, _, said = (inner.__doc__ or "").partition(", ")
            lines += ["", f"## {title}", "", f"{said[0].upper()}{said[1:]}.", ""]
            lines += ["| key | type | default | what it says |", "|---|---|---|---|", *_table(inner)]
    return "\n".join(lines) + "\n"


def _table(kind: type[msgspec.Struct]) -> list[str]:
    hints = get_type_hints(kind, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(kind):
        said = next(note for note in get_args(hints[field.name])[1:] if isinstance(note, str))
        default = "needed" if field.required else "" if field.default in (None, (), "") else f"`{json.dumps(field.default)}`"
        rows.append(f"| `{field.name}` | {_type_words(field.type)} | {default} | {said} |")
    return rows


def _type_words(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        return _type_words(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return " or ".join(f'`"{word}"`' for word in get_args(kind))
    if get_origin(kind) is tuple:
        return f"list of {_type_words(get_args(kind)[0])}"
    if parts := [part for part in get_args(kind) if part is not type(None)]:
        return ", or ".join(_type_words(part) for part in parts)
    return {str: "string", int: "whole number", float: "number", bool: "true or false"}[kind]


if __name__ == "__main__":
    print(reference(), end="")
