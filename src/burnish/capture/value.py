"""A traced tensor as one row of it and a layout: how capture turns whole-batch tensors into row values without symbolic shapes.

The tracer runs at a batch that is a prime, so exactly one dimension of a row-carrying tensor is a multiple of it: dimension `rows`, which
is `outer * batch * inner` entries in row-major order. A `view(-1, d)` makes inner > 1, a `cat(dim=0)` or the merged heads of a
`transpose(0, 1)` make outer > 1, and everything stays exact. The node has one axis for each other dimension, and at the place of `rows` an
axis for `outer` and one for `inner` where they are greater than 1:

    (batch * 26, 16), rows = 0, inner = 26   ->   node shape (26, 16)
    (20, batch, 8),   rows = 1               ->   node shape (20, 8)

A constant may carry rows too (`zeros(batch, 5)`): all its rows are equal, and the node is the constant (5,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from burnish.errors import CaptureError
from burnish.graph.interpret import constant
from burnish.graph.node import Graph, Node, scalar, weight
from burnish.graph.ops import Op, broadcast

Shape = tuple[int, ...]


class Mixes(Exception):
    """What was met reads across the rows of a batch; the text is the subject of the sentence, without place."""


class Unsupported(Exception):
    """What was met has no translation; the text says what it is."""


class Ambiguous(Exception):
    """A number of the program is a multiple of the batch: either it is the number of rows, or it happens to be. Trace at another prime."""


AS_IT_CAME = 'or serve the model as it came: backend="eager".'  # how every refusal ends
PRIMES = (10007, 11003, 12007, 13001, 14009, 15013, 16001, 17011)


class AtThisBatch(CaptureError):
    """A refusal that may be owed to the batch of the trace: a size of the model could be a multiple of it. Another prime decides."""


class NumberOfRows(AtThisBatch):
    """A number of the program is a multiple of the batch of the trace."""


def first_that_works(primes: Sequence[int], capture_at: Callable[[int], Graph]) -> Graph:
    """`capture_at` of the first prime; of another where the refusal may be owed to the prime. The first refusal is raised in the end."""
    failed: CaptureError | None = None
    for prime in primes[:3]:
        try:
            return capture_at(prime)
        except AtThisBatch as error:
            if failed is not None and not isinstance(error, NumberOfRows):
                break
            failed = failed or error
    assert failed is not None
    raise failed


@dataclass(frozen=True)
class Value:
    """`node` is one row, `shape` the traced tensor's own, `rows` the dimension that holds `outer * batch * inner` (None: no rows)."""

    node: Node
    shape: Shape
    rows: int | None = None
    outer: int = 1
    inner: int = 1

    @property
    def dtype(self) -> str:
        return self.node.dtype

    @property
    def is_constant(self) -> bool:
        return self.node.side == "constant"

    @property
    def batch(self) -> int | None:
        return None if self.rows is None else self.shape[self.rows] // (self.outer * self.inner)

    @property
    def row_axes(self) -> Shape:
        """The node's axes at the place of the rows: outer and inner where greater than 1."""
        return tuple(n for n in (self.outer, self.inner) if n > 1)

    def dim(self, dim: int) -> int:
        return dim + len(self.shape) if dim < 0 else dim

    def axis(self, dim: int, what: str) -> int:
        """The node's axis for dimension `dim`; Mixes with `what` as its subject when that holds the rows."""
        dim = self.dim(dim)
        if dim == self.rows:
            raise Mixes(what)
        return dim if self.rows is None or dim < self.rows else dim - 1 + len(self.row_axes)

    def with_node(self, node: Node) -> Value:
        """The same layout over another node of the same shape."""
        assert node.shape == self.node.shape, (node, self)
        return replace(self, node=node)

    def with_dim(self, dim: int, node: Node, size: int) -> Value:
        """The same layout, dimension `dim` (not the rows) now of `size`."""
        shape = list(self.shape)
        shape[self.dim(dim)] = size
        return replace(self, node=node, shape=tuple(shape))


def of(array: np.ndarray, name: str = "constant") -> Value:
    """A constant without rows."""
    return Value(weight(name, array), tuple(array.shape))


def number(value: float | int | bool, dtype: str) -> Value:
    return Value(scalar(value, dtype), ())


