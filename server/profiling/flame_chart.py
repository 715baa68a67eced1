"""A flame chart as one SVG file that any browser opens: time to the right, what is inside a span below it,
each process a band. No script, no font and no file besides it: names stand in the bars that have room, under
the pointer for all, and in the legend with each part's time of a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from server.profiling.excerpt import Excerpt
from server.profiling.parts import LABELS, short_label
from server.profiling.steps import StepFigures
from server.profiling.tree import Node

_WIDTH = 2400  # of the drawing; a wide one can be scrolled
_LEFT = 90
_ROW = 18
_CHAR = 6.2  # of the 11 px font, about
_COLOURS = (
    "#8dd3c7", "#fdb462", "#b3de69", "#80b1d3", "#fccde5", "#ffed6f", "#bc80bd", "#ccebc5", "#fb8072",
    "#bebada", "#d9d9d9",
)  # fmt: skip
_STYLE = "text{font:11px sans-serif;fill:#222}rect{stroke:#fff;stroke-width:.4}.h{font-size:14px}"


def write_flame_chart(
    path: Path, excerpt: Excerpt, title: str, figures: Sequence[StepFigures]
) -> None:
    path.write_text(flame_chart(excerpt, title, figures), encoding="utf-8")


def flame_chart(excerpt: Excerpt, title: str, figures: Sequence[StepFigures]) -> str:
    body: list[str] = []
    y = 30.0
    scale = (_WIDTH - _LEFT - 10) / max(1, excerpt.end_ns - excerpt.start_ns)
    body += _axis(excerpt, y, scale)
    y += 24
    for name, roots in excerpt.processes.items():
        depth = max((node.depth for root in roots for node in root.walk()), default=0)
        body.append(f'<text x="4" y="{y + 13:.1f}">{escape(name)}</text>')
        for root in roots:
            for node in root.walk():
                body.append(_bar(node, excerpt.start_ns, y, scale))
        y += (depth + 1) * _ROW + 14
    for stream, times_ns in list(excerpt.events_ns.items())[:8]:
        body.append(f'<text x="4" y="{y + 11:.1f}">{escape(stream)}</text>')
        body += [
            f'<circle cx="{_LEFT + (at - excerpt.start_ns) * scale:.1f}" cy="{y + 7:.1f}" r="3" '
            f'fill="#555"><title>the client reads an event</title></circle>'
            for at in times_ns
        ]
        y += 16
    legend = list(_legend(figures, y + 16))
    height = y + 40 + 16 * max(len(each.parts) + 3 for each in figures) if figures else y + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {_WIDTH} {height:.0f}"><style>{_STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>'
        f'<text class="h" x="4" y="18">{escape(title)}</text>\n'
        + "\n".join([*body, *legend])
        + "\n</svg>\n"
    )


def _axis(excerpt: Excerpt, y: float, scale: float) -> Iterator[str]:
    """A tick for each tenth of what is shown."""
    span_ns = excerpt.end_ns - excerpt.start_ns
    for tenth in range(11):
        x = _LEFT + span_ns * tenth / 10 * scale
        anchor = "end" if tenth == 10 else "start"
        yield (
            f'<text x="{x:.1f}" y="{y + 12:.1f}" text-anchor="{anchor}">'
            f"{span_ns * tenth / 1e4:,.0f} us</text>"
        )


def _bar(node: Node, zero_ns: int, y: float, scale: float) -> str:
    span, name = node.span, short_label(node.span.part)
    x, width = _LEFT + (span.start_ns - zero_ns) * scale, max(0.5, node.total_ns * scale)
    top = y + node.depth * _ROW
    bar = (
        f'<g><title>{escape(name)}: {node.total_ns / 1e3:,.1f} us</title><rect x="{x:.2f}" '
        f'y="{top:.1f}" width="{width:.2f}" height="{_ROW - 1}" fill="{_colour(span.part)}"/>'
    )
    shown = _fitting(name, width)
    if shown:
        bar += f'<text x="{x + 2:.1f}" y="{top + 13:.1f}">{escape(shown)}</text>'
    return bar + "</g>"


def _fitting(name: str, width: float) -> str:
    short = name.removeprefix("model: ").removeprefix("linear ")
    for text in (name, short):
        if len(text) * _CHAR + 4 <= width:
            return text
    return ""


def _colour(part: int) -> str:
    return _COLOURS[part % len(_COLOURS)]


def _legend(figures: Sequence[StepFigures], top: float) -> Iterator[str]:
    """Each kind of step a column: its parts' time of a step."""
    by_label = {label: part for part, label in reversed(LABELS.items())}
    for column, kind in enumerate(figures):
        x, y = 10 + 480 * column, top
        yield (
            f'<text class="h" x="{x}" y="{y:.1f}">A step, {escape(kind.kind)}: '
            f"{kind.mean_us:,.0f} us, mean of {kind.num_steps:,}</text>"
        )
        for part in sorted(kind.parts, key=lambda each: -each.share):
            y += 16
            yield (
                f'<rect x="{x}" y="{y - 10:.1f}" width="12" height="12" '
                f'fill="{_colour(by_label[part.name])}"/><text x="{x + 18}" y="{y:.1f}">'
                f"{escape(part.name)}: {part.mean_us:,.1f} us, {part.share:.1%}</text>"
            )
