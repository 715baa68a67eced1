"""config.json: every field is honoured, refused by name, or ignored because it changes nothing."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config
from transformers.models.gpt2 import modeling_gpt2

from server.errors import ModelError
from server.model.config import _ALIASES, _USED, MAX_CONFIG_BYTES, GPTConfig, read_config
from server.model.config_fields import FIXED, ignored_in_words, is_harmless, words
from tests.model.checkpoints import CONFIG, NANOGPT_CONFIG
from tests.model.published_configs import PUBLISHED


def read(directory: Path, config: dict[str, Any] | str) -> GPTConfig:
    text = config if isinstance(config, str) else json.dumps(config)
    (directory / "config.json").write_text(text)
    return read_config(directory)


def test_published_gpt2_is_read(tmp_path: Path) -> None:
    published = {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768,
        "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
        "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
        "summary_type": "cls_index", "summary_use_proj": True, "vocab_size": 50257,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    }  # fmt: skip
    config = read(tmp_path, published)
    assert config == GPTConfig(50257, 1024, 768, 12, 12, n_inner=3072, eos_token_id=50256)
    assert config.head_dim == 64
    assert config.attention_scale(3) == 0.125


@pytest.mark.parametrize("values", PUBLISHED.values(), ids=PUBLISHED)
def test_what_is_published_is_read(tmp_path: Path, values: dict[str, Any]) -> None:
    config = read(tmp_path, values)
    assert (config.n_embd, config.vocab_size) == (values["n_embd"], values["vocab_size"])
    assert config.eos_token_id == values.get("eos_token_id")
    if config.layout == "huggingface":
        assert config.ignored == (), "somebody would be warned of a published model"


def test_all_that_transformers_reads_is_known() -> None:
    """Of a field that its GPT-2 reads we must know whether it changes what is computed."""
    source = inspect.getsource(modeling_gpt2)
    read = set(re.findall(r"\bconfig\.(\w+)", source)) | set(GPT2Config().to_dict())
    known = _USED | FIXED.keys() | _ALIASES.keys()
    assert {name for name in read if name not in known and not is_harmless(name)} == set()
    assert len(read) > 30


@pytest.mark.parametrize(
    "name",
    sorted(
        words(
            """
            rope_theta rotary_dim alibi position_bias window_size sliding_window attention_types
            parallel_attn use_parallel_residual multi_query n_head_kv num_experts mup_width_scale
            embeddings_scale output_logits_scale attn_logit_softcapping qk_norm use_rms_norm
            normalization_type mlp_type qkv_bias hidden_act quantization embedding_multiplier
            residual_scale final_logit_softcapping pruned tie_weights kv_heads act_fn layer_types
            clip_qkv attention_softmax_in_fp32 layer_norm_eps n_inner_gated lora_rank adapters
            load_in_8bits
            """
        )
    ),
)
def test_a_field_that_by_its_name_changes_arithmetic_is_refused(tmp_path: Path, name: str) -> None:
    for base in (CONFIG, NANOGPT_CONFIG):
        with pytest.raises(ModelError, match=f"'{name}' is not a field we know"):
            read(tmp_path, base | {name: 1})


def test_other_unknown_fields_are_ignored_and_named(tmp_path: Path) -> None:
    extra = {"dataset": "x", "license": "mit", "european_properties": 1, "training_steps": 5}
    for base in (CONFIG, NANOGPT_CONFIG):
        config = read(tmp_path, base | extra | {"_private": 1, "auto_map": {}, "my_dropout": 0.1})
        assert config.ignored == tuple(extra)
        assert config == read(tmp_path, base)
    assert (
        ignored_in_words(config.ignored) == "dataset, license, european_properties, training_steps"
    )


def test_what_is_said_of_ignored_fields_is_short_and_plain() -> None:
    hostile = ["\x1b[2J", "a\nb", "/etc/passwd", "x" * 61, "ä", ""]
    assert ignored_in_words(hostile) == "6 fields that we do not know"
    assert ignored_in_words([*hostile, "name"]) == "name and 6 more"
    many = ignored_in_words([f"field_{i}" for i in range(100_000)])
    assert many.endswith("field_7 and 99992 more")


def test_fields_that_change_arithmetic_are_honoured(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        CONFIG | {
            "n_inner": 7, "layer_norm_epsilon": 1e-3, "activation_function": "gelu",
            "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True,
            "tie_word_embeddings": False, "n_embd": 6,
        },
    )  # fmt: skip
    assert (config.n_inner, config.layer_norm_epsilon, config.activation) == (7, 1e-3, "gelu_erf")
    assert not config.tie_word_embeddings
    assert config.attention_scale(1) == 0.5


def test_nanogpt_is_known_by_its_block_size(tmp_path: Path) -> None:
    config = read(tmp_path, NANOGPT_CONFIG | {"bias": False, "dropout": 0.2})
    assert (config.layout, config.n_positions, config.has_bias) == ("nanogpt", 8, False)
    assert config.activation == "gelu_tanh"  # as the file says
    silent = {
        name: NANOGPT_CONFIG[name] for name in NANOGPT_CONFIG if name != "activation_function"
    }
    assert read(tmp_path, silent).activation == "gelu_erf"  # nanoGPT's own


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, "architectures"),
        ({"activation_function": "relu"}, "activation_function 'relu'"),
        ({"add_cross_attention": True}, "add_cross_attention True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"position_embedding_type": "rotary"}, "position_embedding_type"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"rope_theta": 1e4}, "'rope_theta' is not a field we know"),
        ({"hidden_size": 8}, "hidden_size 8 is not the n_embd 4"),
        ({"max_position_embeddings": 4}, "max_position_embeddings 4 is not the n_positions 8"),
        ({"num_key_value_heads": 1}, "num_key_value_heads 1 is not the n_head 2"),
        ({"hidden_size": [4]}, "hidden_size [4] is not the n_embd 4"),
        ({"n_head": 3}, "n_embd 4 is not a multiple of n_head 3"),
        ({"n_layer": 0}, "n_layer must be"),
        ({"n_layer": True}, "n_layer must be"),
        ({"n_embd": 1 << 40}, "n_embd must be"),
        ({"vocab_size": "11"}, "vocab_size must be"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon must be"),
        ({"scale_attn_weights": 1}, "scale_attn_weights must be true or false"),
        ({"eos_token_id": 11}, "eos_token_id must be"),
        ({"n_inner": -1}, "n_inner must be"),
    ],
)
def test_refused_by_name(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=r"^[^\n]*config\.json: [^\n]*\.$") as caught:
        read(tmp_path, CONFIG | change)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[1]", "one JSON object"),
        ("{", "not valid JSON"),
        ('{"n_embd": NaN}', "NaN"),
        ('{"n_embd": 4, "n_embd": 8}', "'n_embd' appears twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"n_embd": ' + "9" * 10_000 + "}", "not valid JSON"),
        (" " * (MAX_CONFIG_BYTES + 1), "larger than"),
    ],
)
def test_json_that_is_no_config(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ModelError) as caught:
        read(tmp_path, text)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_digits_are_counted_before_they_are_read(tmp_path: Path) -> None:
    """An integer of a million of them takes Python seconds where it sets itself no limit."""
    if limit := getattr(sys, "get_int_max_str_digits", None):  # from 3.10.7 on
        before = limit()
        sys.set_int_max_str_digits(0)
    try:
        with pytest.raises(ModelError, match="a number has 1000000 digits"):
            read(tmp_path, '{"n_embd": ' + "9" * 1_000_000 + "}")
    finally:
        if limit:
            sys.set_int_max_str_digits(before)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        read_config(tmp_path)
