"""What is known of the fields of `config.json` by their names alone: which say nothing of the arithmetic,
which would change it. Knows no values but those of FIXED.

transformers' GPT-2 reads a closed set of fields, whatever else a file holds; a test compares it with ours.
So an unknown field changes nothing there. But who forks GPT-2 adds fields, and serving such a model as a
plain one would give wrong text without a word: hence a name that speaks of the forward pass is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Fields that would change arithmetic, with the only value we compute.
FIXED: dict[str, object] = {
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
    "position_embedding_type": "absolute",
    "tie_encoder_decoder": False,
}

# Fields that say nothing about the forward pass, though some sound as if they did.
# reorder_and_upcast_attn asks for scores in fp32: ours always are.
_HARMLESS = words(
    """
    architectures attn_implementation attn_pdrop bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty
    do_sample dropout dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size experiment
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    grad_clip gradient_checkpointing id2label initializer_range is_composition is_decoder label2id
    length_penalty max_grad_norm max_length min_length model_max_length model_type n_ctx n_special
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions
    output_hidden_states output_past output_scores pad_token_id predict_special_tokens prefix
    problem_type remove_invalid_values reorder_and_upcast_attn repetition_penalty resid_pdrop
    return_dict return_dict_in_generate sep_token_id summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj suppress_tokens task_specific_params
    temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version type_vocab_size typical_p unk_token_id use_bfloat16 use_cache
    """
)
# Fields by which a directory names code of its own, or asks for it to be run. None is ever looked at, nor one
# that begins with an underscore, which is how transformers spells what is private to it.
_ABOUT_CODE = words("auto_map custom_pipelines trust_remote_code remote_code code_revision")
# Of what other GPTs have, GPT-2 has not, and its tensors need not show: scores that are scaled, capped or
# masked otherwise, other norms and activations, parallel residuals, experts, tied or low-rank weights...
_ARITHMETIC = re.compile(
    "activation|adapter|alibi|attention|attn|bias|bits|clip|embd|embed|epsilon|expert|ffn|gated|head|hidden"
    "|inner|layer|logit|lora|mixer|mlp|moe|multiplier|norm|parallel|position|prun|quant|recur|residual|rotary"
    "|router|scal(e|ing)|sliding|softcap|softmax|sparse|window"
    "|(^|[^a-z])(act|cap|conv|cross|eps|gqa|kv|mqa|mup|qk|qkv|query|rope|tied?)([^a-z]|$)"
)
_MAX_SHOWN = 8


def is_harmless(name: str) -> bool:
    """Dropout is for training."""
    return name in _HARMLESS or name in _ABOUT_CODE or name.startswith("_") or "drop" in name


def is_about_arithmetic(name: str) -> bool:
    return _ARITHMETIC.search(name.lower()) is not None


def ignored_in_words(names: Sequence[str]) -> str:
    """For a log line. Whoever made the file has chosen them: only what looks like a name is shown."""
    shown = [name for name in names if re.fullmatch(r"[A-Za-z]\w{0,59}", name, re.ASCII)][
        :_MAX_SHOWN
    ]
    num_others = len(names) - len(shown)
    if not shown:
        return f"{num_others} fields that we do not know"
    return ", ".join(shown) + (f" and {num_others} more" if num_others else "")