def array_of(value: Value) -> np.ndarray:
    """The array of a constant that carries no rows; Unsupported for anything else."""
    if not value.is_constant or value.rows is not None:
        raise Unsupported("an operand that must be a constant and depends on the inputs")
    return constant(value.node)


def behind(shape: Shape, rows: int | None, outer: int, inner: int) -> Shape:
    """The node's shape for a layout."""
    if rows is None:
        return shape
    return (*shape[:rows], *(n for n in (outer, inner) if n > 1), *shape[rows + 1 :])


def _reshaped(node: Node, shape: Shape) -> Node:
    while node.op is Op.RESHAPE:
        node = node.inputs[0]
    return node if node.shape == shape else Node(Op.RESHAPE, (node,), shape=shape)


def _expanded(node: Node, shape: Shape) -> Node:
    return node if node.shape == shape else Node(Op.EXPAND, (node,), shape=shape)


def cast(value: Value, dtype: str) -> Value:
    return value if value.dtype == dtype else replace(value, node=Node(Op.CAST, (value.node,), dtype=dtype))


# moves ---------------------------------------------------------------------------------------------------------------------------------


def reshape(value: Value, shape: Sequence[int]) -> Value:
    """The same entries in row-major order; one size may be -1. Mixes when the rows would be cut."""
    shape = list(shape)
    if -1 in shape:
        at, known = shape.index(-1), -math.prod(shape)
        shape[at] = math.prod(value.shape) // known if known else 0
    new = tuple(shape)
    if new == value.shape:
        return value
    if value.rows is None:
        return Value(_reshaped(value.node, new), new)
    batch = value.batch or 1
    before = math.prod(value.shape[: value.rows]) * value.outer
    after = math.prod(value.shape[value.rows + 1 :]) * value.inner
    for at, size in enumerate(new):
        lead, tail = math.prod(new[:at]), math.prod(new[at + 1 :])
        if size % batch == 0 and before % lead == 0 and after % tail == 0:
            outer, inner = before // lead, after // tail
            if outer * batch * inner == size:
                return Value(_reshaped(value.node, behind(new, at, outer, inner)), new, at, outer, inner)
    raise Mixes(f"a view of shape {told(value)} as {_told_shape(new, batch)}")


def told(value: Value) -> str:
    """The traced shape in words: (rows, 5), (rows*26, 16)."""
    return _told_shape(value.shape, value.batch or 0)


def _told_shape(shape: Shape, batch: int) -> str:
    def size(n: int) -> str:
        if not batch or n == 0 or n % batch:
            return str(n)
        return "rows" if n == batch else f"rows*{n // batch}"

    return "(" + ", ".join(map(size, shape)) + ")"


def permute(value: Value, dims: Sequence[int]) -> Value:
    dims = [value.dim(d) for d in dims]
    if value.rows is None:
        new = tuple(value.shape[d] for d in dims)
        return Value(_transposed(value.node, tuple(dims)), new)
    axes: list[int] = []
    for d in dims:
        if d == value.rows:
            axes += range(value.rows, value.rows + len(value.row_axes))
        else:
            axes.append(value.axis(d, ""))
    return replace(value, node=_transposed(value.node, tuple(axes)), shape=tuple(value.shape[d] for d in dims), rows=dims.index(value.rows))


def _transposed(node: Node, perm: tuple[int, ...]) -> Node:
    return node if perm == tuple(range(len(perm))) else Node(Op.TRANSPOSE, (node,), perm=perm)


def transpose(value: Value, a: int, b: int) -> Value:
    dims = list(range(len(value.shape)))
    a, b = value.dim(a), value.dim(b)
    if dims:
        dims[a], dims[b] = dims[b], dims[a]
    return permute(value, dims)


def unsqueeze(value: Value, dim: int) -> Value:
    dim = dim + len(value.shape) + 1 if dim < 0 else dim
    return reshape_ones(value, (*value.shape[:dim], 1, *value.shape[dim:]), [d if d < dim else d + 1 for d in range(len(value.shape))])


def squeeze(value: Value, dims: Iterable[int] | None = None) -> Value:
    """Drop the dimensions of size 1 among `dims` (None: among all)."""
    chosen = {value.dim(d) for d in (range(len(value.shape)) if dims is None else dims)}
    kept = [d for d in range(len(value.shape)) if d not in chosen or value.shape[d] != 1 or d == value.rows]
    place = {d: i for i, d in enumerate(kept)}
    return reshape_ones(value, tuple(value.shape[d] for d in kept), [place.get(d, 0) for d in range(len(value.shape))])


