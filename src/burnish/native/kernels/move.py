"""Moves: the parts of a CONCAT that could not be written in place, strided SLICE, TAKE, GATHER, TRANSPOSE, EXPAND.

Each is one nest of loops from a list of (count, stride of the source, stride of the result); runs without gaps are copied whole.
"""

from __future__ import annotations

import math

from burnish.graph.node import Node
from burnish.graph.ops import Op
from burnish.native.code import Code, Ref
from burnish.native.plan import Step, ctype, size

TEMPLATE = r"""
template <int N, class T> INL void copy_run(const T *x, T *y) { memcpy(y, x, N * sizeof(T)); }
template <int OUTER, int N, int TAKEN, int INNER, class T> INL void take_row(const T *x, const int32_t *indices, T *y) {
  for (int o = 0; o < OUTER; o++, x += N * INNER)
    for (int i = 0; i < TAKEN; i++, y += INNER)
      for (int c = 0; c < INNER; c++) y[c] = x[indices[i] * INNER + c];
}
"""

MOST_RUNS = 64  # of a TAKE that is copied run by run
Axis = tuple[int, int, int]  # count, stride of the source, stride of the result


def emit(code: Code, step: Step) -> None:
    node = step.head
    assert node is not None
    x = node.inputs[0]
    match node.op:
        case Op.CONCAT:
            _concat(code, node)
        case Op.SLICE:
            _copy(code, code.read(x), code.write(node), _sliced(node, x), node["start"] * math.prod(x.shape[node["axis"] + 1 :]))
        case Op.TRANSPOSE:
            strides = _strides(x.shape)
            axes = [(n, strides[node["perm"][i]], s) for i, (n, s) in enumerate(zip(node.shape, _strides(node.shape)))]
            _copy(code, code.read(x), code.write(node), axes)
        case Op.EXPAND:
            full = (1,) * (len(node.shape) - len(x.shape)) + x.shape
            axes = [(n, 0 if f == 1 else s, t) for n, f, s, t in zip(node.shape, full, _strides(full), _strides(node.shape))]
            _copy(code, code.read(x), code.write(node), axes)
        case Op.RESHAPE:
            _copy(code, code.read(x), code.write(node), [(size(node), 1, 1)])
        case Op.TAKE:
            axis = node["axis"]
            outer, inner = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
            runs = runs_of(node["indices"])
            if outer == 1 and len(runs) <= MOST_RUNS and len(node["indices"]) >= 4 * len(runs):
                a, b = code.read(x), code.write(node)
                with code.block("for (i64 m = 0; m < M; m++)"):
                    at = 0
                    for start, count in runs:
                        code.add(f"copy_run<{count * inner}>({a.row()} + {start * inner}, {b.row()} + {at * inner});")
                        at += count
                return
            k = code.pointer("int32_t", "indices", numbers=node["indices"])
            a, b = code.read(x), code.write(node)
            code.add(
                f"for (i64 m = 0; m < M; m++) take_row<{outer}, {x.shape[axis]}, {node.shape[axis]}, {inner}>({a.row()}, {k}, {b.row()});"
            )
        case Op.GATHER:
            _gather(code, node)


def runs_of(indices: tuple[int, ...]) -> list[tuple[int, int]]:
    """(first, number) of each run of indices that follow each other."""
    runs: list[tuple[int, int]] = []
    for i in indices:
        if runs and runs[-1][0] + runs[-1][1] == i:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((i, 1))
    return runs


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def _sliced(node: Node, x: Node) -> list[Axis]:
    return list(zip(node.shape, _strides(x.shape), _strides(node.shape)))


def _copy(code: Code, a: Ref, b: Ref, axes: list[Axis], skip: int = 0, at: int = 0) -> None:
    """A nest of loops over the rows and `axes`, adjacent ones merged."""
    merged: list[Axis] = []
    for count, s, t in axes:
        if count == 1:
            continue
        if merged and merged[-1][1] == s * count and merged[-1][2] == t * count:
            merged[-1] = (merged[-1][0] * count, s, t)
        else:
            merged.append((count, s, t))
    run = merged.pop()[0] if merged and merged[-1][1:] == (1, 1) else 1
    with code.block("for (i64 m = 0; m < M; m++)"):
        depth, x, y = code.depth, f"{a.row()} + {skip}", f"{b.row()} + {at}"
        for i, (count, s, t) in enumerate(merged):
            code.add(f"for (i64 i{i} = 0; i{i} < {count}; i{i}++) {{")
            code.depth += 1
            x, y = x + f" + i{i} * {s}", y + f" + i{i} * {t}"
        code.add(f"copy_run<{run}>({x}, {y});")
        while code.depth > depth:
            code.depth -= 1
            code.add("}")


def _concat(code: Code, node: Node) -> None:
    """Copies of the parts that do not lie in their place already."""
    home = code.plan.places[node]
    axis = node["axis"]
    inner, at = math.prod(node.shape[axis + 1 :]), 0
    whole = node.shape[axis] * inner
    for part in node.inputs:
        n = part.shape[axis] * inner
        place = code.plan.places.get(part)
        there = place is not None and math.prod(node.shape[:axis]) == 1 and (place.buffer, place.at) == (home.buffer, home.at + at)
        if not there:
            ref = code.read(part)
            axes = [(math.prod(node.shape[:axis]), n, whole), (n, 1, 1)]
            if ctype(part) == ctype(node):
                _copy(code, ref, code.write(node), axes, at=at)
            else:
                out = code.write(node).row()
                with code.block(f"for (i64 m = 0; m < M; m++) for (i64 o = 0; o < {axes[0][0]}; o++) for (i64 i = 0; i < {n}; i++)"):
                    code.add(f"({out})[o * {whole} + {at} + i] = ({ctype(node)})({ref.row()})[o * {n} + i];")
        at += n


def _gather(code: Code, node: Node) -> None:
    x, indices = node.inputs
    axis = node["axis"]
    a, k, b = code.read(x), code.read(indices), code.write(node)
    xs, ns = _strides(x.shape), _strides(node.shape)
    number = code.packed("indices", numbers=())
    with code.block("for (i64 m = 0; m < M; m++)"):
        depth, at, src = code.depth, "0", "0"
        for i, n in enumerate(node.shape):
            code.add(f"for (i64 i{i} = 0; i{i} < {n}; i{i}++) {{")
            code.depth += 1
            at += f" + i{i} * {ns[i]}"
            src += "" if i == axis else f" + i{i} * {xs[i]}"
        code.add(f"const i64 id = checked(r, ({k.row()})[{at}], {x.shape[axis]}, {number}, m);")
        code.add(f"({b.row()})[{at}] = ({a.row()})[{src} + id * {xs[axis]}];")
        while code.depth > depth:
            code.depth -= 1
            code.add("}")
