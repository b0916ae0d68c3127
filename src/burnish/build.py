"""Graph + Recipe -> Artifact: apply the recipe, let a backend build, and hold what it built against the interpreter."""

from __future__ import annotations

import datetime
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import burnish
from burnish import recipe as recipes
from burnish.backends import table as backends
from burnish.backends.table import Backend, Engine, Program
from burnish.capture.parity import random_rows
from burnish.decided import decide
from burnish.errors import BuildError, BurnishError
from burnish.graph.interpret import interpret, interpret_request
from burnish.graph.node import Graph
from burnish.graph.ops import Op
from burnish.host import Host, versions
from burnish.inputs import Input, rows_of
from burnish.passes import split
from burnish.runtime.artifact import GOLDEN, Artifact, Golden, Manifest, Output, difference, digest, write_manifest
from burnish.train import Training

GOLDEN_ROWS = 64


def compile(
    graph: Graph,
    recipe: str | Path | recipes.Recipe = "int8",
    calibration: Mapping[str, np.ndarray] | None = None,
    backend: str | None = None,
    host: Host | None = None,
    threads: int | None = None,
    source: Any = None,
    training: Training | None = None,
) -> Artifact:
    """An artifact that computes `graph` by `recipe`; it lives in a temporary directory until its `save`.

    `recipe`: the name of one, a Recipe, or the path of one. `calibration`: rows, input name -> (N, *shape), for steps that need them; the
    golden rows are taken from them too. `backend`, `threads`: instead of the recipe's own (native, 1, unless it says otherwise).
    `host`: the machine to build for, this one by default. `source`: the model as it came ("file.py:function", a path, or the module);
    the backend "eager" runs that, and no other needs it. `training`: rows, and more, for steps that train (docs/training.md).

    RecipeError when a step does not apply; BuildError when the backend cannot express the graph, is not installed, or computes something
    else than the interpreter does.
    """
    chosen = recipes.recipe(recipe, backend)
    if threads is not None:
        chosen = msgspec.structs.replace(chosen, threads=threads)
    return build(graph, chosen, calibration, host, source, functools.partial(decide, training=training))


