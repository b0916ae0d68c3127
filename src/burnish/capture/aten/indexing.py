"""Rows for aten ops that read or write places: constant ones become TAKE, those of a row's own ids LOOKUP and GATHER."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from burnish.capture import composed as C
from burnish.capture import value as V
from burnish.capture.aten.call import Call, Operand, Ramp, Row
from burnish.capture.value import Mixes, Unsupported, Value
from burnish.graph.ops import Op


def index_of(call: Call, x: Value, indices: Sequence[Operand]) -> Value:
    if any(isinstance(i, Value) and i.dtype == "bool" for i in indices):
        indices = _from_masks(indices)
    if any(isinstance(i, Ramp) for i in indices):
        return _index_own_row(x, indices)
    used = [d for d, i in enumerate(indices) if i is not None]
    static = all(indices[d].is_constant and indices[d].rows is None for d in used)
    if static:
        return _index_static(x, indices, used)
    if x.rows is None and used == list(range(len(used))):
        return _index_table(x, [indices[d] for d in used])
    if len(used) == 1 and indices[used[0]].rows is None and not indices[used[0]].is_constant:
        raise Unsupported("an index that depends on the inputs in this form")
    raise Unsupported("an index across rows, or of several dimensions, that depends on the inputs")


def _from_masks(indices: Sequence[Operand]) -> list[Operand]:
    out: list[Operand] = []
    for i in indices:
        if isinstance(i, Value) and i.dtype == "bool":
            if not i.is_constant or i.rows is not None:
                raise Unsupported("data-dependent")
            out += [V.of(n.astype(np.int64), "mask indices") for n in np.nonzero(V.array_of(i))]
        else:
            out.append(i)
    return out


def _together(x: Value, used: Sequence[int]) -> tuple[Value, int]:
    """Indexed dimensions side by side where torch puts the result: at the first of them if adjacent, else in front."""
    if list(used) == list(range(used[0], used[0] + len(used))):
        return x, used[0]
    return V.permute(x, [*used, *(d for d in range(len(x.shape)) if d not in used)]), 0


def _flat_positions(sizes: Sequence[int], arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Row-major positions (broadcast shape) in an array of `sizes`."""
    position: np.ndarray = np.zeros((), np.int64)
    for size, array in zip(sizes, arrays):
        position = position * size + np.where(array < 0, array + size, array)
    return position


def _index_static(x: Value, indices: Sequence[Operand], used: Sequence[int]) -> Value:
    for d in used:
        x.axis(d, "indexing the rows")
    arrays = np.broadcast_arrays(*(V.array_of(indices[d]) for d in used))
    x, at = _together(x, used)
    sizes = x.shape[at : at + len(used)]
    positions = _flat_positions(sizes, arrays)
    flat = V.reshape(x, (*x.shape[:at], math.prod(sizes), *x.shape[at + len(used) :])) if len(used) > 1 else x
    if positions.size == 0:
        empty = V.nothing(flat, at)
        return V.reshape(empty, (*empty.shape[:at], *positions.shape, *empty.shape[at + 1 :]))
    out = V.take(flat, at, positions.ravel().tolist())
    return V.reshape(out, (*out.shape[:at], *positions.shape, *out.shape[at + 1 :]))


def _index_table(x: Value, indices: Sequence[Value]) -> Value:
    """A constant whose first dimensions are indexed by values of the rows: a lookup."""
    position = indices[0]
    for size, index in zip(x.shape[1:], indices[1:]):
        position = C.add(C.mul(position, size), index)
    rest = x.shape[len(indices) :]
    table = V.reshape(x, (math.prod(x.shape[: len(indices)]), math.prod(rest)))
    out = C.lookup(table, position)
    return V.reshape(out, (*out.shape[:-1], *rest))


