"""Checkpoints: a directory `step-N` with `state.safetensors` (weights and optimiser state) and
`state.json`. It appears whole or not at all: written beside, synced, then renamed. The data order
and all random choices follow from seed and step, so there is no generator state in it.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from server.training.config import FIXED_ON_RESUME, TrainConfig
from server.training.errors import TrainingError
from server.training.model import GPT
from server.training.optimizer import load_state_tensors, state_tensors
from server.training.origin import Origin

TENSORS = "state.safetensors"
META = "state.json"
MODEL_PREFIX = "model|"
OPTIMIZER_PREFIX = "optimizer|"
NUM_KEPT = 2


@dataclass(frozen=True)
class Progress:
    """How far a run is. Times add up over its resumptions."""

    step: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    history: tuple[tuple[int, float], ...] = ()  # (step, valid bits per byte)
    origin: Origin | None = None  # None: began from random weights


def save_checkpoint(
    folder: Path, model: GPT, optimizers: list[Optimizer], config: TrainConfig, progress: Progress
) -> Path:
    tensors = {MODEL_PREFIX + name: value for name, value in model.state_dict().items()}
    for name, value in state_tensors(model, optimizers).items():
        tensors[OPTIMIZER_PREFIX + name] = value
    final = folder / f"step-{progress.step:08d}"
    temporary = folder / f"{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(
        {name: value.contiguous().cpu() for name, value in tensors.items()}, temporary / TENSORS
    )
    (temporary / META).write_text(
        json.dumps({"config": asdict(config), "progress": asdict(progress)}, indent=1)
    )
    for path in (temporary / TENSORS, temporary / META, temporary):
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _sync(folder)
    for old in list_checkpoints(folder)[:-NUM_KEPT]:
        shutil.rmtree(old)
    return final


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp")


def read_meta(checkpoint: Path) -> tuple[TrainConfig, Progress]:
    try:
        meta: dict[str, Any] = json.loads((checkpoint / META).read_text())
        fields = meta["progress"]
        history = tuple((int(step), float(value)) for step, value in fields.pop("history"))
        origin = fields.pop("origin", None)
        progress = Progress(
            **fields, history=history, origin=Origin(**origin) if origin is not None else None
        )
        return TrainConfig(**meta["config"]), progress
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{checkpoint / META} is not a readable checkpoint: {error}") from None


def check_same_run(saved: TrainConfig, asked: TrainConfig) -> None:
    for name in FIXED_ON_RESUME:
        before, now = getattr(saved, name), getattr(asked, name)
        if before != now:
            raise TrainingError(
                f"cannot resume: the checkpoint has {name} {before}, this run asks for {now}; "
                "use the same value or another --out"
            )


def load_weights(checkpoint: Path, model: GPT) -> None:
    model.load_state_dict(_read_tensors(checkpoint, MODEL_PREFIX))


def load_optimizers(checkpoint: Path, model: GPT, optimizers: list[Optimizer]) -> None:
    load_state_tensors(model, optimizers, _read_tensors(checkpoint, OPTIMIZER_PREFIX))


def _read_tensors(checkpoint: Path, prefix: str) -> dict[str, Tensor]:
    try:
        tensors = load_file(checkpoint / TENSORS)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{checkpoint / TENSORS} is damaged or missing: {error}") from None
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
