"""Spans of one thread as trees: who was inside whom, and what each took by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from server.profiling.ring import Cost, Span


@dataclass(slots=True)
class Node:
    span: Span
    depth: int
    children: list[Node] = field(default_factory=list)

    @property
    def total_ns(self) -> int:
        return self.span.end_ns - self.span.start_ns

    def walk(self) -> Iterator[Node]:
        """Itself, then what is inside it, by start."""
        yield self
        for child in self.children:
            yield from child.walk()

    def self_ns(self, cost: Cost) -> int:
        """Without what is inside it, and without what taking the spans has cost."""
        inside = sum([child.total_ns for child in self.children])
        return max(0, self.total_ns - inside - cost.inner_ns - cost.outer_ns * len(self.children))

    def by_part(self, cost: Cost) -> Counter[int]:
        """ns of each part, with what is inside this one."""
        parts: Counter[int] = Counter()
        for node in self.walk():
            parts[node.span.part] += node.self_ns(cost)
        return parts


def trees(spans: Iterable[Span]) -> list[Node]:
    """The outermost ones. `spans` are in order of start, the longer one first. One that begins inside another
    and ends behind it cannot be of one thread; it counts as a neighbour."""
    roots: list[Node] = []
    open_nodes: list[Node] = []
    for span in spans:
        while open_nodes and open_nodes[-1].span.end_ns < span.end_ns:
            open_nodes.pop()
        node = Node(span, len(open_nodes))
        (open_nodes[-1].children if open_nodes else roots).append(node)
        open_nodes.append(node)
    return roots
