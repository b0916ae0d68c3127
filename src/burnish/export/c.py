"""A native artifact as C: library, header, weights, golden rows and a program that scores them. Nothing but libc is needed to use it.

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
from burnish.runtime.artifact import Artifact, digest


def export(path: Path, target: str | None, out: Path) -> dict[str, Any]:
    """Write libranker.so, ranker.cpp, ranker.h, weights.bin, golden/, example.c, README.md, export.json into `out`; the last's content."""
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
    text = _example(artifact, out)
    told = {
        "schema": 1,
        "format": "c",
        "target": isa,
        "cpu_flags": sorted(Host.target(isa).flags),
        "library_bytes": (out / "libranker.so").stat().st_size,
        "weight_bytes": (out / "weights.bin").stat().st_size,
        "total_bytes": sum((out / name).stat().st_size for name in ("libranker.so", "weights.bin")),
        "peak_memory_bytes": sum((out / name).stat().st_size for name in ("libranker.so", "weights.bin")) + program.arena_bytes,
        "arena_bytes": program.arena_bytes,
        "artifact_sha256": artifact.manifest.sha256,
        "files": {},
    }
    (out / "example.c").write_text(text)
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


def _example(artifact: Artifact, out: Path) -> str:
    """The text of a program that scores the golden rows, which it writes as files."""
    manifest = artifact.manifest
    golden_files(artifact, out)
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
that a device must have; a handle takes {told["arena_bytes"]:,} bytes more. With another compiler:

    {" ".join(command)}
"""
