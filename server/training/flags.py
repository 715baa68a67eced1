"""The flags of `continuo train`, made from the fields of TrainConfig where they set a number."""

from __future__ import annotations

import argparse
from pathlib import Path

from server.training.config import OPTIMIZERS, TrainConfig
from server.training.export import DTYPES

DEFAULTS = TrainConfig()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_data_arguments(parser.add_argument_group("data"))
    _add_model_arguments(parser.add_argument_group("model"))
    _add_recipe_arguments(parser.add_argument_group("recipe"))
    _add_run_arguments(parser.add_argument_group("run"))
    _add_export_arguments(parser.add_argument_group("export, to DIR/model when the run ends"))


Group = argparse._ArgumentGroup


def _add_export_arguments(group: Group) -> None:
    group.add_argument(
        "--export-only", action="store_true", help="export the last checkpoint in --out"
    )
    group.add_argument(
        "--export-dtype", choices=tuple(DTYPES), default="bf16", help="default %(default)s"
    )
    group.add_argument("--title", default="A small GPT", help="title of the model card")
    group.add_argument(
        "--data-card",
        type=Path,
        metavar="FILE",
        help="Markdown on data and licences for the model card; sections `## Training` and "
        "`## Limits`, if any, are added to those of the card",
    )
    group.add_argument(
        "--attach",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="files to copy beside the model",
    )


def _add_data_arguments(group: Group) -> None:
    group.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="training text, .txt or .txt.xz; a line holding only <|endoftext|> ends a document",
    )
    group.add_argument(
        "--valid", type=Path, required=True, metavar="FILE", help="held-out text, same form"
    )
    group.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where checkpoints and model go"
    )
    group.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="use this tokenizer.json instead of training one",
    )


def _add_model_arguments(group: Group) -> None:
    for name, text in (
        ("vocab-size", "size of the byte-level BPE vocabulary"),
        ("n-layer", "transformer blocks"),
        ("n-head", "attention heads a block"),
        ("n-embd", "width"),
        ("context", "longest sequence, in tokens"),
    ):
        default = getattr(DEFAULTS, name.replace("-", "_"))
        group.add_argument(f"--{name}", type=int, help=f"{text} (default {default})")
    group.add_argument(
        "--init-from",
        type=Path,
        metavar="DIR",
        help="begin from the weights, shape and tokenizer of a model that continuo train exported",
    )


def _add_recipe_arguments(group: Group) -> None:
    for name, kind, text in (
        ("batch-size", int, "windows of `context` tokens a step"),
        ("steps", int, "optimiser steps in all; on resume it may change while decay has not begun"),
        ("lr", float, "peak learning rate, for both optimisers"),
        ("weight-decay", float, "decoupled weight decay of matrices and embeddings"),
        ("warmup", int, "steps of linear warm-up"),
        ("decay", float, "last share of the steps, over which lr falls linearly to nearly 0"),
        ("seed", int, "fixes initial weights and data order"),
    ):
        default = getattr(DEFAULTS, name.replace("-", "_"))
        group.add_argument(
            f"--{name}", type=kind, default=default, help=f"{text} (default {default})"
        )
    group.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        default=DEFAULTS.optimizer,
        help="muon: Muon for hidden matrices, AdamW for the rest; adamw: AdamW for all (default %(default)s)",
    )


def _add_run_arguments(group: Group) -> None:
    group.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default %(default)s"
    )
    group.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)"
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile: a minute to start, then about 1.4x faster",
    )
    group.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in --out"
    )
    group.add_argument(
        "--grid",
        nargs="+",
        metavar="KEY=V1,V2",
        help="first train all combinations briefly, e.g. lr=1e-3,3e-3 n_layer=4,6; take the best",
    )
    group.add_argument(
        "--grid-steps", type=int, default=200, help="steps of each of them (default %(default)s)"
    )
    group.add_argument("--grid-only", action="store_true", help="stop after the grid")
    group.add_argument(
        "--eval-every", type=int, default=500, metavar="STEPS", help="default %(default)s"
    )
    group.add_argument(
        "--save-every", type=int, default=250, metavar="STEPS", help="default %(default)s"
    )
