"""The attention of one step on a GPU: which rows see what, and the launches that every layer repeats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from kernels.paged_attention import Workspace, paged_attention
from kernels.prefill_attention import prefill_attention


class Prefills(NamedTuple):
    """The prompt rows: the first `num_tokens` of the step, in runs of consecutive positions."""

    num_tokens: int
    cu_seqlens_q: Tensor  # int32 [num_prefills + 1]
    seq_lens: Tensor  # int32 [num_prefills]: KV length, the run's rows included
    rows: Tensor  # int32 [num_prefills]: index into block_tables


class Decodes(NamedTuple):
    """Generated rows that one launch attends: ordinary ones, or a part of a long replay."""

    first: int  # of the step's token rows
    seq_lens: Tensor  # int32 [num_rows]: KV length, the row itself included; 0: padding
    rows: Tensor  # int32 [num_rows]: index into block_tables
    split_starts: Tensor  # int32 [num_rows + 1]: the tile map, which all layers share
    item_rows: Tensor  # int32 [max_items]


@dataclass(frozen=True, slots=True)
class AttentionStep:
    prefills: Prefills | None
    decodes: list[Decodes]
    block_tables: Tensor  # int32 [max_num_seqs, max_blocks_per_seq]
    workspace: Workspace

    def run(
        self,
        q: Tensor,  # [num_tokens, n_embd]
        k_cache: Tensor,  # [num_blocks, n_head, block_size, head_dim], this step's rows written
        v_cache: Tensor,
        kv_scale: Tensor | None,  # fp32 [n_head], of an fp8 cache
        scale: float,
        out: Tensor,  # [num_tokens, n_embd]
    ) -> None:
        """Prompt rows by the prefill kernel, generated rows by the decode kernel."""
        if self.prefills is not None:
            num_tokens, cu_seqlens_q, seq_lens, rows = self.prefills
            prefill_attention(
                q[:num_tokens], k_cache, v_cache, cu_seqlens_q, seq_lens, rows, self.block_tables,
                scale, out[:num_tokens], k_scale=kv_scale, v_scale=kv_scale,
            )  # fmt: skip
        for first, seq_lens, rows, split_starts, item_rows in self.decodes:
            part = slice(first, first + len(seq_lens))
            paged_attention(
                q[part], k_cache, v_cache, seq_lens, rows, self.block_tables, split_starts, item_rows,
                scale, out[part], workspace=self.workspace, k_scale=kv_scale, v_scale=kv_scale,
            )  # fmt: skip
