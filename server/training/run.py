"""From files and numbers to a finished run: prepares tokenizer and data, resumes, trains, stops on
signals.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from server.training.bpe import encode_documents, load_tokenizer, train_tokenizer
from server.training.checkpoint import list_checkpoints, read_meta
from server.training.config import TrainConfig
from server.training.data import WindowSampler, read_documents
from server.training.device import Compute
from server.training.errors import TrainingError
from server.training.evaluate import HeldOut
from server.training.origin import StartModel, check_same_origin
from server.training.progress import ProgressReporter
from server.training.trainer import Trainer

CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Data:
    tokenizer: Tokenizer
    tokens: NDArray[np.int64]
    held_out: HeldOut


def prepare_data(
    data: list[Path], valid: Path, tokenizer_file: Path | None, vocab_size: int
) -> Data:
    """Reads and tokenises the texts; trains the tokenizer unless `tokenizer_file` is given."""
    documents = [document for path in data for document in read_documents(path)]
    held_out_documents = read_documents(valid)
    if tokenizer_file is None:
        tokenizer = train_tokenizer(documents, vocab_size)
    else:
        tokenizer = load_tokenizer(tokenizer_file)
        if tokenizer.get_vocab_size() != vocab_size:
            raise TrainingError(
                f"{tokenizer_file} has {tokenizer.get_vocab_size()} tokens, "
                f"but vocab_size is {vocab_size}"
            )
    num_bytes = sum(len(document.encode()) for document in held_out_documents)
    held_out = HeldOut(encode_documents(tokenizer, held_out_documents), num_bytes)
    return Data(tokenizer, encode_documents(tokenizer, documents), held_out)


class StopSignal:
    """Set by SIGINT or SIGTERM; the run ends after the step it is in. A second signal kills as
    usual.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self) -> bool:
        return self.number is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)

    @contextmanager
    def installed(self) -> Iterator[StopSignal]:
        watched = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._on_signal) for number in watched}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True)
class RunOptions:
    out: Path
    resume: bool
    eval_every: int
    save_every: int

    def __post_init__(self) -> None:
        if self.eval_every < 1 or self.save_every < 1:
            raise TrainingError("--eval-every and --save-every must be at least 1")


def train(
    config: TrainConfig,
    compute: Compute,
    data: Data,
    options: RunOptions,
    start: StartModel | None = None,
) -> tuple[Trainer, int]:
    """Runs or resumes a training in `options.out`; a new one begins from `start`, if given, else
    from random weights. Returns the trainer and 0, or 128 + the signal that ended it.
    """
    folder = options.out / CHECKPOINTS
    found = list_checkpoints(folder)
    if found and not options.resume:
        raise TrainingError(f"{folder} already holds checkpoints: give --resume or another --out")
    sampler = WindowSampler(data.tokens, config.context, config.batch_size, config.seed)
    stop = StopSignal()
    reporter = ProgressReporter(config.steps, config.tokens_per_step)
    trainer = Trainer(config, compute, sampler, data.held_out, reporter, folder, stop)
    options.out.mkdir(parents=True, exist_ok=True)
    data.tokenizer.save(str(options.out / TOKENIZER))
    if found:
        check_same_origin(read_meta(found[-1])[1].origin, start)
        trainer.resume(found[-1])
        reporter.note(f"resuming at step {trainer.progress.step} from {found[-1]}")
    elif start is not None:
        value = trainer.begin_from(start)
        reporter.note(f"beginning from {start.folder}: {value:.4f} bits per byte")
    reporter.start(trainer.progress.step)
    with stop.installed():
        is_finished = trainer.run(options.eval_every, options.save_every)
    reporter.close()
    if is_finished or stop.number is None:
        return trainer, 0
    reporter.note(
        f"stopped at step {trainer.progress.step}; the same command with --resume goes on"
    )
    return trainer, 128 + stop.number


def train_briefly(
    config: TrainConfig,
    compute: Compute,
    data: Data,
    stop: StopSignal,
    start: StartModel | None = None,
) -> float:
    """A trial of the grid: nothing is saved. Returns bits per byte at its end; NaN if stopped."""
    sampler = WindowSampler(data.tokens, config.context, config.batch_size, config.seed)
    reporter = ProgressReporter(config.steps, config.tokens_per_step)
    trainer = Trainer(config, compute, sampler, data.held_out, reporter, None, stop)
    if start is not None:
        start.load_into(trainer.model)
    reporter.start(0)
    trainer.run(eval_every=config.steps, save_every=config.steps)
    reporter.close()
    return trainer.progress.history[-1][1] if trainer.progress.history else float("nan")
