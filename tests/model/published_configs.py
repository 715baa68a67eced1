"""The fields in config.json of published models with GPT-2's arithmetic, by what code and logs quote of
them; not downloaded, so values that change nothing may differ.
"""

from __future__ import annotations

from typing import Any

_SUMMARY: dict[str, Any] = {
    "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True,
}  # fmt: skip
_DROPOUT = {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1}
_GPT2: dict[str, Any] = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "bos_token_id": 50256,
    "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
    "n_positions": 1024, "vocab_size": 50257, **_SUMMARY, **_DROPOUT,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}  # fmt: skip
_OLDER: dict[str, Any] = {"n_special": 0, "predict_special_tokens": True}
_OLDEST: dict[str, Any] = {
    **_OLDER, "finetuning_task": None, "is_decoder": False, "num_labels": 1, "output_attentions": False,
    "output_hidden_states": False, "output_past": True, "pruned_heads": {}, "torchscript": False,
    "use_bfloat16": False, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
}  # fmt: skip
_NEWER: dict[str, Any] = {
    "n_inner": None, "reorder_and_upcast_attn": False, "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True, "torch_dtype": "float32", "transformers_version": "4.51.3", "use_cache": True,
}  # fmt: skip
_NANOGPT: dict[str, Any] = {
    "block_size": 1024, "vocab_size": 50304, "n_layer": 12, "n_head": 12, "n_embd": 768, "dropout": 0.0,
    "bias": False,
}  # fmt: skip

PUBLISHED: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "gpt2-medium": _GPT2 | _OLDER | {"n_embd": 1024, "n_head": 16, "n_layer": 24},
    "gpt2-large": _GPT2 | _OLDER | {"n_embd": 1280, "n_head": 20, "n_layer": 36},
    "gpt2-xl": _GPT2 | _OLDER | {"n_embd": 1600, "n_head": 25, "n_layer": 48, "output_past": True},
    "distilgpt2": _GPT2 | {
        "_num_labels": 1, "n_layer": 6, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
    },
    "DialoGPT-medium": _GPT2 | {
        "n_embd": 1024, "n_head": 16, "n_layer": 24,
        "task_specific_params": {"conversational": {"max_length": 1000}},
    },
    "rugpt3large": _GPT2 | _OLDER | _NEWER | {
        "n_ctx": 2048, "n_positions": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "output_past": True,
    },
    "saved by transformers 2": _GPT2 | _OLDEST,
    "saved by transformers 4": _GPT2 | _NEWER | {
        "_name_or_path": "gpt2", "_attn_implementation_autoset": True, "gradient_checkpointing": False,
    },
    "stanford-crfm's, codeparrot's": _GPT2 | _NEWER | {
        "reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True, "n_inner": None,
        "vocab_size": 32768, "bos_token_id": 0, "eos_token_id": 0,
    },
    "Cerebras-GPT-111M": _NEWER | {
        "activation_function": "gelu", "architectures": ["GPT2Model"], "attn_pdrop": 0.0,
        "bos_token_id": 50256, "embd_pdrop": 0.0, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_inner": 3072,
        "n_layer": 10, "n_positions": 2048, "resid_pdrop": 0.0, "vocab_size": 50257,
    },
    "with other families' names for the same": _GPT2 | {
        "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072,
        "max_position_embeddings": 1024, "attention_probs_dropout_prob": 0.1,
    },
    "nanoGPT's model_args": _NANOGPT,
    "nanoGPT's whole train.py": _NANOGPT | {
        "out_dir": "out", "eval_interval": 2000, "log_interval": 1, "eval_iters": 200, "eval_only": False,
        "always_save_checkpoint": True, "init_from": "scratch", "wandb_log": False, "wandb_project": "owt",
        "wandb_run_name": "gpt2", "dataset": "openwebtext", "gradient_accumulation_steps": 40,
        "batch_size": 12, "learning_rate": 6e-4, "max_iters": 600000, "weight_decay": 0.1, "beta1": 0.9,
        "beta2": 0.95, "grad_clip": 1.0, "decay_lr": True, "warmup_iters": 2000, "lr_decay_iters": 600000,
        "min_lr": 6e-5, "backend": "nccl", "device": "cuda", "dtype": "bfloat16", "compile": True,
    },
}  # fmt: skip
