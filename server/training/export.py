"""A trained model as a Hugging Face directory, which `continuo serve --model DIR` and transformers
both load.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from server.model.safetensors_file import SafetensorsFile
from server.model_files import ModelFiles
from server.training.bpe import END_OF_TEXT, end_of_text_id
from server.training.config import ModelShape
from server.training.model import GPT, INIT_STD, LAYER_NORM_EPSILON

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PREFIX = "transformer."
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


def export_model(folder: Path, model: GPT, tokenizer: Tokenizer, dtype: torch.dtype) -> None:
    """Writes weights, configuration and tokenizer into `folder`, over what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    separator = end_of_text_id(tokenizer)
    tensors = {name: value.to(dtype) for name, value in to_hugging_face(model.state_dict()).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    _write_json(folder / CONFIG, model_config(model.shape, separator, dtype))
    _write_json(
        folder / "generation_config.json", {"bos_token_id": separator, "eos_token_id": separator}
    )
    _write_json(folder / "tokenizer_config.json", tokenizer_config(model.shape.context))
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt


def read_weights(folder: Path, shape: ModelShape) -> GPT:
    """The exported weights as an fp32 training model, for figures and samples of what was really
    written.
    """
    model = GPT(shape)
    model.load_state_dict(read_tensors(ModelFiles(folder)))
    return model


def read_tensors(files: ModelFiles) -> dict[str, Tensor]:
    """An exported file's tensors under the training model's names and in its layout. Raises ModelError."""
    file = SafetensorsFile(files, WEIGHTS)
    tensors = {name.removeprefix(PREFIX): file.tensor(name) for name in file.entries}
    return from_hugging_face(tensors)


def is_conv1d(name: str) -> bool:
    """GPT-2's published layout keeps these weights as [in, out]."""
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def to_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The head is tied to wte, so it has no tensor of its own."""
    return {
        PREFIX + name: (value.T if is_conv1d(name) else value).cpu().contiguous()
        for name, value in state.items()
    }


def from_hugging_face(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.T if is_conv1d(name) else value for name, value in tensors.items()}


def model_config(shape: ModelShape, separator: int, dtype: torch.dtype) -> dict[str, Any]:
    """Every field that changes the arithmetic is written out, also where it has GPT-2's default."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": shape.vocab_size,
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "n_embd": shape.n_embd,
        "n_inner": None,
        "n_positions": shape.context,
        "n_ctx": shape.context,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "initializer_range": INIT_STD,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": separator,
        "eos_token_id": separator,
        "use_cache": True,
        "torch_dtype": _DTYPE_NAMES[dtype],
    }


def tokenizer_config(context: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "model_max_length": context,
    }


def attach_files(folder: Path, files: Iterable[Path]) -> None:
    for path in files:
        shutil.copyfile(path, folder / path.name)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