def _index_own_row(x: Value, indices: Sequence[Operand]) -> Value:
    """x[arange(rows), i, ...]: each row indexes itself."""
    used = [d for d, i in enumerate(indices) if i is not None]
    ramps = [d for d in used if isinstance(indices[d], Ramp)]
    if x.rows != 0 or x.row_axes or ramps != [0] or used != list(range(len(used))) or (indices[0].start, indices[0].step) != (0, 1):
        raise Mixes("an index that lets rows read other rows")
    if len(used) == 1:
        return x if len(indices[0].shape) == 1 else V.reshape(x, (*indices[0].shape, *x.shape[1:]))
    rank = max(len(indices[d].shape) for d in used)
    where = rank - len(indices[0].shape) + next(d for d, n in enumerate(indices[0].shape) if n != 1)
    position: Value | None = None
    for d in used[1:]:
        index = indices[d]
        index = C.where(C.compare(Op.LT, index, 0), C.add(index, x.shape[d]), index)
        position = index if position is None else C.add(C.mul(position, x.shape[d]), index)
    assert position is not None
    if where != 0:
        raise Mixes("an index that lets rows read other rows")
    batch, sizes, rest = x.shape[0], x.shape[1 : len(used)], x.shape[len(used) :]
    if position.rows is None:  # the same places of every row
        if len(position.shape) == rank and position.shape[0] != 1:
            raise Mixes("an index that lets rows read other rows")
        position = V.expand(position, (batch, *position.shape[max(0, len(position.shape) - rank + 1) :]), batch)
    tail = position.shape[1:]
    flat = V.reshape(x, (batch, math.prod(sizes), math.prod(rest)))
    index = V.reshape(position, (batch, math.prod(tail), 1))
    index = V.expand(index, (-1, -1, flat.shape[2]), batch)
    return V.reshape(V.gather(flat, 1, index), (batch, *tail, *rest))


def _index_select(call: Call, x: Value, dim: int, index: Operand) -> Value:
    if isinstance(index, Ramp):
        return index_of(call, x, [None] * x.dim(dim) + [index])
    if x.rows is None and index.rows is not None and x.dim(dim) == 0:
        return _index_table(x, [index])
    if not index.is_constant or index.rows is not None:
        raise Mixes("an index that lets rows read other rows")
    return V.take(x, dim, V.array_of(index).ravel().tolist())


def index_put(call: Call, x: Value, indices: Sequence[Operand], values: Value, accumulate: bool = False) -> Value:
    masks = [i for i in indices if isinstance(i, Value) and i.dtype == "bool"]
    if len(masks) == 1 and len([i for i in indices if i is not None]) == 1 and math.prod(values.shape) == 1 and indices[0] is masks[0]:
        (mask,) = masks
        mask = V.reshape(mask, (*mask.shape, *(1,) * (len(x.shape) - len(mask.shape))))
        put = C.add(x, V.reshape(values, ())) if accumulate else V.cast(V.reshape(values, ()), x.dtype)
        return C.where(mask, put, x)
    if masks:
        indices = _from_masks(indices)
    used = [d for d, i in enumerate(indices) if i is not None]
    if any(isinstance(indices[d], Ramp) for d in used):
        if used != [0, 1] or not isinstance(indices[0], Ramp) or accumulate or len(indices[1].shape) != 1 or x.rows != 0:
            raise Unsupported("a write to places that depend on the inputs, in this form")
        hit = C.one_hot(indices[1], x.shape[1], "bool")
        tail = len(x.shape) - 2
        hit = V.reshape(hit, (*hit.shape, *(1,) * tail))
        values = V.unsqueeze(values, 1) if len(values.shape) > tail else values
        return C.where(hit, V.cast(values, x.dtype), x)
    if not all(indices[d].is_constant and indices[d].rows is None for d in used):
        raise Unsupported("a write to places that depend on the inputs")
    for d in used:
        x.axis(d, "writing to some of the rows")
    arrays = np.broadcast_arrays(*(V.array_of(indices[d]) for d in used))
    moved, at = _together(x, used)
    sizes = moved.shape[at : at + len(used)]
    positions = _flat_positions(sizes, arrays)
    whole = math.prod(sizes)
    flat = V.reshape(moved, (*moved.shape[:at], whole, *moved.shape[at + len(used) :]))
    want = (*moved.shape[:at], *positions.shape, *moved.shape[at + len(used) :])
    source = V.reshape(V.expand(V.cast(values, x.dtype), want, call.batch), (*flat.shape[:at], positions.size, *flat.shape[at + 1 :]))
    if accumulate:
        spread = np.zeros((whole, positions.size), x.dtype)
        np.add.at(spread, (positions.ravel(), np.arange(positions.size)), 1)
        last = len(flat.shape) - 1
        put = V.transpose(V.linear(V.transpose(source, at, last), V.of(spread, "spread")), at, last)
        out = C.add(flat, put)
    else:
        order = list(range(whole))
        for i, p in enumerate(positions.ravel().tolist()):
            order[p] = whole + i
        out = V.take(V.concat([flat, source], at), at, order)
    out = V.reshape(out, moved.shape)
    if moved is x:
        return out
    order = [*used, *(d for d in range(len(x.shape)) if d not in used)]
    return V.permute(out, [order.index(d) for d in range(len(x.shape))])


