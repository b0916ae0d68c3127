"""What kernels write into: the text of one step, and the list of packed arrays that the text refers to by number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from burnish.graph.node import Node
from burnish.native.plan import CTYPES, SIZES, Plan, Step, Strip, ctype, size


@dataclass(frozen=True)
class Entry:
    """One array of the packed file: how it is laid out (pack.LAYOUTS), from which nodes, with which numbers.

    `facts` are values that the code does not depend on, such as the bounds of ids.
    """

    layout: str
    nodes: tuple[Node, ...] = ()
    numbers: tuple[int, ...] = ()
    facts: Any = None


@dataclass(frozen=True)
class Ref:
    """A value in the text of a step: `name` points to its first row, `stride` values lie from row to row ("0" for a constant)."""

    name: str
    stride: str
    node: Node

    def row(self, m: str = "m") -> str:
        return self.name if self.stride == "0" else f"({self.name} + {m} * {self.stride})"


@dataclass
class Code:
    """Text under construction. `entries` grows with what the steps need; the file is packed from it (pack.py)."""

    plan: Plan
    entries: list[Entry] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    depth: int = 1
    step: Step | None = None
    strip: Strip | None = None  # of the step
    refs: dict[tuple[Node, bool], Ref] = field(default_factory=dict)
    known: dict[tuple[str, Node], str] = field(default_factory=dict)
    count: int = 0
    scratch_bytes: int = 0

    def add(self, line: str) -> None:
        self.lines.append("  " * self.depth + line)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        self.add(head + " {")
        self.depth += 1
        yield
        self.depth -= 1
        self.add("}")

    def scratch(self, nbytes: int) -> None:
        """Ask for bytes at SCRATCH behind the arena's buffers; every step may use them anew."""
        self.scratch_bytes = max(self.scratch_bytes, nbytes)

    def fresh(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def packed(self, layout: str, *nodes: Node, numbers: tuple[int, ...] = (), facts: Any = None) -> int:
        """The number of a packed array; the same one for the same request."""
        entry = Entry(layout, nodes, numbers, facts)
        if entry not in self.entries:
            self.entries.append(entry)
        return self.entries.index(entry)

    def pointer(self, ctype: str, layout: str, *nodes: Node, numbers: tuple[int, ...] = (), facts: Any = None) -> str:
        """A local pointer to a packed array."""
        name = self.fresh("k")
        self.add(f"const {ctype} *{name} = (const {ctype} *)r.w[{self.packed(layout, *nodes, numbers=numbers, facts=facts)}];")
        return name

    def pointer_once(self, ctype: str, layout: str, node: Node) -> str:
        """A local pointer to a packed array, declared once a step; call it first outside the loops that use it."""
        name = self.known.get((layout, node))
        if name is None:
            name = self.known[layout, node] = self.pointer(ctype, layout, node)
        return name

    def read(self, node: Node) -> Ref:
        """A reference to a value or constant for reading, declared once a step."""
        found = self.refs.get((node, False))
        if found is None:
            if node.side == "constant":
                found = Ref(self.pointer(ctype(node), "plain", node), "0", node)
            else:
                found = self._declare(node, "const ")
            self.refs[node, False] = found
        return found

    def write(self, node: Node) -> Ref:
        """A reference to a value of this step for writing."""
        found = self.refs.get((node, True))
        if found is None:
            found = self.refs[node, True] = self._declare(node, "")
        return found

    def _declare(self, node: Node, const: str) -> Ref:
        assert self.step is not None
        place = self.plan.places[node]
        buffer = self.plan.buffers[place.buffer]
        name, kind = self.fresh("v"), CTYPES[node.dtype]
        at = buffer.offset + place.at * SIZES[buffer.ctype]
        stride = str(buffer.stride)
        if node.side != self.step.side:  # a request's one row beside many candidates, or its rows beside theirs
            stride = f"(q * {stride})"
        begin = f" + r.strip * {stride} * {SIZES[buffer.ctype]}" if self.strip and buffer.rows == self.plan.rows else ""
        self.add(f"{const}{kind} *{name} = ({const}{kind} *)(r.arena + {at}{begin});")
        return Ref(name, stride, node)

    def padded(self, node: Node) -> bool:
        """Whether whole vectors may be written over the end of the node's row: it lies alone in rows padded to 16 values."""
        place, buffer = self.plan.places[node], self.plan.buffer_of(node)
        return place.at == 0 and size(node) == buffer.width and buffer.stride % 16 == 0