def reshape_ones(value: Value, shape: Shape, moved: Sequence[int]) -> Value:
    """A reshape that only adds or drops ones: dimension d of `value` becomes `moved[d]`, so the layout needs no search."""
    rows = None if value.rows is None else moved[value.rows]
    return Value(_reshaped(value.node, behind(shape, rows, value.outer, value.inner)), shape, rows, value.outer, value.inner)


def expand(value: Value, shape: Sequence[int], batch: int) -> Value:
    """torch.expand: sizes of -1 keep; a size that is a multiple of the batch where `value` has 1 makes the result carry rows."""
    lead = len(shape) - len(value.shape)
    sizes = tuple(value.shape[i - lead] if n == -1 else n for i, n in enumerate(shape))
    value = reshape_ones(value, (1,) * lead + value.shape, [d + lead for d in range(len(value.shape))])
    grown = [d for d, n in enumerate(sizes) if n != value.shape[d] and n and n % batch == 0]
    if len(grown) + (value.rows is not None) > 1:
        raise Mixes(f"an expansion to {_told_shape(sizes, batch)}, which pairs rows with rows,")
    if not grown:
        return replace(value, node=_expanded(value.node, behind(sizes, value.rows, value.outer, value.inner)), shape=sizes)
    (rows,) = grown
    inner = sizes[rows] // batch
    one = behind((*value.shape[:rows], 1, *value.shape[rows + 1 :]), rows, 1, 1)
    node = _reshaped(value.node, (*one[:rows], *((1,) if inner > 1 else ()), *one[rows:]))
    return Value(_expanded(node, behind(sizes, rows, 1, inner)), sizes, rows, 1, inner)


def repeat(value: Value, times: Sequence[int], batch: int) -> Value:
    """torch.repeat: the whole tensor again `times[d]` times along dimension d."""
    lead = len(times) - len(value.shape)
    value = reshape_ones(value, (1,) * lead + value.shape, [d + lead for d in range(len(value.shape))])
    for d in reversed(range(len(times))):
        if times[d] != 1:
            wide = unsqueeze(value, d)
            wide = expand(wide, (*wide.shape[:d], times[d], *wide.shape[d + 1 :]), batch)
            value = reshape(wide, (*value.shape[:d], times[d] * value.shape[d], *value.shape[d + 1 :]))
    return value


