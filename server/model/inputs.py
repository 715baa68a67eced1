"""The inputs of one forward pass on a CPU, as arrays. Built by the runner, read by the model."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.cpu.arrays import Array


@dataclass(slots=True)
class StepInputs:
    """The token rows of one step: all prompt rows first, then all generated rows.

        rows    [ prefill 0 ... | prefill 1 ... | decode 0 | decode 1 | ... ]
                  <----- num_prefill_tokens ---->

    A prefill is a run of consecutive prompt positions of one sequence; a decode row is one generated
    token with its own `seq_len` (several decode rows may share a block-table row: a replay).
    """

    token_ids: Array  # int64 [num_tokens]
    positions: Array  # int64 [num_tokens]
    slot_mapping: Array  # int64 [num_tokens]: block_id * block_size + offset
    num_prefill_tokens: int
    cu_seqlens_q: Array  # int32 [num_prefills + 1]
    prefill_seq_lens: Array  # int32 [num_prefills]: KV length, this chunk's rows included
    prefill_rows: Array  # int32 [num_prefills]: index into block_tables
    seq_lens: Array  # int32 [num_decodes]: KV length, the row itself included
    decode_rows: Array  # int32 [num_decodes]: index into block_tables
    block_tables: Array  # int32 [max_num_seqs, max_blocks_per_seq], the runner's own