def build(
    graph: Graph,
    chosen: recipes.Recipe,
    calibration: Mapping[str, np.ndarray] | None = None,
    host: Host | None = None,
    source: Any = None,
    apply: Callable[[Graph, recipes.Recipe, Mapping[str, np.ndarray] | None], tuple[Graph, recipes.Recipe]] = decide,
) -> Artifact:
    """`compile` of a Recipe. `apply` is what applies it, and says what it decided, which the manifest keeps: a search keeps the graphs of
    steps that several recipes share."""
    tool = _tool(chosen.backend, source)
    if chosen.backend == "eager" and chosen.steps:
        raise BuildError(f"the backend eager runs the model as it came, so it takes the recipe original; met {recipes.describe(chosen)}")
    if getattr(tool, "rows_only", False):
        chosen = chosen.without(recipes.FactorRequest)
    absent = tool.missing()
    if absent:
        raise BuildError(absent)
    here = Host.here()
    host = host or here
    if calibration is not None:
        rows_of(graph.inputs, calibration)
    changed, decided = apply(graph, chosen, calibration)
    temporary = tempfile.TemporaryDirectory(prefix="burnish-")
    out = Path(temporary.name)
    program = tool.build(changed, host, out, chosen.threads)
    table = golden_rows(graph.inputs, calibration)
    expected = interpret(changed, table)
    worst, mean = tolerance(changed)
    if host.arch != here.arch or here.lacks(program.cpu_flags):  # built for another machine: only the interpreter can say
        outputs, exact, made_by = expected, False, "interpreter"
    else:
        try:
            engine = tool.open(out, program, graph.inputs, chosen.threads)
            try:
                outputs = _checked(engine, program, changed, table, expected)
                exact, made_by = getattr(engine, "exact", False), "engine"
            finally:
                engine.close()
        except BurnishError:
            raise
        except Exception as error:  # engines of others raise types of their own
            told = next(iter(str(error).strip().splitlines()), "no message")
            raise BuildError(f"{program.backend} cannot run what it built: {type(error).__name__}: {told}") from error
    np.savez(out / GOLDEN, **table, **{f"output:{name}": array for name, array in outputs.items()})  # type: ignore[arg-type]
    manifest = Manifest(
        inputs=graph.inputs,
        outputs=tuple(Output(name, str(outputs[name].dtype), outputs[name].shape[1:]) for name, _ in changed.outputs),
        recipe=msgspec.to_builtins(decided),
        programs=(program,),
        host=host,
        golden=Golden(rows=len(next(iter(outputs.values()))), made_by=made_by, tolerance=worst, mean_tolerance=mean, exact=exact),
        files={str(path.relative_to(out)): digest(path) for path in sorted(out.rglob("*")) if path.is_file()},
        versions={"burnish": burnish.__version__, **versions("numpy", "onnx", "onnxruntime", "openvino", "torch", "ziglang")},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return Artifact(out, write_manifest(out, manifest), temporary)


def compile_split(
    graph: Graph,
    recipe: str | Path | recipes.Recipe = "int8",
    calibration: Mapping[str, np.ndarray] | None = None,
    host: Host | None = None,
    threads: int | None = None,
    training: Training | None = None,
) -> tuple[Artifact, Artifact]:
    """`compile`, cut at the border between request and candidate (passes/split.py): the user's part, and the device's part for `host`.

    The recipe is applied to the whole, so both together compute what its artifact would, to the bit. The user's part takes requests as
    rows; its outputs are request inputs of the device's part. The manifest says under `measured.split` what is sent, and how many bytes.
    Both are the native backend's. BuildError when the graph has nothing to cut.
    """
    chosen = recipes.recipe(recipe, "native")
    if threads is not None:
        chosen = msgspec.structs.replace(chosen, threads=threads)
    changed, decided = decide(graph, chosen, calibration, training=training)
    cut = split.split(changed)
    table = golden_rows(graph.inputs, calibration)
    parts = {half: _half(table, half) for spec in graph.inputs for half in spec.halves}
    rows_of_user = {half.name: array for half, array in parts.items() if half.side == "request"}
    rows_of_device = {half.name: array for half, array in parts.items() if half.side == "candidate"} | interpret(cut.user, rows_of_user)
    told = {"sent": [spec.name for spec in cut.sent], "payload_bytes": cut.payload_bytes}
    made = []
    for part, part_of, rows, where in (("user", cut.user, rows_of_user, None), ("device", cut.device, rows_of_device, host)):
        artifact = build(part_of, decided, rows, where, apply=lambda whole, recipe, _: (whole, recipe))
        artifact.measured(split={"part": part, **told})
        made.append(artifact)
    return made[0], made[1]


def add_programs(artifact: Artifact, isas: Sequence[str]) -> Artifact:
    """The native artifact with a program for each further instruction set, behind those it has; the first that runs on a machine is used.

    Programs share the text and the weights, so each costs a library. Those that this machine runs are held against the golden rows.
    BuildError when the artifact is another backend's.
    """
    from burnish.backends.native import Native

    held = artifact.manifest
    if held.programs[0].backend != Native.name:
        raise BuildError(f"only the native backend builds for several targets, and this artifact is {held.programs[0].backend}'s")
    table, expected = artifact.golden()
    native, programs = Native(), list(held.programs)
    for isa in isas:
        if isa in (program.target for program in programs):
            continue
        programs.append(native.again(artifact.path, programs[0], isa))
        if Host.here().runs(isa):
            engine = native.open(artifact.path, programs[-1], held.inputs, 1)
            try:
                got = engine.rows(table, held.golden.rows)
            finally:
                engine.close()
            _agree(programs[-1], f" on {isa}", got, expected, (held.golden.tolerance, held.golden.mean_tolerance))
    files = {**held.files, **{p.files[0]: digest(artifact.path / p.files[0]) for p in programs}}
    artifact.manifest = write_manifest(artifact.path, msgspec.structs.replace(held, programs=tuple(programs), files=files))
    return artifact


def _tool(name: str, source: Any) -> Backend:
    if name == "eager":  # the one backend that runs the model as it came, not the graph
        from burnish.backends.eager import Eager

        return Eager(source)
    return backends.backend(name)


def tolerance(graph: Graph) -> tuple[float, float]:
    """How far an engine may be from the interpreter, (largest, mean) difference by artifact.difference.

    Float engines sum in another order. Where values are quantized or rounded to bfloat16, such a difference can move a value across a
    rounding tie, which changes it by a whole step. Met so far: int8 1e-3 and 1e-5, bfloat16 (all of OpenVINO's arithmetic) 5e-3 and 1e-3.
    """
    if any(node.op is Op.QUANTIZE for node in graph.order):
        return 2e-2, 1e-3
    if any(node.op is Op.LINEAR and node["compute"] != "float32" for node in graph.order):
        return 3e-2, 5e-3
    return 1e-4, 1e-5


def golden_rows(inputs: tuple[Input, ...], calibration: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Up to GOLDEN_ROWS rows spread over `calibration`, or as many random ones whose ids lie within the cardinalities."""
    if calibration is not None:
        n = len(next(iter(calibration.values())))
        at = np.unique(np.linspace(0, n - 1, min(n, GOLDEN_ROWS)).astype(np.int64))
        return {spec.name: np.ascontiguousarray(np.asarray(calibration[spec.name])[at]) for spec in inputs}
    return random_rows(inputs, GOLDEN_ROWS)


def _checked(
    engine: Engine, program: Program, graph: Graph, table: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The engine's outputs for `table`; BuildError when they, or those of a request, are not the interpreter's."""
    n = len(next(iter(expected.values())))
    got = engine.rows(table, n)
    _agree(program, "", got, expected, tolerance(graph))
    request = {half.name: _half(table, half)[0] for spec in graph.inputs for half in spec.halves if half.side == "request"}
    candidates = {half.name: _half(table, half) for spec in graph.inputs for half in spec.halves if half.side == "candidate"}
    rows = n if candidates else 1
    _agree(
        program,
        " for a request",
        engine.request({k: np.ascontiguousarray(v).reshape(v.shape) for k, v in request.items()}, candidates, rows),
        {name: value[:rows] for name, value in interpret_request(graph, request, candidates).items()},
        tolerance(graph),
    )
    return got


def _half(table: Mapping[str, np.ndarray], half: Any) -> np.ndarray:
    whole = table[half.name]
    return whole if half.columns is None else np.ascontiguousarray(whole[:, list(half.columns)])


def _agree(program: Program, where: str, got: dict[str, np.ndarray], want: dict[str, np.ndarray], allowed: tuple[float, float]) -> None:
    for name, value in want.items():
        worst, mean = difference(got[name], value)
        if not (worst <= allowed[0] and mean <= allowed[1]):
            raise BuildError(
                f"{program.backend} does not compute what the graph says{where}: output {name!r}, {got[name].shape}, differs from the "
                f"interpreter's by {worst:.3g} at most and {mean:.3g} on average, relative to its largest value; {allowed[0]:.3g} and "
                f"{allowed[1]:.3g} are allowed"
            )
