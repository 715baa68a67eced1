"""`continuo train`: flags in, exit status out. The composition root imports this lazily, and
nothing else does.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

from server.training.card import training_command
from server.training.checkpoint import list_checkpoints, load_weights, read_meta
from server.training.config import TrainConfig
from server.training.device import Compute, choose_compute
from server.training.errors import TrainingError
from server.training.flags import add_arguments
from server.training.grid import Trial, best_trial, format_table, parse_grid, run_grid, write_trials
from server.training.model import GPT
from server.training.origin import StartModel, read_start_model
from server.training.publish import FinishedRun, PublishOptions, publish, read_data_card
from server.training.run import (
    CHECKPOINTS,
    TOKENIZER,
    Data,
    RunOptions,
    StopSignal,
    prepare_data,
    train,
    train_briefly,
)

__all__ = ["add_arguments", "run"]

MODEL = "model"
GRID = "grid.json"


def run(args: argparse.Namespace) -> int:
    """Exit status: 0, or 128 + the signal that stopped it. Raises TrainingError for a fault of the
    user's.
    """
    compute = choose_compute(args.device, args.compile, args.threads)
    target = PublishOptions(
        args.out / MODEL,
        args.export_dtype,
        args.title,
        read_data_card(args.data_card),
        tuple(args.attach),
    )
    if args.export_only:
        return _export_last(args, compute, target)
    start = _read_start(args)
    config = _build_config(args, start)
    if args.grid:
        chosen, status = _choose(args, config, compute, start)
        if status or args.grid_only:
            return status
        config = chosen
    options = RunOptions(args.out, args.resume, args.eval_every, args.save_every)
    found = list_checkpoints(args.out / CHECKPOINTS) if args.resume else []
    data = _prepare(args, config, args.out / TOKENIZER if found else _tokenizer(args))
    trainer, status = train(config, compute, data, options, start)
    if status == 0:
        finished = FinishedRun(trainer.model, config, trainer.progress, compute, data)
        _publish(args, finished, target)
    return status


def _read_start(args: argparse.Namespace) -> StartModel | None:
    if args.init_from is None:
        return None
    if args.tokenizer is not None:
        raise TrainingError("--tokenizer: the model of --init-from brings its own")
    return read_start_model(args.init_from)


def _build_config(args: argparse.Namespace, start: StartModel | None) -> TrainConfig:
    """The shape comes from the model to begin from, else from the flags, else from the defaults."""
    given = {
        field.name: value
        for field in fields(TrainConfig)
        if (value := getattr(args, field.name)) is not None
    }
    if start is None:
        return TrainConfig(**given)
    for name, number in vars(start.shape).items():
        if given.setdefault(name, number) != number:
            raise TrainingError(
                f"--{name.replace('_', '-')} {given[name]}: "
                f"the model of --init-from has {name} {number}"
            )
    return TrainConfig(**given)


def _tokenizer(args: argparse.Namespace) -> Path | None:
    path: Path | None = args.init_from / TOKENIZER if args.init_from else args.tokenizer
    return path


def _prepare(args: argparse.Namespace, config: TrainConfig, tokenizer: Path | None) -> Data:
    return prepare_data(args.data, args.valid, tokenizer, config.vocab_size)


def _choose(
    args: argparse.Namespace, base: TrainConfig, compute: Compute, start: StartModel | None
) -> tuple[TrainConfig, int]:
    """The base config with the best choice of the grid, and an exit status."""
    choices = parse_grid(args.grid)
    if start is not None and (shape_keys := choices[0].keys() & vars(start.shape).keys()):
        raise TrainingError(
            f"--grid {min(shape_keys)}: the shape is that of the model of --init-from"
        )
    data: dict[int, Data] = {}
    stop = StopSignal()

    def train_once(config: TrainConfig) -> float:
        if config.vocab_size not in data:
            data[config.vocab_size] = _prepare(args, config, _tokenizer(args))
        return train_briefly(config, compute, data[config.vocab_size], stop, start)

    trials: list[Trial] = []
    with stop.installed():
        for trial in run_grid(base, choices, args.grid_steps, train_once):
            if stop():
                break
            trials.append(trial)
            write_trials(args.out / GRID, args.grid_steps, trials)
            print(format_table(trials), flush=True)
    if stop.number is not None:
        return base, 128 + stop.number
    best = best_trial(trials)
    print(f"best: {best.choice}, written to {args.out / GRID}")
    return replace(base, **best.choice), 0


def _export_last(args: argparse.Namespace, compute: Compute, target: PublishOptions) -> int:
    found = list_checkpoints(args.out / CHECKPOINTS)
    if not found:
        raise TrainingError(f"--export-only: no checkpoint in {args.out / CHECKPOINTS}")
    config, progress = read_meta(found[-1])
    model = GPT(config.shape())
    load_weights(found[-1], model)
    data = _prepare(args, config, args.out / TOKENIZER)
    _publish(args, FinishedRun(model, config, progress, compute, data), target)
    return 0


def _publish(args: argparse.Namespace, run: FinishedRun, target: PublishOptions) -> None:
    flags = ["--compile"] if args.compile else []
    flags += ["--threads", str(args.threads)] if args.threads else []
    if run.progress.origin is not None:
        flags = ["--init-from", run.progress.origin.name, *flags]
    command = training_command(run.config, args.data, args.valid, flags)
    value = publish(run, command, target)
    folder = target.folder
    print(f"{folder}: {value:.4f} bits per byte; try: continuo serve --model {folder}")
