"""Choosing hyperparameters: short trainings over the product of given values, judged by held-out
bits per byte.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from server.training.config import TrainConfig
from server.training.errors import TrainingError

Choice = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    choice: Choice
    bits_per_byte: float
    seconds: float


def parse_grid(axes: list[str]) -> list[Choice]:
    """["lr=1e-3,3e-3", "n_layer=4,6"] -> the product, as settings of TrainConfig."""
    kinds = get_type_hints(TrainConfig)
    values: dict[str, list[Any]] = {}
    for axis in axes:
        key, _, listed = axis.partition("=")
        name = key.replace("-", "_")
        if name not in kinds or name in ("steps", "warmup"):
            raise TrainingError(f"--grid {axis}: {key!r} is not a setting that a grid can vary")
        try:
            values[name] = [kinds[name](text) for text in listed.split(",")]
        except ValueError:
            raise TrainingError(
                f"--grid {axis}: write KEY=VALUE,VALUE with {kinds[name].__name__} values"
            ) from None
    return [
        dict(zip(values, product, strict=True)) for product in itertools.product(*values.values())
    ]


def trial_config(base: TrainConfig, choice: Choice, steps: int) -> TrainConfig:
    """A whole small run: its warm-up and decay fit into `steps`."""
    return replace(base, **choice, steps=steps, warmup=min(base.warmup, steps // 10))


def run_grid(
    base: TrainConfig, choices: list[Choice], steps: int, train_once: Callable[[TrainConfig], float]
) -> Iterator[Trial]:
    """`train_once` trains by a config and returns bits per byte. Trials come as they end."""
    for config, choice in [(trial_config(base, choice, steps), choice) for choice in choices]:
        started = time.monotonic()
        value = train_once(config)
        yield Trial(choice, value, time.monotonic() - started)


def best_trial(trials: list[Trial]) -> Trial:
    """The lowest figure; a diverged run (not a number) never wins. Of equals the first."""
    finite = [trial for trial in trials if math.isfinite(trial.bits_per_byte)]
    if not finite:
        raise TrainingError("every run of the grid diverged: try lower learning rates")
    return min(finite, key=lambda trial: trial.bits_per_byte)


def format_table(trials: list[Trial]) -> str:
    """Best first."""
    names = list(trials[0].choice)
    rows = [[*names, "bits/byte", "seconds"]]
    for trial in sorted(trials, key=lambda trial: trial.bits_per_byte):
        rows.append(
            [*map(str, trial.choice.values()), f"{trial.bits_per_byte:.4f}", f"{trial.seconds:.0f}"]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def write_trials(path: Path, steps: int, trials: list[Trial]) -> None:
    listed = [vars(trial) | {"bits_per_byte": _finite_or_none(trial)} for trial in trials]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"steps": steps, "trials": listed}, indent=1) + "\n")


def _finite_or_none(trial: Trial) -> float | None:
    """JSON has no NaN."""
    return trial.bits_per_byte if math.isfinite(trial.bits_per_byte) else None
