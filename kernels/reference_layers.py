"""The GPU's products, norms and embedding again in plain torch: the same signatures, without workspaces.

The arithmetic is fp32; what a kernel rounds to the compute dtype on its way is rounded here too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.gemm import Norm
from kernels.linear import Epilogue


def embed(
    token_ids: Tensor, positions: Tensor, wte: Tensor, wpe: Tensor, residual: Tensor, stats: Tensor
) -> None:
    """residual = wte[token_ids] + wpe[positions], ids clamped to their range."""
    tokens = token_ids.long().clamp(0, wte.shape[0] - 1)
    places = positions.long().clamp(0, wpe.shape[0] - 1)
    residual.copy_(wte[tokens].float() + wpe[places].float())
    stats.copy_(row_stats(residual))


def row_stats(x: Tensor) -> Tensor:
    """[num_tokens, ceil(width / 64), 2]: mean and sum of squared differences by group of 64 columns."""
    groups = torch.split(x.double(), 64, dim=1)
    means = torch.stack([group.mean(1) for group in groups], 1)
    squares = torch.stack([group.var(1, correction=0) * group.shape[1] for group in groups], 1)
    return torch.stack([means, squares], 2).float()


def layer_norm(residual: Tensor, norm: Norm, out: Tensor, *, x: Tensor | None = None) -> None:
    """out = LayerNorm(residual), after residual += x."""
    if x is not None:
        residual += x.float()
    out.copy_(_normalised(residual, norm))


def rms_norm(
    residual: Tensor, weight: Tensor, eps: float, out: Tensor, *, x: Tensor | None = None
) -> None:
    """out = residual / sqrt(mean(residual**2) + eps) * weight, after residual += x."""
    if x is not None:
        residual += x.float()
    out.copy_(F.rms_norm(residual, residual.shape[1:], weight.float(), eps))


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    epilogue: Epilogue = "none",
    norm: Norm | None = None,
    stats: Tensor | None = None,
) -> None:
    """out = epilogue(x @ weight.T + bias); "add" adds to what `out` holds."""
    if norm is not None:
        x = _normalised(x, norm).to(weight.dtype)
    y = F.linear(x.float(), weight.float(), bias)
    if epilogue == "gelu_tanh":
        y = F.gelu(y, approximate="tanh")
    elif epilogue == "gelu_erf":
        y = F.gelu(y)
    elif epilogue == "add":
        y = out + y
    out.copy_(y)
    if stats is not None:
        stats.copy_(row_stats(y))


def qkv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    norm: Norm | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """q, k, v = x @ weight.T + bias; K and V to their slots, divided by their head's scale if given."""
    num_blocks, num_kv_heads, block_size, head_dim = k_cache.shape
    fused = q.new_empty(len(q), weight.shape[0])
    linear(x, weight, bias, fused, norm=norm)
    kv_cols = num_kv_heads * head_dim
    q_part, k, v = torch.split(fused, [q.shape[1], kv_cols, kv_cols], dim=1)
    q.copy_(q_part)
    is_slot = (slot_mapping >= 0) & (slot_mapping < num_blocks * block_size)
    slots = slot_mapping[is_slot]
    for cache, rows, scale in ((k_cache, k, k_scale), (v_cache, v, v_scale)):
        heads = rows[is_slot].view(-1, num_kv_heads, head_dim).float()
        if scale is not None:
            heads = (heads / scale[:, None]).clamp(-448.0, 448.0)
        cache[slots // block_size, :, slots % block_size] = heads.to(cache.dtype)


def mlp(
    residual: Tensor,
    norm: Norm,
    fc_weight: Tensor,
    fc_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    inner: Tensor,
    *,
    epilogue: Epilogue,
    stats: Tensor,
) -> None:
    """residual += gelu(LayerNorm(residual) @ fc_weight.T + fc_bias) @ proj_weight.T + proj_bias."""
    linear(residual, fc_weight, fc_bias, inner, epilogue=epilogue, norm=norm)
    linear(inner, proj_weight, proj_bias, residual, epilogue="add", stats=stats)


def _normalised(residual: Tensor, norm: Norm) -> Tensor:
    return F.layer_norm(
        residual, residual.shape[1:], norm.weight.float(), norm.bias.float(), norm.eps
    )
