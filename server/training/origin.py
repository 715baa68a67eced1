"""The weights that a run begins from: a model directory in the layout that `export.py` writes,
checked and read. What is wrong with one is said before any training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.model.config import MAX_CONFIG_BYTES
from server.model.strict_json import parse_object
from server.model_files import ModelFiles
from server.training.config import ModelShape
from server.training.errors import TrainingError
from server.training.export import CONFIG, WEIGHTS, model_config, read_tensors
from server.training.model import GPT

SHAPE_KEYS = {
    "vocab_size": "vocab_size",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "context": "n_positions",
}
ARITHMETIC_KEYS = (
    "model_type",
    "activation_function",
    "layer_norm_epsilon",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "add_cross_attention",
    "tie_word_embeddings",
)


@dataclass(frozen=True)
class Origin:
    """What a checkpoint and a card keep of the model a run began from."""

    name: str  # of its directory
    sha256: str  # of its model.safetensors
    bits_per_byte: float  # on the held-out text of the run, before it


@dataclass(frozen=True)
class StartModel:
    """A directory that passed all checks, its weights still on disk."""

    files: ModelFiles
    shape: ModelShape
    sha256: str

    @property
    def folder(self) -> Path:
        return self.files.directory

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def load_into(self, model: GPT) -> None:
        """Raises ModelError or TrainingError unless the file holds just the model's tensors, all finite."""
        model.load_state_dict(_read_checked(self.files, model))


def read_start_model(folder: Path) -> StartModel:
    """Raises ModelError, or TrainingError for a directory that `continuo train` could not have exported."""
    files = ModelFiles(folder)
    shape = _read_shape(files)
    digest = files.digest(WEIGHTS)
    with torch.device("meta"):  # a shape alone: config.json may claim more than memory holds
        model = GPT(shape)
    _read_checked(files, model)  # here too, so that a bad file is refused before any other work
    return StartModel(files, shape, digest)


def check_same_origin(saved: Origin | None, start: StartModel | None) -> None:
    """Without `start` a run goes on from whatever its checkpoint says."""
    if start is None or (saved is not None and saved.sha256 == start.sha256):
        return
    before = f"began from {saved.name} with other weights" if saved else "began from random weights"
    raise TrainingError(
        f"cannot resume: the checkpoint {before}, this run asks for --init-from {start.folder}; "
        "leave --init-from out or use another --out"
    )


def _read_shape(files: ModelFiles) -> ModelShape:
    path = files.directory / CONFIG
    fields = parse_object(files.read(CONFIG, MAX_CONFIG_BYTES), str(path))
    try:
        numbers = {name: fields[key] for name, key in SHAPE_KEYS.items()}
    except KeyError as error:
        raise TrainingError(f"{path} does not give {error}") from None
    for name, number in numbers.items():
        if type(number) is not int:
            raise TrainingError(
                f"{path}: {SHAPE_KEYS[name]} must be a whole number, not {number!r}"
            )
    shape = ModelShape(**numbers)
    _check_arithmetic(path, fields, shape)
    return shape


def _check_arithmetic(path: Path, fields: dict[str, Any], shape: ModelShape) -> None:
    """Other arithmetic over the same tensors would train, from a wrong model, without a word."""
    ours = model_config(shape, separator=0, dtype=torch.float32)
    for key in ARITHMETIC_KEYS:
        if fields.get(key, ours[key]) != ours[key]:
            raise TrainingError(
                f"{path} has {key} {fields[key]!r}: continuo train only knows {ours[key]!r}"
            )
    if fields.get("n_inner") not in (None, 4 * shape.n_embd):
        raise TrainingError(
            f"{path} has n_inner {fields['n_inner']!r}: continuo train only knows 4 * n_embd"
        )


def _read_checked(files: ModelFiles, model: GPT) -> dict[str, Tensor]:
    path = files.directory / WEIGHTS
    tensors = read_tensors(files)
    expected = model.state_dict()
    for name in sorted(expected.keys() ^ tensors.keys()):
        fault = "has no" if name in expected else "has an unknown"
        raise TrainingError(f"{path} {fault} tensor {name}")
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            raise TrainingError(
                f"{path}: {name} is {list(value.shape)}, "
                f"but {CONFIG} asks for {list(expected[name].shape)}"
            )
        if not (value.is_floating_point() and bool(value.isfinite().all())):
            raise TrainingError(f"{path}: {name} holds values that are not finite numbers")
    return tensors
