"""Graph + Host -> Plan: which values are computed together, where each lies, and in what order. Still no C++ here.

A plan is a list of steps. Each step computes one *head* (a linear, a lookup, a reduction, ...; none for purely pointwise work) and the
pointwise nodes fused behind it, and writes those values that another step reads. Steps of the request side come first; both sides work on
blocks of `rows` rows whose buffers fit the near caches, so a whole model runs depth first; steps that share no weights run over strips
of a block, so that wide intermediate values stay in the nearest cache. CONCAT is a place to write to, not a step;
RESHAPE and contiguous SLICE are other names for a place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from burnish.errors import BuildError
from burnish.graph.node import Graph, Node
from burnish.graph.ops import POINTWISE, Op
from burnish.host import ISAS, Host

CTYPES = {
    "float32": "float",
    "bfloat16": "float",  # a float32 that holds representable numbers only, as in graph/interpret.py
    "float16": "float",
    "float64": "double",
    "int64": "int64_t",
    "int32": "int32_t",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "bool": "uint8_t",
}
SIZES = {"float": 4, "double": 8, "int64_t": 8, "int32_t": 4, "int8_t": 1, "uint8_t": 1}
FUSABLE_HEADS = frozenset({Op.LINEAR, Op.QLINEAR, Op.QDOT})
FEW = 4  # outputs of a linear up to which its vectors run along the inputs
ELEMENTWISE = POINTWISE | {Op.QUANTIZE}
ALIGN = 64
SLACK = 128  # bytes behind each buffer and packed array that a vector may read
REUSED = 12  # rows of a product in one row of a block that make good use of a SMALL weight (values), which stays near meanwhile
SMALL = 16 << 10
TALL = (192, 96)  # rows of a block when its weights come from memory: fewer would wait for them
BLOCKS = (48, 24, 12, 6)  # and else, the first that keeps the arena within the second-level cache


@dataclass(frozen=True)
class Buffer:
    """Rows of an arena: `width` values of a row are used, `stride` lie from row to row; `offset` in bytes. `rows`: those of a block, or of
    the strip that alone uses it."""

    index: int
    ctype: str
    width: int
    stride: int
    side: str
    rows: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Place:
    """Where the row of a value begins: `at` values behind the beginning of the buffer's row."""

    buffer: int
    at: int


@dataclass(frozen=True)
class Step:
    """`head` (None: pointwise only), the pointwise nodes `body` behind it, and those of them all that are `stored`."""

    side: str
    head: Node | None
    body: tuple[Node, ...]
    stored: frozenset[Node]

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.head, *self.body) if self.head is not None else self.body


@dataclass(frozen=True)
class Strip:
    """Steps `first` to `last` (included) that run over `rows` rows of a block at a time: what only they use stays in the nearest cache."""

    first: int
    last: int
    rows: int


@dataclass(frozen=True)
class Plan:
    """What emit.py turns into C++. `rows`: rows of a block. Places are those of values with rows; constants are packed instead."""

    graph: Graph
    isa: str
    flags: tuple[str, ...]  # CPU flags the library will need
    rows: int
    steps: tuple[Step, ...]
    strips: tuple[Strip, ...]
    places: dict[Node, Place]
    buffers: tuple[Buffer, ...]
    arena_bytes: int

    def buffer_of(self, node: Node) -> Buffer:
        return self.buffers[self.places[node].buffer]

    def strip_of(self, step: int) -> Strip | None:
        return next((strip for strip in self.strips if strip.first <= step <= strip.last), None)


def size(node: Node) -> int:
    """Values in one row (or in the whole of a constant)."""
    return math.prod(node.shape)


def ctype(node: Node) -> str:
    return CTYPES[node.dtype]


def make(graph: Graph, host: Host, isa: str | None = None, rows: int | None = None) -> Plan:
    """The plan of `graph` for `host`. `isa` and `rows` override what the host suggests; BuildError names what has no kernel."""
    isa = isa or host.isa
    for node in graph.order:
        if node.dtype not in CTYPES and node.side != "constant":
            raise BuildError(f"the native backend has no dtype {node.dtype}: {node!r}")
    groups = _group(graph)
    places, drafts = _place(graph, groups)
    steps = _steps(graph, groups, places)
    for step in steps:
        _check(step)
    heights, fit = _heights(_weight_bytes(steps), host)
    near = (host.cache_bytes[0] if host.cache_bytes else 32 << 10) * 3 // 4
    lives = _lives(graph, steps, places)
    for height in (rows,) if rows else heights:
        strips = _strips(steps, drafts, lives, height, near)
        buffers, arena = _lay_out(drafts, lives, strips, height)
        if arena <= fit:
            break
    return Plan(graph, isa, tuple(sorted(ISAS[isa][1])), height, tuple(steps), strips, places, buffers, arena)


