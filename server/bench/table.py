"""Summaries as a table for a terminal: figures down, loads across."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.bench.measures import Spread, Summary

_LATENCIES = (
    ("time to first token", "ttft_ms"),
    ("gap between events", "itl_ms"),
    ("time per output token", "tpot_ms"),
    ("end to end", "e2e_ms"),
)
_PERCENTILES = ("mean", "p50", "p90", "p99")
_Row = tuple[str, Callable[[Summary], str]]


def format_table(summaries: Sequence[Summary]) -> str:
    """Lines without a last newline: the table, then failures and warnings of each load."""
    rows = [(label, [cell(summary) for summary in summaries]) for label, cell in _rows(summaries)]
    label_width = max(len(label) for label, _ in rows)
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(summaries))]
    lines = []
    for label, cells in rows:
        columns = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([label.ljust(label_width), *columns]).rstrip())
        if label.startswith("load"):
            lines.append("  ".join("-" * width for width in (label_width, *widths)))
    for summary in summaries:
        lines += [f"{_load(summary)}: {note}" for note in _notes(summary)]
    return "\n".join(lines)


def _rows(summaries: Sequence[Summary]) -> list[_Row]:
    kind = "requests/s" if summaries[0].kind == "rate" else "in flight"
    rows: list[_Row] = [
        (f"load, {kind}", lambda s: f"{s.load:g}"),
        ("requests completed", lambda s: f"{s.completed:,} of {s.requests_due:,}"),
        ("duration, s", lambda s: f"{s.duration_s:,.1f}"),
        ("requests/s", lambda s: number(s.requests_per_s)),
        ("output tokens/s", lambda s: number(s.output_tokens_per_s)),
        ("all tokens/s", lambda s: number(s.total_tokens_per_s)),
        ("prompt tokens, mean", lambda s: number(s.prompt_tokens / max(1, s.completed))),
        ("output tokens, mean", lambda s: number(s.output_tokens / max(1, s.completed))),
    ]
    if any(summary.cached_tokens for summary in summaries):
        rows.append(("prompt tokens cached", _cached))
    if any(summary.tokens_per_event > 1.005 for summary in summaries):
        rows.append(("tokens per event", lambda s: number(s.tokens_per_event)))
    for label, name in _LATENCIES:
        rows += [(f"{label}, {part}, ms", _latency_cell(name, part)) for part in _PERCENTILES]
    if any(summary.goodput for summary in summaries):
        rows += [("goodput, share", _good_share), ("goodput, requests/s", _good_rate)]
    if any(summary.lag_ms for summary in summaries):
        rows.append(("generator's lag, p99, ms", _latency_cell("lag_ms", "p99")))
    rows.append(("generator's share of a core", lambda s: f"{s.generator_cpu_share:.0%}"))
    return rows


def _latency_cell(name: str, part: str) -> Callable[[Summary], str]:
    def cell(summary: Summary) -> str:
        found: Spread | None = getattr(summary, name)
        return "-" if found is None else number(getattr(found, part))

    return cell


def _cached(summary: Summary) -> str:
    cached = summary.cached_tokens
    return "-" if cached is None else f"{cached / max(1, summary.prompt_tokens):.0%}"


def _good_share(summary: Summary) -> str:
    return "-" if summary.goodput is None else f"{summary.goodput.share:.1%}"


def _good_rate(summary: Summary) -> str:
    return "-" if summary.goodput is None else number(summary.goodput.requests_per_s)


def _notes(summary: Summary) -> list[str]:
    notes = []
    for failure, count in sorted(summary.failures.items()):
        said = summary.messages.get(failure)
        notes.append(f"{count} failed: {failure}" + (f" ({said})" if said else ""))
    if summary.interrupted:
        notes.append(f"{summary.interrupted} interrupted, and left out")
    return notes + summary.warnings


def _load(summary: Summary) -> str:
    return f"{summary.load:g} {'requests/s' if summary.kind == 'rate' else 'in flight'}"


def number(value: float) -> str:
    """Three digits that count, or all of a whole number."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
