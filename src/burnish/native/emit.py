"""Plan -> C++: one function a step, one a side, and the C face of abi/ranker.h. Weights are not in the text."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib import resources

from burnish.graph.node import Graph
from burnish.native import machine, pack
from burnish.native.code import Code, Entry
from burnish.native.kernels import lookup, table
from burnish.native.plan import ALIGN, CTYPES, SIZES, SLACK, Plan, Step, size


@dataclass(frozen=True)
class Source:
    """A program's text, the part of it that is this model's alone, and the arrays it expects in the packed file, in order."""

    text: str
    model: str
    entries: tuple[Entry, ...]
    arena_bytes: int


HEAD = r"""
struct ranker {
  struct Half {
    const void *rows;
    i64 stride;
    const int32_t *columns;
  };
  char *arena;
  const char *w[ARRAYS ? ARRAYS : 1];
  i64 rows[ARRAYS ? ARRAYS : 1];
  Half half[HALVES ? HALVES : 1];
  i64 first_row, strip; // of the caller, and of the block
  union {
    ranker_fault_t fault;
    struct {
      int32_t bad, bad_table;
      i64 bad_row, bad_id;
    };
  };
  char *map;
  size_t mapped;
  void *memory;
};
"""

PUBLIC = """
#define PUBLIC extern "C" __attribute__((visibility("default")))
"""

FACE = r"""
PUBLIC int ranker_abi(void) { return RANKER_ABI; }
PUBLIC const char *ranker_describe(void) { return DESCRIPTION; }
PUBLIC size_t ranker_arena_bytes(void) { return ARENA; }
PUBLIC const ranker_fault_t *ranker_fault(const ranker *r) { return &r->fault; }
static __attribute__((noinline)) ranker *over(const char *map, size_t bytes, int &code) {
  code = RANKER_NOT_ITS_WEIGHTS;
  if (bytes < 40 + 16 * ARRAYS || (uintptr_t)map % 64 != 0) return nullptr;
  uint32_t version, count;
  memcpy(&version, map + 8, 4);
  memcpy(&count, map + 12, 4);
  uint64_t whole;
  memcpy(&whole, map + 32, 8);
  bool fits = memcmp(map, "BURNISHW", 8) == 0 && version == PACK_VERSION && count == ARRAYS && memcmp(map + 16, SIGNATURE, 16) == 0 &&
              whole == bytes;
  uint64_t next = (40 + 16 * ARRAYS + 63) / 64 * 64; // arrays lie one behind another, as pack.py writes them
  for (uint32_t i = 0; fits && i < ARRAYS; i++) {
    uint64_t at, rows;
    memcpy(&at, map + 40 + 16 * i, 8);
    memcpy(&rows, map + 48 + 16 * i, 8);
    fits = at == next && rows <= bytes / ROW_BYTES[i];
    if (fits) next = (at + rows * ROW_BYTES[i] + PACK_SLACK + 63) / 64 * 64;
  }
  if (!fits || next != bytes) return nullptr;
  code = RANKER_NO_MEMORY;
  void *memory = calloc(1, sizeof(ranker) + ARENA + 2 * 4096);
  if (!memory) return nullptr;
  ranker *r = (ranker *)(((uintptr_t)memory + 63) / 64 * 64);
  r->memory = memory;
  r->arena = (char *)(((uintptr_t)(r + 1) + 4095) / 4096 * 4096);
  for (uint32_t i = 0; i < ARRAYS; i++) {
    uint64_t at;
    memcpy(&at, map + 40 + 16 * i, 8);
    memcpy(&r->rows[i], map + 48 + 16 * i, 8);
    r->w[i] = map + at;
  }
  code = RANKER_OK;
  return r;
}
#ifndef __wasm__
static __attribute__((noinline)) ranker *opened(const char *path, int &code) {
  code = RANKER_CANNOT_OPEN;
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return nullptr;
  struct stat facts;
  const size_t bytes = fstat(file, &facts) == 0 && facts.st_size > 0 ? (size_t)facts.st_size : 1;
  char *map = (char *)mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (map == (char *)MAP_FAILED) return nullptr;
  ranker *r = over(map, bytes, code);
  if (r) {
    r->map = map;
    r->mapped = bytes;
  } else {
    munmap(map, bytes);
  }
  return r;
}
PUBLIC PLAIN ranker *ranker_open(const char *path, int *error) {
  int unheard, &code = error ? *error : unheard;
  code = RANKER_LACKS_INSTRUCTIONS;
  return ranker_lacks() ? nullptr : opened(path, code);
}
#endif
PUBLIC PLAIN ranker *ranker_open_memory(const void *weights, size_t bytes, int *error) {
  int unheard, &code = error ? *error : unheard;
  code = RANKER_LACKS_INSTRUCTIONS;
  return ranker_lacks() ? nullptr : over((const char *)weights, bytes, code);
}
PUBLIC void ranker_close(ranker *r) {
  if (!r) return;
#ifndef __wasm__
  if (r->map) munmap(r->map, r->mapped);
#endif
  free(r->memory);
}
// Table rows come from memory while the rows before them are computed
static void ask(const ranker &r, i64 from, i64 count, i64 q) {
  if (q) prefetch_request(r, from, count);
  prefetch_candidate(r, from, count);
}
PUBLIC int ranker_rows(ranker *handle, i64 n, const void *const *inputs, void *const *outputs) {
  ranker &r = *handle;
  r.bad = 0;
  for (i64 at = 0; at < n; at += BLOCK) {
    const i64 M = n - at < BLOCK ? n - at : BLOCK;
    r.first_row = at;
    rows_from(r, inputs, at);
    if (at == 0) ask(r, 0, M, 1);
    ask(r, M, n - at - M < BLOCK ? n - at - M : BLOCK, 1);
    request_side(r, M, 1);
    candidate_side(r, M, 1);
    write_outputs(r, M, 1, at, outputs);
    if (r.bad) return r.bad;
  }
  return RANKER_OK;
}
PUBLIC int ranker_requests(ranker *handle, i64 requests, const i64 *offsets, const void *const *inputs, void *const *outputs) {
  ranker &r = *handle;
  r.bad = 0;
  for (i64 i = 0; i < requests; i++) {
    r.first_row = i;
    request_from(r, inputs, i);
    request_side(r, 1, 0);
    for (i64 at = offsets[i]; at < offsets[i + 1]; at += BLOCK) {
      const i64 M = offsets[i + 1] - at < BLOCK ? offsets[i + 1] - at : BLOCK;
      r.first_row = at;
      candidates_from(r, inputs, at);
      const i64 left = offsets[i + 1] - at - M;
      if (at == offsets[i]) ask(r, 0, M, 0);
      ask(r, M, left < BLOCK ? left : BLOCK, 0);
      candidate_side(r, M, 0);
      write_outputs(r, M, 0, at, outputs);
    }
    if (r.bad) return r.bad;
  }
  return RANKER_OK;
}
"""


def emit(plan: Plan) -> Source:
    """The program of a plan."""
    code = Code(plan)
    for number, step in enumerate(plan.steps):
        _step(code, number, step)
    sides = []
    for side in ("request", "candidate"):
        sides.append(f"static void {side}_side(ranker &r, i64 M, i64 q) {{\n{_calls(plan, side)}}}\n")
        _prefetch(code, side)
    _feeds(code)
    outputs = _outputs(code)
    entries = tuple(code.entries)
    halves = [h for spec in plan.graph.inputs for h in spec.halves]
    arena = -(-(plan.arena_bytes + code.scratch_bytes + SLACK) // ALIGN) * ALIGN
    signature = ", ".join(str(b if b < 128 else b - 256) for b in pack.signature(entries))
    told = json.dumps(describe(plan.graph, plan)).removesuffix("}")
    constants = [
        f"#define ARRAYS {len(entries)}",
        f"#define HALVES {len(halves)}",
        f"#define BLOCK {plan.rows}",
        f"#define SCRATCH {plan.arena_bytes}",
        f"#define ARENA {arena}",
        f"#define PACK_VERSION {pack.VERSION}",
        f"#define PACK_SLACK {SLACK}",
        f"static const uint64_t ROW_BYTES[] = {{{', '.join(str(pack.row_bytes(entry)) for entry in entries) or '1'}}};",
        f"static const signed char SIGNATURE[16] = {{{signature}}};",
        machine.macros(),
        f'static const char DESCRIPTION[] = {json.dumps(told)} ", \\"isa\\": \\"" ISA "\\", \\"flags\\": [" FLAGS "]}}";',
    ]
    model = "\n".join([*code.lines, "".join(sides) + outputs])
    text = "\n".join(
        [
            "// Written by burnish; abi/ranker.h says how it is called.",
            resources.files("burnish.native.abi").joinpath("ranker.h").read_text(),
            "#include <stdlib.h>",
            "#ifndef __wasm__\n#include <fcntl.h>\n#include <sys/mman.h>\n#include <sys/stat.h>\n#include <unistd.h>\n#endif",
            *constants,
            table.TEMPLATES[0] + HEAD + "".join(table.TEMPLATES[1:]),
            model + PUBLIC + machine.LACKS + FACE,
        ]
    )
    return Source(text, model, entries, arena)


def _calls(plan: Plan, side: str) -> str:
    """The steps of a side in order, those of a strip in a loop over its rows."""
    text = ""
    for i, step in enumerate(plan.steps):
        if step.side != side:
            continue
        strip = plan.strip_of(i)
        if strip is None:
            text += f"  step_{i}(r, M, q);\n"
            continue
        if i == strip.first:
            text += f"  for (r.strip = 0; r.strip < M; r.strip += {strip.rows}) {{\n"
            text += f"    const i64 part = M - r.strip < {strip.rows} ? M - r.strip : {strip.rows};\n"
        text += f"    step_{i}(r, part, q);\n"
        if i == strip.last:
            text += "  }\n  r.strip = 0;\n"
    return text


def describe(graph: Graph, plan: Plan) -> dict[str, object]:
    """What ranker_describe says besides the instruction set: inputs, halves in the order of ranker_requests, outputs, rows of a block."""
    return {
        "abi": 1,
        "inputs": [{"name": s.name, "dtype": s.dtype, "shape": s.shape} for s in graph.inputs],
        "halves": [{"name": h.name, "side": h.side, "dtype": h.dtype, "shape": h.shape} for s in graph.inputs for h in s.halves],
        "outputs": [{"name": name, "dtype": node.dtype, "shape": node.shape} for name, node in graph.outputs],
        "rows": plan.rows,
    }


def _step(code: Code, number: int, step: Step) -> None:
    code.step, code.strip, code.refs, code.known, code.count = step, code.plan.strip_of(number), {}, {}, 0
    told = " -> ".join(node.op.name.lower() for node in step.nodes)
    code.lines.append(f"static void step_{number}(ranker &r, i64 M, i64 q) {{  // {told}")
    table.emit(code, step)
    code.lines.append("}")


def _prefetch(code: Code, side: str) -> None:
    """A function that asks for the table rows that a side's lookups will read for some of the caller's rows."""
    code.refs, code.known, code.count = {}, {}, 0
    code.lines.append(f"static void prefetch_{side}(const ranker &r, i64 from, i64 count) {{")
    for step in code.plan.steps:
        if step.side == side:
            code.step = step
            lookup.emit_prefetch(code, step)
    code.lines.append("}")


def _feeds(code: Code) -> None:
    """Functions that point the halves of inputs at the rows a block begins with."""
    rows: list[str] = []
    request: list[str] = []
    candidates: list[str] = []
    number = 0
    for i, spec in enumerate(code.plan.graph.inputs):
        item = SIZES[CTYPES[spec.dtype]]
        whole = item * math.prod(spec.shape)
        for half in spec.halves:
            columns = "nullptr"
            if half.columns is not None:
                columns = f"(const int32_t *)r.w[{code.packed('indices', numbers=half.columns)}]"
            rows.append(f"  r.half[{number}] = {{(const char *)inputs[{i}] + at * {whole}, {whole // item}, {columns}}};")
            n = math.prod(half.shape)
            line = f"  r.half[{number}] = {{(const char *)inputs[{number}] + at * {n * item}, {n}, nullptr}};"
            (request if half.side == "request" else candidates).append(line)
            number += 1
    for name, lines in (("rows", rows), ("request", request), ("candidates", candidates)):
        code.lines.append(f"static void {name}_from(ranker &r, const void *const *inputs, i64 at) {{")
        code.lines += [*lines, "}"]


def _outputs(code: Code) -> str:
    lines = ["static void write_outputs(ranker &r, i64 M, i64 q, i64 at, void *const *outputs) {"]
    for i, (_, node) in enumerate(code.plan.graph.outputs):
        kind, n = CTYPES[node.dtype], size(node)
        if node.side == "constant":
            source, stride = f"(const {kind} *)r.w[{code.packed('plain', node)}]", "0"
        else:
            place = code.plan.places[node]
            buffer = code.plan.buffers[place.buffer]
            source = f"(const {kind} *)(r.arena + {buffer.offset + place.at * SIZES[buffer.ctype]})"
            stride = f"{buffer.stride}" if node.side == "candidate" else f"q * {buffer.stride}"
        lines.append(f"  {kind} *y{i} = ({kind} *)outputs[{i}] + at * {n};")
        lines.append(f"  for (i64 m = 0; m < M; m++) memcpy(y{i} + m * {n}, {source} + m * ({stride}), {n} * sizeof({kind}));")
    return "\n".join([*lines, "}", ""])