def slice_(value: Value, dim: int, start: int, stop: int, step: int = 1) -> Value:
    """[start:stop:step] along `dim`, bounds as in Python. Of the rows only whole copies of the batch can be taken."""
    dim = value.dim(dim)
    start, stop, step = slice(start, stop, step).indices(value.shape[dim])
    indices = range(start, stop, step)
    if len(indices) == value.shape[dim] and step == 1:
        return value
    if dim == value.rows:
        block = (value.batch or 1) * value.inner
        if value.is_constant and not value.row_axes:  # all rows are equal: some of them are a constant without rows
            some = unsqueeze(without_rows(value), dim)
            return some.with_dim(dim, *_wide(some.node, dim, len(indices)))
        if value.inner > 1 and value.is_constant and value.node.op is Op.EXPAND and math.prod(value.node.inputs[0].shape) == 1:
            value = _same_rows(value, replace(value, outer=value.outer * value.inner, inner=1))  # all entries are equal: any order will do
            block = value.batch or 1
        if step != 1 or start % block or stop % block or start == stop:
            raise Mixes("a slice of the rows")
        node = Node(Op.SLICE, (value.node,), axis=dim, start=start // block, stop=stop // block)
        outer = (stop - start) // block
        shape = (*value.shape[:dim], stop - start, *value.shape[dim + 1 :])
        return Value(_reshaped(node, behind(shape, dim, outer, value.inner)), shape, dim, outer, value.inner)
    if not indices:
        return nothing(value, dim)
    axis = value.axis(dim, "")
    if step == 1:
        return value.with_dim(dim, Node(Op.SLICE, (value.node,), axis=axis, start=start, stop=stop), len(indices))
    return value.with_dim(dim, Node(Op.TAKE, (value.node,), axis=axis, indices=tuple(indices)), len(indices))


def put_rows(value: Value, source: Value, start: int, stop: int) -> Value:
    """`source` in the place of entries [start, stop) of the rows, which must be whole copies of the batch one after another."""
    rows, batch = value.rows or 0, source.batch
    if source.rows != rows or batch is None or (source.inner, start % batch, stop % batch) != (1, 0, 0):
        raise Mixes("writing to some of the rows")
    value = _same_rows(value, replace(source, outer=value.shape[rows] // batch))
    size = value.shape[rows]
    before = [slice_(value, rows, 0, start)] if start else []
    after = [slice_(value, rows, stop, size)] if stop < size else []
    return concat([*before, source, *after], rows)


def without_rows(value: Value) -> Value:
    """A constant whose rows are all equal -> one of them, that dimension dropped."""
    assert value.rows is not None and value.is_constant and not value.row_axes
    return Value(value.node, value.node.shape)


def _wide(node: Node, axis: int, size: int) -> tuple[Node, int]:
    return _expanded(node, (*node.shape[:axis], size, *node.shape[axis + 1 :])), size


def nothing(value: Value, dim: int) -> Value:
    """`value` with none left along `dim`: a constant without entries."""
    shape = (*value.shape[:dim], 0, *value.shape[dim + 1 :])
    empty = np.zeros(behind(shape, value.rows, value.outer, value.inner), value.dtype)
    return replace(value, node=weight("nothing", empty), shape=shape)


def select(value: Value, dim: int, index: int) -> Value:
    """The entries `index` along `dim`, which is dropped. Of equal rows any one may be taken."""
    dim = value.dim(dim)
    if dim == value.rows and value.is_constant and not value.row_axes:
        return without_rows(value)
    if dim == value.rows:
        raise Mixes("taking one row of the batch")
    index = index + value.shape[dim] if index < 0 else index
    return squeeze(slice_(value, dim, index, index + 1), [dim])


def take(value: Value, dim: int, indices: Sequence[int]) -> Value:
    """The entries `indices` along `dim`, known when captured."""
    dim = value.dim(dim)
    size = value.shape[dim]
    chosen = tuple(int(i) % size for i in indices)
    if chosen == tuple(range(size)):
        return value
    axis = value.axis(dim, "indexing the rows")
    return value.with_dim(dim, Node(Op.TAKE, (value.node,), axis=axis, indices=chosen), len(chosen))


def concat(values: Sequence[Value], dim: int) -> Value:
    """One after another along `dim`; along the rows the batches stand one after another, which is `outer`."""
    values = [v for v in values if 0 not in v.shape] or list(values[:1])
    if len(values) == 1:
        return values[0]
    dim = values[0].dim(dim)
    rows = next((v for v in values if v.rows is not None), None)
    if rows is None:
        shape = (*values[0].shape[:dim], sum(v.shape[dim] for v in values), *values[0].shape[dim + 1 :])
        return Value(Node(Op.CONCAT, [v.node for v in values], axis=dim), shape)
    if any(v.rows != rows.rows for v in values):
        raise Mixes("a concatenation of row values with others along the rows")
    if dim == rows.rows:
        if any(v.inner != rows.inner for v in values):
            raise Mixes("a concatenation along the rows of values that have them at different places")
        parts = [_reshaped(v.node, (*v.shape[:dim], v.outer, *behind(v.shape, dim, 1, v.inner)[dim:])) for v in values]
        outer = sum(v.outer for v in values)
        shape = (*rows.shape[:dim], sum(v.shape[dim] for v in values), *rows.shape[dim + 1 :])
        return Value(Node(Op.CONCAT, parts, axis=dim), shape, dim, outer, rows.inner)
    values = [_same_rows(v, rows) for v in values]
    node = Node(Op.CONCAT, [v.node for v in values], axis=values[0].axis(dim, ""))
    return rows.with_dim(dim, node, sum(v.shape[dim] for v in values))


def stack(values: Sequence[Value], dim: int) -> Value:
    dim = dim + len(values[0].shape) + 1 if dim < 0 else dim
    return concat([unsqueeze(v, dim) for v in values], dim)


def _same_rows(value: Value, other: Value) -> Value:
    """`value` with the factors of `other`'s rows; equal rows can be given any, others only their own."""
    if (value.outer, value.inner) == (other.outer, other.inner):
        return value
    if value.is_constant and value.node.op is Op.EXPAND and math.prod(value.node.inputs[0].shape) == 1:
        node = _expanded(_reshaped(value.node.inputs[0], ()), behind(value.shape, value.rows, other.outer, other.inner))
        return replace(value, node=node, outer=other.outer, inner=other.inner)
    raise Mixes("combining values that have the rows of the batch in different order")


def rows_first(value: Value) -> Value:
    """The value with its rows as first dimension."""
    if value.rows in (None, 0):
        return value
    return permute(value, [value.rows, *(d for d in range(len(value.shape)) if d != value.rows)])


# pointwise -----------------------------------------------------------------------------------------------------------------------------


def aligned(values: Sequence[Value], what: str) -> tuple[list[Node], Value]:
    """Nodes that broadcast against each other as the tensors do, and the layout of the result (its node is not meaningful)."""
    rank = max(len(v.shape) for v in values)
    places = {v.rows + rank - len(v.shape) for v in values if v.rows is not None}
    if len(places) > 1:
        raise Mixes(f"{what} of rows with rows")
    if not places:
        return [v.node for v in values], Value(values[0].node, broadcast(*(v.shape for v in values)))
    (rows,) = places
    carriers = [v for v in values if v.rows is not None]
    model = next((v for v in carriers if not (v.is_constant and v.node.op is Op.EXPAND)), carriers[0])
    nodes = []
    for v in values:
        at = rows - (rank - len(v.shape))
        if v.rows is not None:
            nodes.append(_same_rows(v, model).node)
        elif at < 0:
            nodes.append(v.node)
        elif v.shape[at] != 1:
            raise Mixes(f"{what} of the rows with a constant of as many entries")
        else:
            nodes.append(_reshaped(v.node, (*v.shape[:at], *(1,) * len(model.row_axes), *v.shape[at + 1 :])))
    return nodes, Value(model.node, broadcast(*(v.shape for v in values)), rows, model.outer, model.inner)


def pointwise(op: Op, *values: Value) -> Value:
    """`op` on values that broadcast against each other as in torch."""
    if len(values) == 1:
        return values[0].with_node(Node(op, (values[0].node,)))
    nodes, layout = aligned(values, f"{op.name.lower()}")
    node = Node(op, nodes)
    # a result of lower rank than its tensor (all operands broadcast from less) is brought to the layout's own
    want = behind(layout.shape, layout.rows, layout.outer, layout.inner)
    return replace(layout, node=node if node.shape == want else Node(Op.EXPAND, (node,), shape=want))


# along dimensions ----------------------------------------------------------------------------------------------------------------------


def reduce(op: Op, value: Value, dims: Sequence[int] | None, keepdims: bool, what: str) -> Value:
    """SUM, MEAN, MAX, MIN or PROD over `dims` (None or none: all)."""
    chosen = sorted({value.dim(d) for d in dims}) if dims else list(range(len(value.shape)))
    if value.rows in chosen and value.is_constant and op in (Op.MEAN, Op.MAX, Op.MIN) and not value.row_axes:
        value = unsqueeze(without_rows(value), value.rows or 0)
    axes = tuple(value.axis(d, what) for d in chosen)
    if not axes:
        return value
    node = Node(op, (value.node,), axes=axes, keepdims=keepdims)
    if keepdims:
        return replace(value, node=node, shape=tuple(1 if d in chosen else n for d, n in enumerate(value.shape)))
    rows = None if value.rows is None else value.rows - sum(d < value.rows for d in chosen)
    return replace(value, node=node, shape=tuple(n for d, n in enumerate(value.shape) if d not in chosen), rows=rows)


def along(op: Op, value: Value, dim: int, what: str, **attrs: object) -> Value:
    """An op along one axis that keeps the shape: SOFTMAX, ARGSORT, CUMSUM, CUMPROD."""
    if not value.shape:
        return squeeze(along(op, unsqueeze(value, 0), 0, what, **attrs), [0])
    return value.with_node(Node(op, (value.node,), axis=value.axis(dim, what), **attrs))


def argmax(value: Value, dim: int, keepdims: bool, what: str) -> Value:
    dim = value.dim(dim)
    node = Node(Op.ARGMAX, (value.node,), axis=value.axis(dim, what))
    shape = (*value.shape[:dim], *value.shape[dim + 1 :])
    rows = None if value.rows is None else value.rows - (value.rows > dim)
    out = Value(node, shape, rows, value.outer, value.inner)
    return unsqueeze(out, dim) if keepdims else out


def gather(value: Value, dim: int, index: Value) -> Value:
    """torch.gather; each row from itself."""
    dim = value.dim(dim)
    if index.rows != value.rows:
        raise Mixes("a gather across the rows")
    if value.rows is not None:
        index = _same_rows(index, value)
    axis = value.axis(dim, "a gather along the rows")
    return index.with_node(Node(Op.GATHER, (value.node, index.node), axis=axis))


# products ------------------------------------------------------------------------------------------------------------------------------


def linear(x: Value, w: Value, b: Value | None = None) -> Value:
    """(..., K), (N, K)[, (N,)] -> (..., N) with a constant weight; float64 and row-carrying weights go through `matmul`."""
    if w.rows is not None or not w.is_constant or x.dtype != "float32" or len(w.shape) != 2:
        y = matmul(x, transpose(w, -1, -2) if len(w.shape) > 1 else w)
        return y if b is None else pointwise(Op.ADD, y, b)
    x.axis(-1, "a linear layer over the rows")
    bias = b.node if b is not None else weight("zero bias", np.zeros(w.shape[0], np.float32))
    return x.with_dim(-1, Node(Op.LINEAR, (x.node, w.node, bias)), w.shape[0])


def matmul(a: Value, b: Value) -> Value:
    """torch.matmul, ranks of 1 included."""
    if len(a.shape) == 1 or len(b.shape) == 1:
        wide = matmul(unsqueeze(a, 0) if len(a.shape) == 1 else a, unsqueeze(b, -1) if len(b.shape) == 1 else b)
        dims = ([-2] if len(a.shape) == 1 else []) + ([-1] if len(b.shape) == 1 else [])
        return squeeze(wide, dims)
    for value, dim in ((a, -1), (b, -2)):
        value.axis(dim, "a matrix product that sums over the rows")
    if b.rows is None and b.is_constant and len(b.shape) == 2 and a.dtype == b.dtype == "float32" and a.rows is not None:
        return linear(a, transpose(b, 0, 1))
    if a.rows is not None and a.rows == len(a.shape) - 2:
        if b.rows is not None:
            raise Mixes("a matrix product of rows with rows")
        return _rows_by_constant(a, b)
    if b.rows is not None and b.rows == len(b.shape) - 1:
        if a.rows is not None:
            raise Mixes("a matrix product of rows with rows")
        return transpose(_rows_by_constant(transpose(b, -1, -2), transpose(a, -1, -2)), -1, -2)
    lead_a, lead_b = _lead(a), _lead(b)
    if a.rows is None and b.rows is None:
        node = Node(Op.MATMUL, (a.node, b.node))
        return Value(node, node.shape)
    (na, nb), layout = aligned((lead_a, lead_b), "a matrix product")
    na, nb = _with_matrix(na, lead_a, a), _with_matrix(nb, lead_b, b)
    return replace(layout, node=Node(Op.MATMUL, (na, nb)), shape=(*layout.shape, a.shape[-2], b.shape[-1]))


def _lead(value: Value) -> Value:
    """The batch dimensions of a matrix, as a value whose node only has the right shape (a slice that is never kept)."""
    node = value.node
    shape = node.shape[:-2]
    for axis in (len(node.shape) - 1, len(node.shape) - 2):
        node = Node(Op.MAX, (node,), axes=(axis,))
    assert node.shape == shape
    return replace(value, node=node, shape=value.shape[:-2])


def _with_matrix(lead: Node, was: Value, value: Value) -> Node:
    """The matrix's node with its batch axes shaped as alignment shaped `lead`."""
    return _reshaped(value.node, (*lead.shape, *value.node.shape[-2:])) if lead is not was.node else value.node


def _rows_by_constant(a: Value, b: Value) -> Value:
    """(..., rows, K) @ constant (..., K, N): the row's own factors are the matrix's rows."""
    factors = a.outer * a.inner
    lead = a.shape[:-2]
    left = _reshaped(a.node, (*lead, factors, a.shape[-1]))
    node = Node(Op.MATMUL, (left, b.node))
    shape = (*broadcast(lead, b.shape[:-2]), a.shape[-2], b.shape[-1])
    rows = len(shape) - 2
    return Value(_reshaped(node, behind(shape, rows, a.outer, a.inner)), shape, rows, a.outer, a.inner)
