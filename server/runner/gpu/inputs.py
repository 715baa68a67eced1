"""From a step's runs to the tensors of its forward pass, on the device."""

from __future__ import annotations

from torch import Tensor

from kernels import tuning
from kernels.paged_attention import Workspace
from kernels.step_inputs import StepTensors, TileMap, decode_inputs, token_rows, write_tile_map
from server.config import Limits
from server.model.attention_step import AttentionStep, Decodes, Prefills
from server.model.config import GPTConfig
from server.model.device_kv_cache import DeviceKVCache
from server.model.gpu_gpt import TokenRows
from server.runner.gpu.rows import DeviceRows
from server.runner.runs import Runs


class Inputs:
    """Buffers for the largest step, made once. What `build` returns is valid until the next call."""

    def __init__(
        self, config: GPTConfig, kv_cache: DeviceKVCache, rows: DeviceRows, limits: Limits
    ) -> None:
        device, cache_dtype = rows.state.device, kv_cache.k[0].dtype
        self._rows = rows
        self._block_size = limits.block_size
        self._max_rows = limits.max_num_seqs  # of one decode launch: a longer replay takes several
        split = tuning.split_tokens(config.head_dim, cache_dtype)
        max_items = self._max_rows * -(-limits.max_model_len // split)
        self._tensors = StepTensors.allocate(limits.max_num_batched_tokens, device)
        num_maps = -(-limits.max_num_batched_tokens // self._max_rows)
        self._maps = [
            TileMap.allocate(self._max_rows, max_items, split, device) for _ in range(num_maps)
        ]
        self._workspace = Workspace.allocate(
            device,
            max_rows=self._max_rows,
            max_items=max_items,
            num_heads=config.n_head,
            num_kv_heads=config.n_head,
            head_dim=config.head_dim,
            cache_dtype=cache_dtype,
        )

    def build(
        self, table: Tensor, prefills: list[Tensor], runs: Runs
    ) -> tuple[TokenRows, AttentionStep]:
        """`table` and `prefills`: those of `runs`, on the device."""
        sampling = self._rows.sampling
        token_rows(
            table, sampling.token_ids, self._rows.block_tables, runs.num_prefill_tokens,
            self._block_size, self._tensors,
        )  # fmt: skip
        attention = AttentionStep(
            Prefills(runs.num_prefill_tokens, *prefills) if runs.num_prefills else None,
            self._decodes(runs),
            self._rows.block_tables,
            self._workspace,
        )
        return self._token_rows(runs.num_tokens, runs.num_prefill_tokens), attention

    def build_decode(self, table: Tensor) -> tuple[TokenRows, AttentionStep, Tensor]:
        """One generated token of each row of the table. Also returns the rows, -1 for padding."""
        num_rows = len(table)
        decode_inputs(
            table, self._rows.sampling.token_ids, self._rows.block_tables, self._block_size,
            self._tensors, self._maps[0],
        )  # fmt: skip
        decodes = self._part(self._maps[0], 0, 0, num_rows)
        attention = AttentionStep(None, [decodes], self._rows.block_tables, self._workspace)
        return self._token_rows(num_rows, 0), attention, decodes.rows

    def _token_rows(self, num_tokens: int, num_prefill_tokens: int) -> TokenRows:
        tensors = self._tensors
        return TokenRows(
            tensors.token_ids[:num_tokens],
            tensors.positions[:num_tokens],
            tensors.slot_mapping[:num_tokens],
            num_prefill_tokens,
        )

    def _decodes(self, runs: Runs) -> list[Decodes]:
        parts = []
        for index, tile_map in enumerate(self._maps[: -(-runs.num_decodes // self._max_rows)]):
            first = index * self._max_rows
            num_rows = min(self._max_rows, runs.num_decodes - first)
            part = self._part(tile_map, runs.num_prefill_tokens, first, num_rows)
            write_tile_map(part.seq_lens, tile_map)
            parts.append(part)
        return parts

    def _part(
        self, tile_map: TileMap, num_prefill_tokens: int, first: int, num_rows: int
    ) -> Decodes:
        tensors = self._tensors
        return Decodes(
            num_prefill_tokens + first,
            tensors.seq_lens[first : first + num_rows],
            tensors.decode_rows[first : first + num_rows],
            tile_map.split_starts[: num_rows + 1],
            tile_map.item_rows,
        )
