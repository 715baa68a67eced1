from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from server.training.checkpoint import TENSORS, list_checkpoints, read_meta, save_checkpoint
from server.training.config import TrainConfig
from server.training.data import WindowSampler
from server.training.device import Compute
from server.training.errors import TrainingError
from server.training.run import Data
from server.training.trainer import Trainer

from .conftest import TINY


class Recorder:
    """Stands in for the progress bar and keeps every loss."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def step(self, step: int, loss: float, lr: float) -> None:
        self.losses.append(loss)

    def note(self, message: str) -> None: ...


def make_trainer(config: TrainConfig, compute: Compute, data: Data, folder: Path | None) -> Trainer:
    sampler = WindowSampler(data.tokens, config.context, config.batch_size, config.seed)
    return Trainer(config, compute, sampler, data.held_out, Recorder(), folder)


def losses(trainer: Trainer) -> list[float]:
    assert isinstance(trainer.reporter, Recorder)
    return trainer.reporter.losses


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_tiny_model_learns_a_tiny_text(optimizer: str, compute: Compute, data: Data) -> None:
    trainer = make_trainer(replace(TINY, optimizer=optimizer, steps=120), compute, data, None)
    before = trainer.evaluate()
    assert trainer.run(eval_every=1000, save_every=1000)
    assert losses(trainer)[0] > 5.0  # ln 300 = 5.7: it starts out knowing nothing
    assert losses(trainer)[-1] < 1.0
    assert trainer.progress.history[-1][1] < before / 4


def test_one_seed_one_run(compute: Compute, data: Data) -> None:
    runs = []
    for seed in (1, 1, 2):
        trainer = make_trainer(replace(TINY, seed=seed, steps=5), compute, data, None)
        trainer.run(eval_every=1000, save_every=1000)
        runs.append(losses(trainer))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_resumed_equals_uninterrupted_bit_for_bit(
    optimizer: str, compute: Compute, data: Data, tmp_path: Path
) -> None:
    config = replace(TINY, optimizer=optimizer, steps=12)
    whole = make_trainer(config, compute, data, None)
    whole.run(eval_every=5, save_every=1000)
    first = make_trainer(config, compute, data, tmp_path)
    first.should_stop = lambda: len(losses(first)) == 7
    assert not first.run(eval_every=5, save_every=1000)
    second = make_trainer(config, compute, data, tmp_path)
    second.resume(list_checkpoints(tmp_path)[-1])
    assert second.run(eval_every=5, save_every=1000)
    assert losses(first) + losses(second) == losses(whole)
    assert second.progress.history == whole.progress.history
    for name, value in whole.model.state_dict().items():
        assert value.equal(second.model.state_dict()[name]), name


def test_only_whole_checkpoints_are_found_and_old_ones_go(
    compute: Compute, data: Data, tmp_path: Path
) -> None:
    trainer = make_trainer(replace(TINY, steps=8), compute, data, tmp_path)
    (tmp_path / "step-00000099.tmp").mkdir()
    trainer.run(eval_every=1000, save_every=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000006", "step-00000008"]


def test_a_failed_write_leaves_the_last_checkpoint(
    compute: Compute, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(replace(TINY, steps=4), compute, data, tmp_path)
    trainer.run(eval_every=1000, save_every=1000)
    whole = (tmp_path / "step-00000004" / TENSORS).read_bytes()

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.training.checkpoint.json.dumps", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(
            tmp_path, trainer.model, trainer.optimizers, trainer.config, trainer.progress
        )
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000004"]
    assert (tmp_path / "step-00000004" / TENSORS).read_bytes() == whole


@pytest.mark.parametrize(
    "other", [{"n_embd": 64}, {"n_layer": 1}, {"optimizer": "adamw"}, {"batch_size": 2}]
)
def test_another_run_cannot_resume(
    other: dict[str, int], compute: Compute, data: Data, tmp_path: Path
) -> None:
    config = replace(TINY, steps=1)
    make_trainer(config, compute, data, tmp_path).run(eval_every=1000, save_every=1000)
    trainer = make_trainer(replace(config, **other), compute, data, tmp_path)
    with pytest.raises(
        TrainingError, match=f"cannot resume: the checkpoint has {next(iter(other))}"
    ):
        trainer.resume(list_checkpoints(tmp_path)[-1])


def test_a_run_cannot_go_back(compute: Compute, data: Data, tmp_path: Path) -> None:
    config = replace(TINY, steps=2)
    make_trainer(config, compute, data, tmp_path).run(eval_every=1000, save_every=1000)
    trainer = make_trainer(replace(config, steps=1), compute, data, tmp_path)
    with pytest.raises(TrainingError, match="checkpoint is at step 2, beyond --steps 1"):
        trainer.resume(list_checkpoints(tmp_path)[-1])


def test_a_damaged_checkpoint_is_named(compute: Compute, data: Data, tmp_path: Path) -> None:
    config = replace(TINY, steps=1)
    make_trainer(config, compute, data, tmp_path).run(eval_every=1000, save_every=1000)
    checkpoint = list_checkpoints(tmp_path)[-1]
    tensors = checkpoint / TENSORS
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=r"state\.safetensors is damaged or missing"):
        make_trainer(config, compute, data, tmp_path).resume(checkpoint)
    (checkpoint / "state.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"state\.json is not a readable checkpoint"):
        read_meta(checkpoint)


RUNNER = """
import argparse, sys
from server.training import cli
parser = argparse.ArgumentParser()
cli.add_arguments(parser)
sys.exit(cli.run(parser.parse_args()))
"""


def test_a_terminated_run_saves_and_resumes(text_file: Path, tmp_path: Path) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in vars(TINY).items()]
    flags += [f"--data={text_file}", f"--valid={text_file}", f"--out={tmp_path}", "--threads=1"]
    command = [sys.executable, "-c", RUNNER, *flags]
    process = subprocess.Popen(
        [*command, "--steps=100000", "--save-every=1"], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list_checkpoints(tmp_path / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    step = read_meta(list_checkpoints(tmp_path / "checkpoints")[-1])[1].step
    assert step >= 1
    again = subprocess.run(
        [*command, f"--steps={step + 2}", "--resume"], capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 0, again.stderr
    assert f"resuming at step {step}" in again.stderr
    assert (tmp_path / "model" / "model.safetensors").is_file()
