"""A native artifact as C: library, header, weights, golden rows and programs that score and measure. Nothing but libc is needed to use it.

An artifact holds the text of its program, which is the same for every instruction set, so exporting is compiling it for another machine;
the graph and the rows it was made from are not needed.
"""

from __future__ import annotations

import json
import math
import shutil
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from burnish.backends.native import SOURCE, Native, row_bytes
from burnish.backends.table import Program
from burnish.errors import BuildError
from burnish.export.common import fresh
from burnish.host import Host
from burnish.native import toolchain
from burnish.runtime.artifact import Artifact, Manifest, digest


def export(path: Path, target: str | None, out: Path) -> dict[str, Any]:
    """Write a library, its text and header, weights, golden rows, two programs that use it and export.json into `out`; what that says."""
    artifact = Artifact.read(path)
    program = native_program(artifact, "C")
    isa = Host.target(target).isa if target else Host.here().isa
    if isa == "simd128":
        raise BuildError("WebAssembly has no shared libraries. Use --to wasm")
    library = toolchain.build((path / SOURCE).read_text(), isa)
    fresh(out)
    shutil.copyfile(library, out / "libranker.so")
    shutil.copyfile(path / SOURCE, out / "ranker.cpp")
    shutil.copyfile(path / "weights.bin", out / "weights.bin")
    shutil.copyfile(str(resources.files("burnish.native.abi").joinpath("ranker.h")), out / "ranker.h")
    golden_files(artifact, out)
    total = sum((out / name).stat().st_size for name in ("libranker.so", "weights.bin"))
    told: dict[str, Any] = {
        "schema": 1,
        "format": "c",
        "target": isa,
        "cpu_flags": sorted(Host.target(isa).flags),
        "library_bytes": (out / "libranker.so").stat().st_size,
        "weight_bytes": (out / "weights.bin").stat().st_size,
        "total_bytes": total,
        "peak_memory_bytes": total + program.arena_bytes,
        "arena_bytes": program.arena_bytes,
        "artifact_sha256": artifact.manifest.sha256,
        "files": {},
    }
    (out / "example.c").write_text(_example(artifact.manifest))
    (out / "bench.c").write_text(_bench(artifact.manifest, isa))
    (out / "README.md").write_text(_readme(artifact, isa, told))
    told["files"] = {str(f.relative_to(out)): digest(f).sha256 for f in sorted(out.rglob("*")) if f.is_file()}
    (out / "export.json").write_text(json.dumps(told, indent=1) + "\n")
    return told


def native_program(artifact: Artifact, what: str) -> Program:
    """The native program of an artifact, whose text `what` is compiled from; BuildError when it has none."""
    program = next((p for p in artifact.manifest.programs if p.backend == Native.name), None)
    if program is None:
        raise BuildError(
            f"the artifact at {artifact.path} is {artifact.manifest.programs[0].backend}'s, and {what} is exported from the native "
            "backend. Compile the model with --backend native"
        )
    return program


def golden_files(artifact: Artifact, out: Path) -> None:
    """Write the golden rows as plain files: golden/input_0.bin, ..., golden/output_0.bin, ..., values row by row."""
    table, outputs = artifact.golden()
    (out / "golden").mkdir()
    for i, spec in enumerate(artifact.manifest.inputs):
        (out / "golden" / f"input_{i}.bin").write_bytes(np.ascontiguousarray(table[spec.name], np.dtype(spec.dtype)).tobytes())
    for i, made in enumerate(artifact.manifest.outputs):
        (out / "golden" / f"output_{i}.bin").write_bytes(np.ascontiguousarray(outputs[made.name], np.dtype(made.dtype)).tobytes())


def _example(manifest: Manifest) -> str:
    """The text of a program that scores the golden rows and compares."""
    inputs: list[str] = []
    scores: list[str] = []
    for i, spec in enumerate(manifest.inputs):
        inputs.append(f'  {{"golden/input_{i}.bin", {row_bytes(spec.dtype, spec.shape)}}}, /* {_comment(spec)} */')
    for i, made in enumerate(manifest.outputs):
        floats = int(made.dtype == "float32")
        scores.append(f'  {{"golden/output_{i}.bin", {row_bytes(made.dtype, made.shape)}, {floats}}}, /* {_comment(made)} */')
    template = Template(resources.files("burnish.export").joinpath("example.c.txt").read_text())
    return template.substitute(
        rows=manifest.golden.rows, inputs="\n".join(inputs), outputs="\n".join(scores), tolerance=repr(float(manifest.golden.tolerance))
    )


def _bench(manifest: Manifest, isa: str) -> str:
    """The text of a program that measures latency by requests made of the golden rows."""
    columns: list[str] = []
    halves: list[str] = []
    for i, spec in enumerate(manifest.inputs):
        row = row_bytes(spec.dtype, spec.shape)
        for half in spec.halves:
            kept = range(1) if half.columns is None else half.columns
            piece = row if half.columns is None else row // spec.shape[0]
            columns.append(f"static const int COLUMNS_{len(columns)}[] = {{{', '.join(map(str, kept))}}};")
            told = f'"golden/input_{i}.bin", {row}, {piece}, {int(half.side == "request")}, {len(kept)}, COLUMNS_{len(halves)}'
            halves.append(f"  {{{told}}}, /* {_comment(half)} */")
    template = Template(resources.files("burnish.export").joinpath("bench.c.txt").read_text())
    artifact = {"path": ".", "recipe": manifest.recipe.get("name"), "backend": Native.name, "target": isa, "sha256": manifest.sha256}
    return template.substitute(
        rows=manifest.golden.rows,
        columns="\n".join(columns),
        halves="\n".join(halves),
        output_bytes=", ".join(str(row_bytes(made.dtype, made.shape)) for made in manifest.outputs),
        artifact=json.dumps(json.dumps(artifact)),
    )


def _comment(spec: Any) -> str:
    """Name, dtype and values a row of an input or output, safe inside a C comment."""
    name = str(spec.name).encode("ascii", "replace").decode().replace("*/", "* /")
    return f"{name}: {spec.dtype}, {math.prod(spec.shape)} a row"


def _readme(artifact: Artifact, isa: str, told: dict[str, Any]) -> str:
    command = toolchain.command(isa, Path("ranker.cpp"), Path("libranker.so"), "c++")
    needs = ", ".join(told["cpu_flags"]) or "no more than the architecture has"
    triple = toolchain.TARGETS.get(isa, ("",))[0]
    cross = f"python -m ziglang cc -target {triple}" if triple else "cc"
    return f"""# A ranker in C

    {cross} -O2 example.c -L. -lranker -lm -Wl,-rpath,'$ORIGIN' -o example
    ./example

scores {artifact.manifest.golden.rows} golden rows, compares and prints JSON. `ranker.h` says how the library is called; it needs libc and
these CPU flags: {needs}. The library ({told["library_bytes"]:,} bytes) and `weights.bin` ({told["weight_bytes"]:,} bytes, mapped) are all
that a device must have; a handle takes {told["arena_bytes"]:,} bytes more.

    {cross} -O2 bench.c -L. -lranker -Wl,-rpath,'$ORIGIN' -o bench
    ./bench 1,16,128 2 > bench.json

measures it on the device, for 1, 16 and 128 candidates and 2 seconds each, and prints what `burnish bench --json` prints, which
`burnish plan` reads. With another compiler:

    {" ".join(command)}
"""
