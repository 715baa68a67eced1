from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from server.training.config import TrainConfig
from server.training.device import Compute
from server.training.errors import TrainingError
from server.training.grid import (
    Trial,
    best_trial,
    format_table,
    parse_grid,
    run_grid,
    trial_config,
    write_trials,
)
from server.training.run import Data, StopSignal, train_briefly

from .conftest import TINY


def test_axes_multiply() -> None:
    assert parse_grid(["lr=1e-3,3e-3", "n-layer=2,4", "optimizer=adamw"]) == [
        {"lr": 1e-3, "n_layer": 2, "optimizer": "adamw"},
        {"lr": 1e-3, "n_layer": 4, "optimizer": "adamw"},
        {"lr": 3e-3, "n_layer": 2, "optimizer": "adamw"},
        {"lr": 3e-3, "n_layer": 4, "optimizer": "adamw"},
    ]


@pytest.mark.parametrize("axis", ["steps=1,2", "colour=red", "lr", "n_layer=two", "lr=1e-3,"])
def test_wrong_axes_are_refused_by_name(axis: str) -> None:
    with pytest.raises(TrainingError, match=f"--grid {axis}"):
        parse_grid([axis])


def test_a_trial_is_a_whole_small_run() -> None:
    config = trial_config(TrainConfig(warmup=100), {"lr": 1.0}, steps=50)
    assert (config.lr, config.steps, config.warmup) == (1.0, 50, 5)


def test_an_impossible_combination_is_refused_before_anything_is_trained() -> None:
    trained = []
    choices = [{"n_head": 4}, {"n_head": 7}]
    with pytest.raises(TrainingError, match="n_embd 256 is not a multiple of n_head 7"):
        list(run_grid(TrainConfig(), choices, 10, lambda config: trained.append(config) or 1.0))
    assert trained == []


def test_the_lowest_wins_and_a_diverged_run_never() -> None:
    values = {1e-4: 3.0, 1e-3: 2.0, 1e-2: 2.5, 1.0: float("nan")}
    choices = [{"lr": lr} for lr in values]
    trials = list(run_grid(TrainConfig(), choices, 10, lambda config: values[config.lr]))
    assert best_trial(trials).choice == {"lr": 1e-3}
    first_row = format_table(trials).splitlines()[1]
    assert first_row.split()[:2] == ["0.001", "2.0000"]
    with pytest.raises(TrainingError, match="every run of the grid diverged"):
        best_trial([Trial({"lr": 1.0}, float("nan"), 1.0)])


def test_results_are_written_as_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "grid.json"
    write_trials(path, 10, [Trial({"lr": 1.0}, float("nan"), 1.5), Trial({"lr": 0.1}, 2.0, 1.5)])

    def refuse(name: str) -> None:
        raise AssertionError(name)

    written = json.loads(path.read_text(), parse_constant=refuse)
    assert written["steps"] == 10
    assert [trial["bits_per_byte"] for trial in written["trials"]] == [None, 2.0]


def test_real_trials_prefer_a_rate_that_learns(compute: Compute, data: Data) -> None:
    def train_once(config: TrainConfig) -> float:
        return train_briefly(config, compute, data, StopSignal())

    trials = list(run_grid(replace(TINY), [{"lr": 1e-6}, {"lr": 1e-2}], 20, train_once))
    assert best_trial(trials).choice == {"lr": 1e-2}
