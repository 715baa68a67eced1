"""One training run: the step, and the loop that evaluates, saves, reports and stops when asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from server.training.checkpoint import (
    Progress,
    check_same_run,
    load_optimizers,
    load_weights,
    read_meta,
    save_checkpoint,
)
from server.training.config import TrainConfig
from server.training.data import WindowSampler
from server.training.device import Compute
from server.training.errors import TrainingError
from server.training.evaluate import HeldOut, bits_per_byte, careful_bits_per_byte
from server.training.model import GPT, init_weights
from server.training.optimizer import build_optimizers, set_lr
from server.training.origin import Origin, StartModel
from server.training.schedule import lr_scale

MAX_GRAD_NORM = 1.0


class Reporter(Protocol):
    def step(self, step: int, loss: float, lr: float) -> None: ...
    def note(self, message: str) -> None: ...


class Trainer:
    """Owns model, optimisers and progress. `should_stop` is asked after every step."""

    def __init__(
        self,
        config: TrainConfig,
        compute: Compute,
        sampler: WindowSampler,
        held_out: HeldOut,
        reporter: Reporter,
        checkpoints: Path | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config = config
        self.compute = compute
        self.sampler = sampler
        self.held_out = held_out
        self.reporter = reporter
        self.checkpoints = checkpoints
        self.should_stop = should_stop
        self.progress = Progress()
        self.model = GPT(config.shape())
        init_weights(self.model, torch.Generator().manual_seed(config.seed))
        self.model.to(compute.device)
        self.optimizers = build_optimizers(self.model, config)
        self._forward = (
            torch.compile(self.model, dynamic=False) if compute.use_compile else self.model
        )

    def begin_from(self, start: StartModel) -> float:
        """Takes the weights of another model and returns their bits per byte. Optimiser state and
        step count start anew.
        """
        start.load_into(self.model)
        value = careful_bits_per_byte(self.model, self.held_out, self.config.context)
        self.progress = Progress(origin=Origin(start.name, start.sha256, value))
        return value

    def resume(self, checkpoint: Path) -> None:
        saved, progress = read_meta(checkpoint)
        check_same_run(saved, self.config)
        if progress.step > self.config.steps:
            raise TrainingError(
                f"cannot resume: the checkpoint is at step {progress.step}, "
                f"beyond --steps {self.config.steps}"
            )
        load_weights(checkpoint, self.model)
        load_optimizers(checkpoint, self.model, self.optimizers)
        self.progress = progress

    def summed_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        device = self.compute.device
        with self.compute.autocast():
            loss: Tensor = self._forward(inputs.to(device), targets.to(device))
        return loss

    def train_step(self, step: int) -> float:
        """Runs one optimiser step and returns its mean loss in nats per token."""
        config = self.config
        lr = config.lr * lr_scale(step, config.steps, config.warmup, config.decay)
        set_lr(self.optimizers, lr)
        inputs, targets = self.sampler.batch(step)
        loss = self.summed_loss(inputs, targets) / targets.numel()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        value = float(loss.detach())
        self.reporter.step(step + 1, value, lr)
        return value

    def evaluate(self) -> float:
        """Bits per byte over windows that do not overlap; the final figure of a model is taken more
        carefully.
        """
        context = self.config.context
        return bits_per_byte(
            self.summed_loss, self.held_out, context, context, self.config.batch_size
        )

    def run(self, eval_every: int, save_every: int) -> bool:
        """Trains to the last step; False if stopped before, with a checkpoint saved either way."""
        started_at = self.progress
        wall, cpu = time.monotonic(), time.process_time()

        def advance(step: int) -> None:
            self.progress = replace(
                self.progress,
                step=step,
                wall_s=started_at.wall_s + time.monotonic() - wall,
                cpu_s=started_at.cpu_s + time.process_time() - cpu,
            )

        for step in range(started_at.step, self.config.steps):
            self.train_step(step)
            done = step + 1
            is_last = done == self.config.steps
            if is_last or done % eval_every == 0:
                self._evaluate_and_note(done)
            advance(done)
            stop = self.should_stop()
            if is_last or stop or done % save_every == 0:
                self._save()
            if stop and not is_last:
                return False
        return True

    def _evaluate_and_note(self, step: int) -> None:
        value = self.evaluate()
        self.progress = replace(self.progress, history=(*self.progress.history, (step, value)))
        self.reporter.note(f"step {step}: valid {value:.4f} bits per byte")

    def _save(self) -> None:
        if self.checkpoints is not None:
            save_checkpoint(
                self.checkpoints, self.model, self.optimizers, self.config, self.progress
            )
