"""What a GPT is made of, and our own strict reader of `config.json`. No torch in here.

A Hugging Face GPT-2 directory and a nanoGPT one are told apart by the file alone: nanoGPT's has
`block_size` and no `n_positions`. Every field is honoured, known to be harmless, or refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from server.errors import ModelError
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


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Fields that would change arithmetic, with the only value we compute.
_FIXED: dict[str, object] = {
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
    "position_embedding_type": "absolute",
    "tie_encoder_decoder": False,
}

# Fields that say nothing about the forward pass. reorder_and_upcast_attn asks for scores in fp32:
# ours always are.
_HARMLESS = _words(
    """
    _name_or_path _attn_implementation_autoset architectures attn_implementation attn_pdrop
    bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dropout dtype
    early_stopping embd_pdrop encoder_no_repeat_ngram_size experiment exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label
    initializer_range is_decoder label2id length_penalty max_length min_length model_type n_ctx
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
    output_attentions output_hidden_states output_past output_scores pad_token_id prefix
    problem_type remove_invalid_values reorder_and_upcast_attn repetition_penalty resid_pdrop
    return_dict return_dict_in_generate sep_token_id summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj suppress_tokens task_specific_params
    temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p use_bfloat16 use_cache
    """
)
# Fields by which a directory names code of its own, or asks for it to be run. None is ever looked at, nor one
# that begins with an underscore, which is how transformers spells what is private to it.
_ABOUT_CODE = _words("auto_map custom_pipelines trust_remote_code remote_code code_revision")
_USED = _words(
    """
    vocab_size n_positions n_embd n_layer n_head n_inner layer_norm_epsilon activation_function
    eos_token_id scale_attn_weights scale_attn_by_inverse_layer_idx tie_word_embeddings
    """
)
_NANOGPT_USED = _words(
    "vocab_size block_size n_embd n_layer n_head bias dropout activation_function eos_token_id"
)


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

    def check_known(self, known: frozenset[str]) -> None:
        for name in self._values:
            if name not in known and name not in _ABOUT_CODE and not name.startswith("_"):
                raise self.refuse(
                    repr(name[:80]),
                    "is not a field we know; it might change the arithmetic, so it is refused",
                )

    def check_fixed(self) -> None:
        for name, only in _FIXED.items():
            if self._values.get(name, only) not in (only, None):
                raise self.refuse(name, f"{self.shown(name)} is not supported (only {only!r})")


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
    fields.check_known(_USED | _HARMLESS | frozenset(_FIXED))
    shape = _shape(fields, "n_positions")
    return replace(
        shape,
        n_inner=fields.integer("n_inner", 1, 1 << 18, default=shape.n_inner),
        layer_norm_epsilon=fields.epsilon("layer_norm_epsilon", 1e-5),
        activation=fields.activation("gelu_new"),
        scale_attn_weights=fields.boolean("scale_attn_weights", True),
        scale_attn_by_inverse_layer_idx=fields.boolean("scale_attn_by_inverse_layer_idx", False),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", True),
    )


def _read_nanogpt(fields: _Fields) -> GPTConfig:
    fields.check_known(_NANOGPT_USED)
    return replace(
        _shape(fields, "block_size"),
        activation=fields.activation("gelu"),  # nanoGPT's nn.GELU() is the erf form
        has_bias=fields.boolean("bias", True),
        layout="nanogpt",
    )
