"""A native artifact as WebAssembly: ranker.wasm, weights.bin, an ES module that loads them, and its types. For browsers, Node, wasmtime."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from burnish.backends.native import SOURCE
from burnish.errors import BuildError
from burnish.export.c import golden_files, native_program
from burnish.export.common import fresh
from burnish.native import toolchain
from burnish.runtime.artifact import Artifact, digest

ISA = "simd128"
PAGE = 64 << 10


def export(path: Path, target: str | None, out: Path) -> dict[str, Any]:
    """Write ranker.wasm, weights.bin, ranker.mjs, ranker.d.mts, golden/, README.md, export.json into `out`; the last's content."""
    if target not in (None, "wasm", ISA):
        raise BuildError(f"wasm is its own target, and met {target!r}. Leave --target out")
    artifact = Artifact.read(path)
    program = native_program(artifact, "WebAssembly")
    unknown = [spec for spec in artifact.manifest.inputs if spec.dtype not in ("float32", "float64", "int64", "int32", "bool")]
    if unknown:
        raise BuildError(
            f"JavaScript has no array for input {unknown[0].name!r} of {unknown[0].dtype}. Give the model float32 or int32 there"
        )
    module = toolchain.build((path / SOURCE).read_text(), ISA)
    fresh(out)
    shutil.copyfile(module, out / "ranker.wasm")
    shutil.copyfile(path / "weights.bin", out / "weights.bin")
    golden_files(artifact, out)
    manifest = artifact.manifest
    halves = [half for spec in manifest.inputs for half in spec.halves]
    facts: dict[str, Any] = {
        "weight_bytes": (out / "weights.bin").stat().st_size,
        "weight_sha256": digest(out / "weights.bin").sha256,
        "golden_rows": manifest.golden.rows,
        "input_names": _union(spec.name for spec in manifest.inputs),
        "request_names": _union(half.name for half in halves if half.side == "request"),
        "candidate_names": _union(half.name for half in halves if half.side == "candidate"),
        "output_names": _union(output.name for output in manifest.outputs),
    }
    files = resources.files("burnish.export").joinpath("wasm_files")
    for name in ("ranker.mjs", "ranker.d.mts"):
        (out / name).write_text(Template(files.joinpath(name).read_text()).substitute(facts))
    code = sum((out / name).stat().st_size for name in ("ranker.wasm", "ranker.mjs"))
    told = {
        "schema": 1,
        "format": "wasm",
        "target": ISA,
        "code_bytes": code,
        "weight_bytes": facts["weight_bytes"],
        "total_bytes": code + facts["weight_bytes"],
        "arena_bytes": program.arena_bytes,
        "peak_memory_bytes": _memory(facts["weight_bytes"], program.arena_bytes),
        "artifact_sha256": manifest.sha256,
        "files": {},
    }
    (out / "README.md").write_text(_readme(artifact, told))
    told["files"] = {str(f.relative_to(out)): digest(f).sha256 for f in sorted(out.rglob("*")) if f.is_file()}
    (out / "export.json").write_text(json.dumps(told, indent=1) + "\n")
    return told


def _memory(weight_bytes: int, arena_bytes: int) -> int:
    """Bytes of an open module before the arrays of calls: stack and constants, weights in whole pages, the arena as malloc rounds it up."""
    whole_arena: int = 1 << (arena_bytes + (16 << 10)).bit_length()
    return toolchain.STACK + 2 * PAGE + -(-weight_bytes // PAGE) * PAGE + whole_arena


def _union(names: Iterable[str]) -> str:
    """A TypeScript type of those strings."""
    return " | ".join(json.dumps(name) for name in names) or "never"


def _readme(artifact: Artifact, told: dict[str, Any]) -> str:
    halves = [half for spec in artifact.manifest.inputs for half in spec.halves]
    lines = [f"    {half.side:10} {json.dumps(half.name)}: {half.dtype}, {list(half.shape)} a row" for half in halves]
    return f"""# A ranker in WebAssembly

```js
import {{ load }} from "./ranker.mjs";
const ranker = await load();
const scores = ranker.score(request, candidates); // one request and its candidates: values by name, row by row
console.log(await ranker.verify()); // the golden rows, scored here
```

{chr(10).join(lines)}

`ranker.wasm` and `ranker.mjs` ({told["code_bytes"]:,} bytes) need WebAssembly's SIMD, which browsers have since 2021 (Safari: 2023), and no
system. `weights.bin` ({told["weight_bytes"]:,} bytes) is fetched in pieces by range requests, or as a stream where a server has none;
an open ranker takes {told["peak_memory_bytes"]:,} bytes and the arrays of its calls. Serve `.wasm` as `application/wasm` and `.mjs` as
`text/javascript`.
"""