def _heights(weights: int, host: Host) -> tuple[tuple[int, ...], int]:
    """Rows of a block in the order to try them, and the bytes that its arena may take, for products that read so many bytes of weights.

    Weights that the last cache holds come as fast as they are used, so the arena stays in the second level. Larger ones come from memory
    for each block, which many rows have to pay for; then the arena may lie farther away, while it is much less than they are. A host
    without a third level that is known gets small blocks: it may have little memory.
    """
    second, *beyond = host.cache_bytes[1:] or (1 << 20,)
    if not beyond or 2 * weights <= beyond[-1]:
        return BLOCKS, second
    return TALL + BLOCKS, max(second, weights // 4)


def _weight_bytes(steps: list[Step]) -> int:
    """Bytes of the weights that the products of a block read."""
    weights = {step.head.inputs[1]: step.head for step in steps if step.head is not None and step.head.op in FUSABLE_HEADS}
    short = {"bfloat16": 2, "float16": 2}
    return sum(size(weight) * (short.get(head["compute"], 4) if head.op is Op.LINEAR else 1) for weight, head in weights.items())


def view_of(node: Node) -> tuple[Node, int] | None:
    """(operand, values to skip) when the node's row is a contiguous part of its operand's row; None when it must be computed."""
    if node.side == "constant" or not node.inputs or node.inputs[0].side == "constant":
        return None
    x = node.inputs[0]
    if node.op is Op.RESHAPE or (node.op is Op.EXPAND and size(x) == size(node)):
        return x, 0
    if node.op is Op.CAST and ctype(x) == ctype(node) and node["dtype"] not in ("bool", "bfloat16", "float16"):
        return x, 0
    if node.op is Op.CONCAT and len(node.inputs) == 1 and node.side == x.side:
        return x, 0
    if node.op is Op.SLICE and math.prod(x.shape[: node["axis"]]) == 1:
        return x, node["start"] * math.prod(x.shape[node["axis"] + 1 :])
    if node.op is Op.TAKE and math.prod(x.shape[: node["axis"]]) == 1:
        indices = node["indices"]
        if indices == tuple(range(indices[0], indices[0] + len(indices))):
            return x, indices[0] * math.prod(x.shape[node["axis"] + 1 :])
    return None


def absorbed(graph: Graph) -> frozenset[Node]:
    """Transposes of the last two axes that only MATMUL reads, as its second operand: its kernel reads their operand instead."""
    users, kept = graph.users(), {node for _, node in graph.outputs}
    return frozenset(
        node
        for node in graph.order
        if is_swap(node) and node not in kept and all(u.op is Op.MATMUL and u.inputs[0] is not node for u in users[node])
    )


def is_swap(node: Node) -> bool:
    """Whether the node is a TRANSPOSE of its row's last two axes and of no other."""
    if node.op is not Op.TRANSPOSE or node.side == "constant":
        return False
    rank = len(node.shape)
    return node["perm"] == (*range(rank - 2), rank - 1, rank - 2)


def source(node: Node) -> tuple[Node, int]:
    """The computed value that a chain of views ends at, and how many values of its row come before the node's."""
    skip = 0
    while (view := view_of(node)) is not None:
        node, more = view
        skip += more
    return node, skip


def held_in(operand: Node, skipped: frozenset[Node]) -> Node:
    """The computed value that a step reads for an operand."""
    return source(operand.inputs[0] if operand in skipped else operand)[0]


@dataclass
class _Group:
    side: str
    head: Node | None
    body: list[Node] = field(default_factory=list)

    @property
    def lead(self) -> Node:
        return self.head if self.head is not None else self.body[0]


def _group(graph: Graph) -> list[_Group]:
    """Each pointwise node joins the latest step among its operands' when it runs over the same values; else it begins one."""
    groups: list[_Group] = []
    where: dict[Node, int] = {}
    skipped = absorbed(graph)
    for node in graph.order:
        if node.side == "constant" or view_of(node) is not None or node in skipped:
            continue
        if node.op in ELEMENTWISE:
            near = [where[s] for v in node.inputs if v.side == node.side for s in [source(v)[0]] if s in where]
            latest = max(near, default=-1)
            if latest >= 0 and joins(node, groups[latest].lead, frozenset(groups[latest].body) | {groups[latest].lead}):
                groups[latest].body.append(node)
                where[node] = latest
                continue
            groups.append(_Group(node.side, None, [node]))
        else:
            groups.append(_Group(node.side, node))
        where[node] = len(groups) - 1
    return groups


def joins(node: Node, lead: Node, members: frozenset[Node]) -> bool:
    """Whether a pointwise node can be computed value by value beside `lead`, in the registers that hold it."""
    if node.side != lead.side or size(node) != size(lead):
        return False
    if lead.op not in ELEMENTWISE and (lead.op not in FUSABLE_HEADS or lead.shape[-1] <= FEW):
        return False
    for operand in node.inputs:
        value, skip = source(operand)
        if value in members and (skip or size(value) != size(lead)):
            return False
        if size(operand) in (1, size(lead)):
            continue
        if node.shape != lead.shape:
            return False
        if lead.op in FUSABLE_HEADS and epilogue_stride(operand.shape, lead.shape) is None:
            return False
    return True


def epilogue_stride(shape: tuple[int, ...], out: tuple[int, ...]) -> tuple[int, int] | None:
    """For an operand of `shape` beside a linear's (R..., N) value: (values from one of the R to the next, 0 or 1 along N), or None."""
    full = (1,) * (len(out) - len(shape)) + tuple(shape)
    along = 1 if full[-1] == out[-1] and out[-1] > 1 else 0
    if full[:-1] == out[:-1]:
        return full[-1] if math.prod(out[:-1]) > 1 else 0, along
    return (0, along) if math.prod(full[:-1]) == 1 else None


def _place(graph: Graph, groups: list[_Group]) -> tuple[dict[Node, Place], list[Buffer]]:
    """A place for every computed value: inside the CONCAT that it becomes a part of when it can be, else a buffer of its own."""
    places: dict[Node, Place] = {}
    drafts: list[Buffer] = []
    concats = [g.head for g in groups if g.head is not None and g.head.op is Op.CONCAT]
    for concat in reversed(concats):
        if concat not in places:
            places[concat] = Place(len(drafts), 0)
            drafts.append(_draft(len(drafts), concat))
        if math.prod(concat.shape[: concat["axis"]]) != 1:
            continue
        home, at = places[concat], 0
        for operand in concat.inputs:
            value, skip = (operand, 0) if operand.side == "constant" else source(operand)
            fits = value.side == concat.side and value not in places and skip == 0 and size(value) == size(operand)
            if fits and ctype(value) == ctype(concat):
                places[value] = Place(home.buffer, home.at + at)
            at += size(operand)
    for group in groups:
        for node in (group.head, *group.body):
            if node is not None and node not in places:
                places[node] = Place(len(drafts), 0)
                drafts.append(_draft(len(drafts), node))
    skipped = absorbed(graph)
    for node in graph.order:  # views last: their sources have places now
        if node.side != "constant" and node not in places:
            value, skip = source(node.inputs[0] if node in skipped else node)
            places[node] = Place(places[value].buffer, places[value].at + skip)
    return places, drafts


def _draft(index: int, node: Node) -> Buffer:
    n = size(node)
    return Buffer(index, ctype(node), n, n if n < 16 else -(-n // 16) * 16, node.side)


def _steps(graph: Graph, groups: list[_Group], places: dict[Node, Place]) -> list[Step]:
    """Groups as steps, request side first; what only its own group reads is not stored."""
    group_of = {node: g for g in groups for node in (g.head, *g.body) if node is not None}
    stored: set[Node] = {source(node)[0] for _, node in graph.outputs if node.side != "constant"}
    skipped = absorbed(graph)
    for node in graph.order:
        for operand in node.inputs:
            if operand.side == "constant" or view_of(node) is not None or node in skipped:
                continue
            value = held_in(operand, skipped)
            if group_of[value] is not group_of.get(node):
                stored.add(value)
    steps = []
    for side in ("request", "candidate"):
        for g in groups:
            if g.side == side:
                nodes = [node for node in (g.head, *g.body) if node is not None]
                steps.append(Step(side, g.head, tuple(g.body), frozenset(n for n in nodes if n in stored)))
    return steps


def _check(step: Step) -> None:
    from burnish.native.kernels import table  # the kernels know plans, so they are looked up when they are needed

    table.check(step)


Lives = dict[int, tuple[int, int]]  # buffer -> the first and the last step that uses it


def _lives(graph: Graph, steps: list[Step], places: dict[Node, Place]) -> Lives:
    """What candidates read of a request lives throughout, and so do outputs."""
    end = len(steps)
    lives: Lives = {}

    def touch(node: Node, at: int) -> None:
        index = places[node].buffer
        first, last = lives.get(index, (at, at))
        lives[index] = (min(first, at), max(last, at))

    held = frozenset(node for step in steps for node in step.stored)
    skipped = absorbed(graph)
    for at, step in enumerate(steps):
        for node in step.nodes:
            for operand in node.inputs:
                if operand.side != "constant" and held_in(operand, skipped) in held:
                    touch(operand, end if operand.side != step.side else at)
            if node in step.stored:
                touch(node, at)
    for _, node in graph.outputs:
        if node.side != "constant":
            touch(node, end)
    return lives


def _strips(steps: list[Step], drafts: list[Buffer], lives: Lives, rows: int, near: int) -> tuple[Strip, ...]:
    """Runs of steps that need no other rows, where what only they use would not fit `near` bytes for a whole block."""
    strips, at = [], 0
    while at < len(steps):
        last = at
        while last < len(steps) and _needs_no_rows(steps[last]) and steps[last].side == steps[at].side:
            last += 1
        own = sum(drafts[i].stride * SIZES[drafts[i].ctype] for i, (a, b) in lives.items() if at <= a and b < last)
        if own * rows > near:
            strips.append(Strip(at, last - 1, max(1, near // own)))
        at = max(last, at + 1)
    return tuple(strips)


def _needs_no_rows(step: Step) -> bool:
    """Whether a step is as fast for a few rows as for a block: no large weight is read anew for each few."""
    head = step.head
    if head is not None and head.op in FUSABLE_HEADS:
        n, k = head.inputs[1].shape
        return n <= FEW or (math.prod(head.shape[:-1]) >= REUSED and n * k <= SMALL)
    return head is None or head.op not in (Op.INPUT, Op.GRU)


def _lay_out(drafts: list[Buffer], lives: Lives, strips: tuple[Strip, ...], rows: int) -> tuple[tuple[Buffer, ...], int]:
    """Offsets: a buffer's bytes are used again by buffers that live at other steps. What is used in a strip and elsewhere lives throughout
    the strip, since its steps come again for the next rows."""
    lives, height = dict(lives), dict.fromkeys(lives, rows)
    for strip in strips:
        inside = range(strip.first, strip.last + 1)
        for index, (first, last) in lives.items():
            if first in inside and last in inside:
                height[index] = strip.rows
            else:
                lives[index] = (strip.first if first in inside else first, strip.last if last in inside else last)
    placed: list[tuple[int, int, int]] = []  # (offset, bytes, buffer)
    offsets: dict[int, int] = {}
    for index in sorted(lives, key=lambda i: (lives[i][0], i)):
        draft, (first, last) = drafts[index], lives[index]
        nbytes = height[index] * draft.stride * SIZES[draft.ctype] + SLACK
        nbytes = -(-nbytes // ALIGN) * ALIGN
        offset = 0
        for other_at, other_bytes, other in sorted(placed):
            apart = lives[other][1] < first or last < lives[other][0]
            if not apart and offset < other_at + other_bytes and other_at < offset + nbytes:
                offset = other_at + other_bytes
        offsets[index] = offset
        placed.append((offset, nbytes, index))
    arena = max((at + n for at, n, _ in placed), default=0)
    buffers = tuple(replace(draft, rows=height.get(draft.index, rows), offset=offsets.get(draft.index, 0)) for draft in drafts)
    return buffers, arena