def _scatter(how: str) -> Row:
    def row(call: Call, x: Value, dim: int, index: Value, source: Operand, **kwargs: Operand) -> Value:
        if kwargs.get("reduce"):
            raise Unsupported("a scatter with a reduction")
        if isinstance(source, Value) and source.shape != index.shape:
            for d, n in enumerate(index.shape):
                source = V.slice_(source, d, 0, n) if source.shape[d] != n else source
        return C.scatter(x, dim, index, source, how)

    return row


def _index_add(call: Call, x: Value, dim: int, index: Value, source: Value, *, alpha: float = 1) -> Value:
    source = source if alpha == 1 else C.mul(source, alpha)
    return index_put(call, x, [None] * x.dim(dim) + [index], source, accumulate=True)


def _nonzero(call: Call, x: Value, *_: Operand) -> Value:
    if not x.is_constant or x.rows is not None:
        raise Unsupported("data-dependent")
    return V.of(np.argwhere(V.array_of(x)).astype(np.int64), "nonzero")


def _masked_select(call: Call, x: Value, mask: Value) -> Value:
    return index_of(call, x, [mask])


def _bucketize(call: Call, x: Value, bounds: Value, *, right: bool = False, **_: Operand) -> Value:
    beyond = V.pointwise(Op.GE if right else Op.GT, V.unsqueeze(x, -1), V.cast(bounds, x.dtype))
    return V.reduce(Op.SUM, V.cast(beyond, call.dtype), [-1], False, "bucketize")


def _searchsorted(call: Call, bounds: Value, x: Value, *, right: bool = False, **_: Operand) -> Value:
    wide = V.unsqueeze(bounds, -2) if len(bounds.shape) > 1 else bounds
    beyond = V.pointwise(Op.GE if right else Op.GT, V.unsqueeze(x, -1), V.cast(wide, x.dtype))
    return V.reduce(Op.SUM, V.cast(beyond, call.dtype), [-1], False, "searchsorted")


INDEXING: dict[str, Row] = {
    "index": index_of,
    "_unsafe_index": index_of,
    "index_select": _index_select,
    "gather": lambda call, x, dim, index, **_: V.gather(x, dim, index),
    "index_put": index_put,
    "_unsafe_index_put": index_put,
    "index_add": _index_add,
    "scatter": _scatter("set"),
    "scatter_add": _scatter("add"),
    "nonzero": _nonzero,
    "masked_select": _masked_select,
    "bucketize": _bucketize,
    "searchsorted": _searchsorted,
}  # fmt: skip
