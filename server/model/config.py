"""What a GPT is made of, and our own strict reader of `config.json`. No torch in here.

A Hugging Face GPT-2 directory and a nanoGPT one are told apart by the file alone: nanoGPT's has
`block_size` and no `n_positions`. Every field is honoured, refused by name because it would or might change
the arithmetic, or ignored, as transformers' own GPT-2 ignores it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from server.errors import ModelError
from server.model.config_fields import FIXED, is_about_arithmetic, is_harmless, words
from server.model.strict_json import parse_object
from server.model_files import ModelFiles, as_model_files

Layout = Literal["huggingface", "nanogpt"]
Activation = Literal["gelu_tanh", "gelu_erf"]

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 1 << 20

_ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
}

_ARCHITECTURES = (None, ["GPT2LMHeadModel"], ["GPT2Model"])


_USED = words(
    """
    vocab_size n_positions n_embd n_layer n_head n_inner layer_norm_epsilon activation_function
    eos_token_id scale_attn_weights scale_attn_by_inverse_layer_idx tie_word_embeddings
    """
)
_NANOGPT_USED = words(
    "vocab_size block_size n_embd n_layer n_head bias activation_function eos_token_id"
)
# Other families' names for what we use, which transformers takes for GPT-2's own: they must say the same.
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_head",
    "intermediate_size": "n_inner",
}


@dataclass(frozen=True, slots=True)
class GPTConfig:
    """The shape and arithmetic of one GPT, in GPT-2's own words. Validated by the reader."""

    vocab_size: int
    n_positions: int  # context length in tokens
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    layer_norm_epsilon: float = 1e-5
    activation: Activation = "gelu_tanh"
    has_bias: bool = True  # False: nanoGPT's bias=False, no bias in any linear or LayerNorm
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    layout: Layout = "huggingface"
    eos_token_id: int | None = None
    ignored: tuple[str, ...] = field(default=(), compare=False)  # fields that nobody knows

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    def attention_scale(self, layer: int) -> float:
        """What the scores of a layer (counted from 0) are multiplied by."""
        scale = 1.0 / math.sqrt(self.head_dim) if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale


def read_config(directory: ModelFiles | str | Path) -> GPTConfig:
    """Read and validate `config.json` of a model directory. Raises ModelError."""
    files = as_model_files(directory)
    path = files.directory / CONFIG_FILE
    if not files.has(CONFIG_FILE):
        raise ModelError(f"{path} is missing: --model must name a model directory.")
    values = parse_object(files.read(CONFIG_FILE, MAX_CONFIG_BYTES), str(path))
    is_nanogpt = "block_size" in values and "n_positions" not in values
    return (_read_nanogpt if is_nanogpt else _read_huggingface)(_Fields(path, values))


class _Fields:
    """Typed, bounded access to the file's object; every refusal names file and field."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self._path = path
        self._values = values

    def refuse(self, name: str, why: str) -> ModelError:
        return ModelError(f"{self._path}: {name} {why}.")

    def shown(self, name: str) -> str:
        text = repr(self._values.get(name))
        return text if len(text) <= 60 else text[:57] + "..."

    def get(self, name: str, default: object) -> Any:
        return self._values.get(name, default)

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self._values.get(name)
        value = default if value is None else value
        if value is None:
            raise self.refuse(name, "is missing")
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(
                name, f"must be an integer from {low} to {high}, not {self.shown(name)}"
            )
        return value

    def boolean(self, name: str, default: bool) -> bool:
        value = self._values.get(name, default)
        if type(value) is not bool:
            raise self.refuse(name, f"must be true or false, not {self.shown(name)}")
        return value

    def epsilon(self, name: str, default: float) -> float:
        value = self._values.get(name, default)
        if type(value) not in (int, float) or not 1e-12 <= value <= 1e-1:
            raise self.refuse(name, f"must be from 1e-12 to 0.1, not {self.shown(name)}")
        return float(value)

    def activation(self, default: str) -> Activation:
        name = self._values.get("activation_function", default)
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            shown = self.shown("activation_function")
            known = ", ".join(_ACTIVATIONS)
            raise self.refuse("activation_function", f"{shown} is not supported (only {known})")
        return _ACTIVATIONS[name]

    def eos(self, vocab_size: int) -> int | None:
        if self._values.get("eos_token_id") is None:
            return None
        return self.integer("eos_token_id", 0, vocab_size - 1)

    def unknown(self, used: Collection[str]) -> tuple[str, ...]:
        """Those that can be ignored. Raises ModelError for one that may change the arithmetic."""
        names = [name for name in self._values if name not in used and not is_harmless(name)]
        for name in names:
            if is_about_arithmetic(name):
                raise self.refuse(
                    repr(name[:80]),
                    "is not a field we know, and by its name it might change the arithmetic",
                )
        return tuple(names)

    def check_fixed(self) -> None:
        for name, only in FIXED.items():
            if self._values.get(name, only) not in (only, None):
                raise self.refuse(name, f"{self.shown(name)} is not supported (only {only!r})")

    def check_aliases(self, config: GPTConfig) -> None:
        for name, ours in _ALIASES.items():
            value = self._values.get(name)
            if value is not None and value != getattr(config, ours):
                raise self.refuse(
                    name, f"{self.shown(name)} is not the {ours} {getattr(config, ours)}"
                )


def _shape(fields: _Fields, context_name: str) -> GPTConfig:
    n_embd = fields.integer("n_embd", 1, 1 << 16)
    n_head = fields.integer("n_head", 1, 1 << 10)
    if n_embd % n_head:
        raise fields.refuse("n_embd", f"{n_embd} is not a multiple of n_head {n_head}")
    vocab_size = fields.integer("vocab_size", 1, 1 << 20)
    return GPTConfig(
        vocab_size=vocab_size,
        n_positions=fields.integer(context_name, 1, 1 << 20),
        n_embd=n_embd,
        n_layer=fields.integer("n_layer", 1, 1 << 10),
        n_head=n_head,
        n_inner=4 * n_embd,
        eos_token_id=fields.eos(vocab_size),
    )


def _read_huggingface(fields: _Fields) -> GPTConfig:
    if fields.get("model_type", None) != "gpt2":
        shown = fields.shown("model_type")
        raise fields.refuse("model_type", f"{shown} is not supported (only 'gpt2')")
    if fields.get("architectures", None) not in _ARCHITECTURES:
        shown = fields.shown("architectures")
        raise fields.refuse("architectures", f"{shown} is not supported (only GPT2LMHeadModel)")
    fields.check_fixed()
    ignored = fields.unknown(_USED | FIXED.keys() | _ALIASES.keys())
    shape = _shape(fields, "n_positions")
    config = replace(
        shape,
        n_inner=fields.integer("n_inner", 1, 1 << 18, default=shape.n_inner),
        layer_norm_epsilon=fields.epsilon("layer_norm_epsilon", 1e-5),
        activation=fields.activation("gelu_new"),
        scale_attn_weights=fields.boolean("scale_attn_weights", True),
        scale_attn_by_inverse_layer_idx=fields.boolean("scale_attn_by_inverse_layer_idx", False),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", True),
        ignored=ignored,
    )
    fields.check_aliases(config)
    return config


def _read_nanogpt(fields: _Fields) -> GPTConfig:
    ignored = fields.unknown(_NANOGPT_USED)
    return replace(
        _shape(fields, "block_size"),
        ignored=ignored,
        activation=fields.activation("gelu"),  # nanoGPT's nn.GELU() is the erf form
        has_bias=fields.boolean("bias", True),
        layout="nanogpt",
    )
