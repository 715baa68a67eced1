"""How a run is shown: a tqdm bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

LINE_EVERY_STEPS = 20
SMOOTHING = 0.95


class ProgressReporter:
    """Shows loss (smoothed), tokens/s and time left. Writes to stderr; nothing depends on what it
    shows.
    """

    def __init__(self, steps: int, tokens_per_step: int) -> None:
        self._steps = steps
        self._tokens_per_step = tokens_per_step
        self._loss: float | None = None
        self._line_at = (0, time.monotonic())
        self._bar: tqdm[None] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=steps, unit="step", dynamic_ncols=True)

    def start(self, step: int) -> None:
        self._line_at = (step, time.monotonic())
        if self._bar is not None:
            self._bar.reset()
            self._bar.initial = self._bar.n = step

    def step(self, step: int, loss: float, lr: float) -> None:
        self._loss = loss if self._loss is None else SMOOTHING * self._loss + (1 - SMOOTHING) * loss
        if self._bar is not None:
            rate = self._bar.format_dict["rate"] or 0.0
            self._bar.set_postfix_str(
                f"loss {self._loss:.3f}, {rate * self._tokens_per_step:,.0f} tokens/s",
                refresh=False,
            )
            self._bar.update()
        elif step % LINE_EVERY_STEPS == 0 or step == self._steps:
            self._print_line(step, self._loss, lr)

    def _print_line(self, step: int, loss: float, lr: float) -> None:
        last_step, last_time = self._line_at
        seconds_per_step = (time.monotonic() - last_time) / max(1, step - last_step)
        self._line_at = (step, time.monotonic())
        left_min = seconds_per_step * (self._steps - step) / 60
        rate = self._tokens_per_step / seconds_per_step
        self.note(
            f"step {step}/{self._steps} loss {loss:.4f} lr {lr:.2e} "
            f"{rate:,.0f} tokens/s, {left_min:.0f} min left"
        )

    def note(self, message: str) -> None:
        if self._bar is not None:
            self._bar.write(message, file=sys.stderr)
        else:
            print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
