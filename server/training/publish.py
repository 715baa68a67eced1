"""From a finished run to a model directory with figures and samples: export, then judge what was
written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from server.training import card
from server.training.checkpoint import Progress
from server.training.config import TrainConfig
from server.training.device import Compute
from server.training.errors import TrainingError
from server.training.evaluate import careful_bits_per_byte, careful_stride
from server.training.export import DTYPES, attach_files, export_model, read_weights
from server.training.model import GPT, count_parameters
from server.training.run import Data
from server.training.sample import sample_text


@dataclass(frozen=True)
class PublishOptions:
    folder: Path
    dtype: str
    title: str
    data_card: str | None  # Markdown
    attach: tuple[Path, ...]

    def __post_init__(self) -> None:
        for path in self.attach:
            if not path.is_file():
                raise TrainingError(f"cannot read --attach {path}: no such file")


def read_data_card(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"cannot read --data-card {path}: {error}") from None


@dataclass(frozen=True)
class FinishedRun:
    model: GPT
    config: TrainConfig
    progress: Progress
    compute: Compute
    data: Data


def publish(run: FinishedRun, command: str, options: PublishOptions) -> float:
    """Exports the model and writes its card. Returns bits per byte of the exported weights."""
    export_model(options.folder, run.model, run.data.tokenizer, DTYPES[options.dtype])
    attach_files(options.folder, options.attach)
    exported = read_weights(options.folder, run.model.shape)
    value = careful_bits_per_byte(exported, run.data.held_out, run.config.context)
    facts = card.CardFacts(
        title=options.title,
        config=run.config,
        progress=run.progress,
        parameters=count_parameters(exported),
        dtype=options.dtype,
        bits_per_byte=value,
        stride=careful_stride(run.config.context),
        valid_bytes=run.data.held_out.num_bytes,
        valid_tokens=len(run.data.held_out.tokens) - 1,
        train_tokens=len(run.data.tokens),
        hardware=describe_hardware(run.compute),
        command=command,
        data_card=options.data_card,
        samples=_draw_samples(exported, run.data),
    )
    (options.folder / "README.md").write_text(card.render_card(facts), encoding="utf-8")
    return value


def _draw_samples(model: GPT, data: Data) -> list[tuple[str, str]]:
    return [
        (
            prompt,
            sample_text(
                model,
                data.tokenizer,
                prompt,
                card.SAMPLE_TOKENS,
                card.SAMPLE_TEMPERATURE,
                card.SAMPLE_SEED,
            ),
        )
        for prompt in card.SAMPLE_PROMPTS
    ]


def describe_hardware(compute: Compute) -> str:
    precision = "bf16 matmuls" if compute.use_bf16 else "fp32"
    if compute.device.type == "cuda":
        return f"one {torch.cuda.get_device_name()}, {precision}"
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}, {precision}"
