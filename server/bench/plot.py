"""The picture of a benchmark: how latencies of one load are spread, or how they grow over several."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.bench.load import LoadRun
from server.bench.measures import Summary
from server.errors import ConfigError

_LATENCIES = (
    ("ttft_ms", "time to first token"),
    ("itl_ms", "gap between events"),
    ("e2e_ms", "end to end"),
)
_TITLE_WIDTH = 150  # characters
_COLOURS = ("#0072b2", "#e69f00", "#d55e00")  # told apart also by colour-blind eyes


def require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--png needs the package matplotlib: pip install 'continuo[bench]'.")


def draw(path: Path, title: str, runs: Sequence[LoadRun], summaries: Sequence[Summary]) -> None:
    """Writes a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 4))
    if len(summaries) == 1:
        _draw_spreads(axes, runs[0])
    else:
        _draw_sweep(axes, summaries)
    lines = [line for part in title.splitlines() for line in textwrap.wrap(part, _TITLE_WIDTH)]
    figure.suptitle("\n".join(lines), fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110, format="png")
    pyplot.close(figure)


def _draw_spreads(axes: Any, run: LoadRun) -> None:
    ok = [record for record in run.records if record.is_ok]
    values_s = (
        [record.ttft_s for record in ok if record.ttft_s is not None],
        [gap_s for record in ok for gap_s in record.gaps_s],
        [record.e2e_s for record in ok],
    )
    for axis, (_, label), values, colour in zip(axes, _LATENCIES, values_s, _COLOURS, strict=True):
        ordered = sorted(value * 1e3 for value in values)
        shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
        axis.plot(ordered, shares, color=colour, drawstyle="steps-post")
        axis.set(xlabel=f"{label}, ms", ylim=(0, 1.02), xlim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of them at most this long")


def _draw_sweep(axes: Any, summaries: Sequence[Summary]) -> None:
    loads = [summary.load for summary in summaries]
    unit = "requests/s" if summaries[0].kind == "rate" else "requests in flight"
    for axis, (name, label) in zip(axes, _LATENCIES[:2], strict=False):
        for part, colour in zip(("p50", "p90", "p99"), _COLOURS, strict=True):
            spreads = [getattr(summary, name) for summary in summaries]
            values = [getattr(found, part) if found else float("nan") for found in spreads]
            axis.plot(loads, values, marker="o", color=colour, label=part)
        axis.set(xlabel=unit, ylabel=f"{label}, ms", ylim=(0, None))
        axis.legend()
    axes[2].plot(
        loads, [summary.output_tokens_per_s for summary in summaries], marker="o", color=_COLOURS[0]
    )
    axes[2].set(xlabel=unit, ylabel="output tokens/s", ylim=(0, None))
    for axis in axes:
        axis.grid(alpha=0.3)
