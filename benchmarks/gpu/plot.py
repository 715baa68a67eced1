"""gpu.png: each goal that was measured, as a share of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.goals import Judged

FILE = "gpu.png"
_COLOURS = {"met": "tab:green", "missed": "tab:red"}


def draw(path: Path, title: str, judged: Sequence[Judged]) -> bool:
    """False if matplotlib is missing or nothing was measured."""
    shown = [each for each in judged if each.measured and each.goal.value]
    try:
        import matplotlib
    except ImportError:
        return False
    if not shown:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 1 + 0.3 * len(shown)))
    axes.barh(
        [f"{each.goal.what}  ({each.goal.shown})" for each in shown],
        [score(each) for each in shown],
        color=[_COLOURS[each.verdict] for each in shown],
    )
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlabel("of the goal; beyond 1 it is met")
    axes.set_xlim(0, 2)
    axes.invert_yaxis()
    axes.tick_params(labelsize=7)
    axes.set_title(title, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def score(each: Judged) -> float:
    """1 where the goal is just met, more where it is passed."""
    assert each.measured
    share = each.measured / each.goal.value
    return share if each.goal.is_at_least else 1 / share
