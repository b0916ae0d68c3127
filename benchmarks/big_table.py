"""A table far larger than any cache: are its DRAM misses hidden behind the arithmetic?

    python benchmarks/big_table.py                  a table of 2 GiB, into docs/big_table.md
    python benchmarks/big_table.py --short          256 MiB, printed

A DLRM-like int8 ranker looks 26 rows of 64 bytes up in one int8 table for each candidate, by ids that are drawn anew for every call. It is
compiled twice, as it is and with the prefetching taken out, and called in turns: with ids from the whole table, and with ids from 1,024
rows, which the caches hold. What is left of the difference is what the misses cost.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from burnish.backends.native import Native, NativeEngine
from burnish.graph.node import Graph, Node, input_node, weight
from burnish.graph.ops import Op
from burnish.host import Host
from burnish.inputs import Input
from burnish.native import emit, plan, toolchain
from burnish.quantize.affine import quantize_rows
from burnish.testing.builders import Weights, concat, linear, reshape
from pages import footer

WIDTH, FIELDS, DENSE = 64, 26, 13
SIZES = (1, 16, 128)
CALLS = 400  # different ones of each size
ASK = "static void ask(const ranker &r, i64 from, i64 count, i64 q) {\n"


def ranker(table_bytes: int, folder: Path) -> Graph:
    """The graph; its table is a file of random bytes under `folder`."""
    rows = table_bytes // WIDTH
    random = np.random.default_rng(0)
    table = np.memmap(folder / "table", np.int8, "w+", shape=(rows, WIDTH))
    step = (64 << 20) // WIDTH
    for at in range(0, rows, step):
        table[at : at + step] = random.integers(-127, 128, (min(step, rows - at), WIDTH), np.int8)
    table.flush()
    scales = np.full((rows, 1), 0.01, np.float32)
    ids = Input("ids", "int64", (FIELDS,), "candidate", rows)
    dense = Input("dense", "float32", (DENSE,), "candidate")
    rows_of = Node(Op.DEQUANTIZE, (weight("table", table), weight("scales", scales)))
    x = concat([input_node(dense), reshape(Node(Op.LOOKUP, (rows_of, input_node(ids))), FIELDS * WIDTH)])
    for n in (512, 256):
        x = Node(Op.RELU, (_int8(x, n, n),))
    return Graph((dense, ids), {"score": Node(Op.SIGMOID, (reshape(linear(x, 1, Weights(1))),))})


def _int8(x: Node, n: int, seed: int) -> Node:
    """An int8 linear with random weights, as quantization leaves it."""
    random = np.random.default_rng(seed)
    q, scale = quantize_rows(random.standard_normal((n, x.shape[-1])).astype(np.float32))
    held = Node(Op.QUANTIZE, (x, weight("m", np.float32(40.0))), zero_point=128)
    parts = (held, weight("w", q), weight("s", (scale / 40).astype(np.float32)), weight("b", np.zeros(n, np.float32)))
    return Node(Op.QLINEAR, parts, zero_point=128)


def engines(graph: Graph, out: Path) -> dict[str, NativeEngine]:
    """The ranker as it is, and without prefetching; both over one weights.bin."""
    native = Native()
    program = native.build(graph, Host.here(), out)
    found = {"prefetched": native.open(out, program, graph.inputs, 1)}
    text = emit.emit(plan.make(graph, Host.here())).text
    assert ASK in text
    library = toolchain.build(text.replace(ASK, ASK + "  if (r.first_row >= 0) return;\n"), Host.here().isa)
    shutil.copyfile(library, out / "program" / "native" / "plain.so")
    plain = type(program)(**{**{f: getattr(program, f) for f in program.__struct_fields__}, "files": ("program/native/plain.so",)})
    return found | {"not prefetched": native.open(out, plain, graph.inputs, 1)}


def measure(table_bytes: int, rounds: int) -> list[str]:
    """The rows of the page's table: microseconds a call, medians over calls and rounds, contenders in turns."""
    lines = []
    with tempfile.TemporaryDirectory(prefix="burnish-big-") as folder:
        graph = ranker(table_bytes, Path(folder))
        rows = table_bytes // WIDTH
        native = engines(graph, Path(folder) / "artifact")
        os.unlink(Path(folder) / "table")
        np.fromfile(Path(folder) / "artifact" / "weights.bin", np.int8)  # all of it is in memory
        random = np.random.default_rng(1)
        for n in SIZES:
            ways = {"whole": rows, "near": 1024}
            dense = random.standard_normal((n, DENSE)).astype(np.float32)
            given = {
                way: [{"dense": dense, "ids": random.integers(0, most, (n, FIELDS))} for _ in range(CALLS)] for way, most in ways.items()
            }
            times: dict[tuple[str, str], list[float]] = {(name, way): [] for name in native for way in ways}
            for _ in range(rounds):
                for way in ways:
                    for name, engine in native.items():
                        each = []
                        for table in given[way]:
                            begin = time.perf_counter()
                            engine.rows(table, n)
                            each.append(time.perf_counter() - begin)
                        times[name, way].append(1e6 * float(np.median(each)))
            found = {key: float(np.median(us)) for key, us in times.items()}
            far, plain = found["prefetched", "whole"], found["not prefetched", "whole"]
            near = min(found["prefetched", "near"], found["not prefetched", "near"])
            hidden = 1 - (far - near) / (plain - near)
            lines.append(f"| {n} | {near:.1f} | {plain:.1f} | {far:.1f} | {plain / far:.2f} | {far / near:.2f} | {hidden:.0%} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a table of 256 MiB, and no page")
    parser.add_argument("--out", type=Path, default=Path("docs/big_table.md"))
    options = parser.parse_args()
    table_bytes = (256 << 20) if options.short else (2 << 30)
    lines = measure(table_bytes, 5 if options.short else 15)
    title, *why = (__doc__ or "").split("\n\n")
    page = f"""# A table of {table_bytes / 2**30:g} GiB

{title}

{why[-1].strip()}

| candidates | ids of 1,024 rows, µs | whole table, no prefetch | whole table | prefetch gains | against near ids | share of misses hidden |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}

One core, one process, from Python; medians. The rows of one candidate, and without prefetch those of a block, come side by side too:
the processor runs ahead of a lookup. What neither hides is probably the walk to each row's page (4 KiB pages, of a shared file).

{footer("python benchmarks/big_table.py" + (" --short" if options.short else ""))}
"""
    if options.short:
        print(page)
    else:
        options.out.write_text(page)
        print(options.out)


if __name__ == "__main__":
    main()
