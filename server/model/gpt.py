"""The GPT-2 forward pass as a function of a step's tensors. Knows no sequences, no sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import reference as ops
from server.model.checkpoint import GPTWeights
from server.model.config import GPTConfig
from server.model.inputs import StepInputs
from server.model.kv_cache import KVCache


class GPT:
    """A GPT in one compute dtype (float32 or bfloat16). The residual stream and the logits are fp32."""

    def __init__(self, config: GPTConfig, weights: GPTWeights, dtype: torch.dtype) -> None:
        self.config = config
        self.dtype = dtype
        self._weights = weights

    @torch.inference_mode()
    def forward(self, inputs: StepInputs, kv_cache: KVCache) -> Tensor:
        """Hidden rows [num_tokens, n_embd] after ln_f; the memory is the GPT's until the next forward."""
        config, weights, prefill = self.config, self._weights, inputs.num_prefill_tokens
        eps, tokens = config.layer_norm_epsilon, len(inputs.token_ids)
        residual = torch.empty(tokens, config.n_embd)
        hidden = torch.empty(tokens, config.n_embd, dtype=self.dtype)
        attended = torch.empty_like(hidden)
        qkv = torch.empty(tokens, 3 * config.n_embd, dtype=self.dtype)
        inner = torch.empty(tokens, config.n_inner, dtype=self.dtype)
        delta: Tensor | None = None
        ops.embed(inputs.token_ids, inputs.positions, weights.wte, weights.wpe, residual)
        for index, layer in enumerate(weights.layers):
            k, v, scale = kv_cache.k[index], kv_cache.v[index], config.attention_scale(index)
            ops.layer_norm(residual, delta, layer.ln_1.weight, layer.ln_1.bias, eps, hidden)
            ops.linear(hidden, layer.c_attn.weight, layer.c_attn.bias, "none", qkv)
            ops.write_kv(qkv, k, v, inputs.slot_mapping)
            ops.prefill_attention(
                qkv[:prefill], k, v, inputs.cu_seqlens_q, inputs.prefill_seq_lens,
                inputs.prefill_rows, inputs.block_tables, scale, attended[:prefill],
            )  # fmt: skip
            ops.paged_attention(
                qkv[prefill:], k, v, inputs.seq_lens, inputs.decode_rows, inputs.block_tables,
                scale, attended[prefill:],
            )  # fmt: skip
            delta = torch.empty_like(hidden)
            ops.linear(attended, layer.attn_c_proj.weight, layer.attn_c_proj.bias, "none", delta)
            ops.layer_norm(residual, delta, layer.ln_2.weight, layer.ln_2.bias, eps, hidden)
            ops.linear(hidden, layer.c_fc.weight, layer.c_fc.bias, config.activation, inner)
            delta = torch.empty_like(hidden)
            ops.linear(inner, layer.mlp_c_proj.weight, layer.mlp_c_proj.bias, "none", delta)
        ops.layer_norm(residual, delta, weights.ln_f.weight, weights.ln_f.bias, eps, hidden)
        return hidden

    @torch.inference_mode()
    def logits(self, hidden_rows: Tensor) -> Tensor:
        """fp32 [n, vocab_size], a new tensor; `hidden_rows` are rows of what `forward` returned."""
        logits = torch.empty(len(hidden_rows), self.config.vocab_size)
        ops.linear(hidden_rows, self._weights.lm_head, None, "none", logits)
        return logits
