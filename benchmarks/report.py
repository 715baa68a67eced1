"""What every benchmark shares: interleaved timing, the machine's facts, table, JSON and plot.

These machines are noisy, so figures are medians over repeats, and ratios are medians of the ratios of
neighbouring repeats (A B C, A B C, ...), never quotients of lone absolute times.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "numba", "numpy", "transformers", "fastapi", "uvicorn", "msgspec")


def interleave(
    cases: Mapping[str, Callable[[], float]], repeats: int, warm_ups: int = 1
) -> dict[str, list[float]]:
    """Run every case in turn, `repeats` rounds; each case returns its own figure."""
    for _ in range(warm_ups):
        for case in cases.values():
            case()
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            samples[name].append(case())
    return samples


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the rounds' own ratios: slow minutes hit both sides of a round alike."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


@dataclass
class Report:
    """One benchmark's outcome: `rows` is the table, `samples` what it was computed from."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    plot: Callable[[Any], None] | None = None  # draws onto matplotlib axes
    program: str = "python -m benchmarks"  # whose arguments repeat it
    facts: dict[str, Any] = field(
        default_factory=dict
    )  # conditions of this benchmark, for the JSON

    def add(self, *row: Any) -> None:
        self.rows.append(row)

    def add_rates(self) -> None:
        """Rows, figures and a plot of `samples`, which are tokens/s by case."""
        for name, values in self.samples.items():
            self.add(name, statistics.median(values), min(values), max(values))
            self.figures[f"{name}_tokens_per_s"] = statistics.median(values)
        self.plot = self._plot_rates

    def _plot_rates(self, axes: Any) -> None:
        axes.boxplot(list(self.samples.values()), tick_labels=list(self.samples))
        axes.set_ylabel("tokens/s, all streams")
        axes.set_ylim(bottom=0)

    def print(self) -> None:
        cells = [[_cell(value) for value in row] for row in [self.columns, *self.rows]]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        print(f"\n{self.title}")
        for index, row in enumerate(cells):
            first, *rest = row
            numbers = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
            print("  " + "  ".join([first.ljust(widths[0]), *numbers]).rstrip())
            if index == 0:
                print("  " + "  ".join("-" * width for width in widths))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(self._document(), indent=1) + "\n")
        if self.plot is not None:
            _draw(folder / f"{self.name}.png", self.title, self.plot)
        print(f"  wrote {self.name}.json" + (f" and {self.name}.png" if self.plot else ""))

    def _document(self) -> dict[str, Any]:
        return {
            "benchmark": self.name,
            "title": self.title,
            "command": " ".join([self.program, *sys.argv[1:]]),
            "commit": _commit(),
            "machine": machine(),
            **({"facts": self.facts} if self.facts else {}),
            "figures": self.figures,
            "columns": self.columns,
            "rows": self.rows,
            "samples": self.samples,
        }


def machine() -> dict[str, Any]:
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "versions": versions,
    }


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=RESULTS.parent,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def _cell(value: Any) -> str:
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and value < 100
        else (f"{value:,.0f}" if isinstance(value, float) else str(value))
    )


def _draw(path: Path, title: str, plot: Callable[[Any], None]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    plot(axes)
    axes.set_title(title, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
