"""The runner of a GPU: applies a batch to its rows, queues the model and the draw, hands over results late.

`dispatch` only queues work. Steps run in its order, each reading the tokens that the one before drew from
the device's own rows; what a step drew comes back while the next one runs.

    host      dispatch N ── dispatch N+1 ── result N ── dispatch N+2 ── result N+1
    device    ...  step N  │  step N+1  │  step N+2
    copies                  └ of N       └ of N+1
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from kernels.row_updates import apply_updates
from kernels.sampling_rows import mask_words
from kernels.sampling_tables import SamplingTables
from server.board import Board
from server.config import Limits
from server.model.device_kv_cache import DeviceKVCache
from server.model.gpu_gpt import GpuGPT
from server.runner.batch import NewBlocks, NewRow, RowMask, ScheduledRow, StepBatch
from server.runner.gpu.draw import Asked, Draw
from server.runner.gpu.fills import fill_rows, max_words
from server.runner.gpu.graphs import DecodeGraphs, DecodeKind
from server.runner.gpu.inputs import Inputs
from server.runner.gpu.masks import mask_upload_words, send_masks
from server.runner.gpu.queue import Queue
from server.runner.gpu.rows import DeviceRows
from server.runner.gpu.step import GpuStep
from server.runner.gpu.upload import Upload, aligned
from server.runner.prompt_logprobs import MAX_TOP
from server.runner.rows import Array
from server.runner.runs import Runs, cut_runs
from server.sequence import FailureKind, SamplingParams

_MAX_BIASES = 1024  # of one request: the api's limit


class GpuRunner:
    """Owns the rows and all buffers of a step; reads and writes the KV cache through the model.

    Not thread-safe. `never_sampled_ids`: ids that no tokenizer entry has. `board` is told of every
    dispatch and every result.
    """

    max_steps_in_flight = 2

    def __init__(
        self,
        model: GpuGPT,
        kv_cache: DeviceKVCache,
        queue: Queue,
        limits: Limits,
        never_sampled_ids: Iterable[int] = (),
        board: Board | None = None,
    ) -> None:
        vocab_size = model.config.vocab_size
        max_num_seqs = limits.max_num_seqs
        token_mask = torch.zeros(vocab_size)
        token_mask[list(never_sampled_ids)] = -torch.inf
        self._model = model
        self._kv_cache = kv_cache
        self._queue = queue
        self._limits = limits
        self._board = board
        with torch.inference_mode(), queue.running():
            self._rows = DeviceRows(
                queue.device,
                max_num_seqs=max_num_seqs,
                max_model_len=limits.max_model_len,
                block_size=limits.block_size,
                vocab_size=vocab_size,
            )
            self._tables = SamplingTables.allocate(max_num_seqs, token_mask, queue.device)
            self._inputs = Inputs(model.config, kv_cache, self._rows, limits)
            self._draw = Draw(model, self._rows, self._tables, queue, limits)
            words = max(
                max_words(vocab_size, self._rows.words_per_row, _MAX_BIASES),
                mask_upload_words(max_num_seqs, vocab_size),
                16 * max_num_seqs,
            )
            self._upload = Upload(queue, words)
        self._graphs = DecodeGraphs(queue, max_num_seqs, self._decode)
        queue.synchronize()  # weights and cache were queued elsewhere

    @torch.inference_mode()
    def dispatch(self, batch: StepBatch) -> GpuStep:
        """Queue a step. Takes no drafts: the next step would need to know how many were drawn."""
        if batch.drafts:
            raise ValueError("A GPU takes steps ahead, and so no drafts.")
        if self._board is not None:
            self._board.tick()
        failed: dict[int, FailureKind] = {}
        with self._queue.running():
            if batch.new_rows:
                fill_rows(batch.new_rows, self._rows, self._tables, self._upload, failed)
            if batch.masks:
                send_masks(batch.masks, self._rows, self._tables, self._upload, failed)
            for new_blocks in batch.new_blocks:
                self._rows.write_blocks(new_blocks)
            runs = cut_runs(batch.scheduled, self._rows.num_prompt_tokens)
            if _is_plain_decode(runs):
                return self._run_graph(runs, failed)
            return self._run_launches(runs, failed)

    @property
    def max_graphs(self) -> int:
        return self._graphs.max_graphs

    def warm_up(self, seconds: float) -> int:
        """Compile what decode steps need and capture graphs for so long; returns how many there are."""
        with torch.inference_mode(), self._queue.running():
            self._send(np.full((len(self._rows.params), 4), -1, np.int32))
            num_graphs = self._graphs.prepare(seconds)
        self._queue.synchronize()
        return num_graphs

    def profile(self, num_tokens: int) -> None:
        """Run a step of so many prompt tokens in as many rows as there are, with everything that may be
        asked for: to compile it, and to see what it allocates.

        Rows and cache hold nonsense afterwards. All rows share the cache's blocks.
        """
        limits = self._limits
        params = SamplingParams(
            1, 0, top_p=0.9, logprobs=MAX_TOP, prompt_logprobs=MAX_TOP, logit_bias=((0, 1.0),)
        )
        all_ids = bytes([255]) * (4 * mask_words(self._model.config.vocab_size))
        blocks = [i % self._kv_cache.num_blocks for i in range(limits.blocks_per_seq)]
        num_rows = min(limits.max_num_seqs, num_tokens)
        batch = StepBatch(0)
        for row in range(num_rows):
            share = (num_tokens + row) // num_rows  # equal ones that add up to all
            length = min(limits.max_model_len, share)
            batch.new_rows.append(NewRow(row, [0] * length, length, 0, params))
            batch.new_blocks.append(NewBlocks(row, 0, blocks))
            batch.masks.append(RowMask(row, all_ids))
            batch.scheduled.append(ScheduledRow(row, 0, length, True))
        self.dispatch(batch).result()
        self._queue.synchronize()

    def _run_graph(self, runs: Runs, failed: dict[int, FailureKind]) -> GpuStep:
        """One generated token of each row, and one is drawn for each."""
        asked = self._draw.asked(runs)
        kind = self._graphs.kind(
            len(runs.table),
            has_logits=self._draw.needs_logits(runs.sampling_rows),
            has_logprobs=bool(asked),
        )
        table = np.full((kind.num_rows, 4), -1, np.int32)
        table[: len(runs.table)] = runs.table
        self._send(table)
        self._graphs.run(kind)
        return self._step(runs, asked, [], failed)

    def _run_launches(self, runs: Runs, failed: dict[int, FailureKind]) -> GpuStep:
        """Any step: prompt rows, replays, rows that draw nothing."""
        asked, prompts = self._draw.asked(runs), []
        table, sampling_rows, sampling_index, *prefills = self._send(
            runs.table, runs.sampling_rows, runs.sampling_index, *runs.prefills
        )
        if runs.num_tokens:
            rows, attention = self._inputs.build(table.view(-1, 4), prefills, runs)
            hidden = self._model.forward(rows, attention, self._kv_cache)
            prompts = self._draw.prompt_logprobs(hidden, runs)
            self._draw.tokens(
                hidden,
                sampling_rows,
                sampling_index,
                has_logits=self._draw.needs_logits(runs.sampling_rows) or bool(asked),
                has_logprobs=bool(asked),
            )
        return self._step(runs, asked, prompts, failed)

    def _decode(self, kind: DecodeKind) -> None:
        """The launches of a graph: they find the step's table where every upload begins."""
        table = self._upload.device_words[: 4 * kind.num_rows].view(-1, 4)
        rows, attention, row_ids = self._inputs.build_decode(table)
        hidden = self._model.forward(rows, attention, self._kv_cache)
        self._draw.tokens(
            hidden,
            row_ids,
            None,
            has_logits=kind.has_logits,
            has_logprobs=kind.has_logprobs,
        )

    def _send(self, *parts: Array) -> list[torch.Tensor]:
        """The parts, with what has changed in the rows behind them, or before where there is too much."""
        changes = self._rows.take_changes()
        room = (self._upload.num_words - sum(aligned(part.size) for part in parts)) // 2 - aligned(
            1
        )
        while changes.shape[1] > room:
            indices, values = self._upload.send(*changes[:, :room])
            apply_updates(indices, values, self._rows.state)
            changes = changes[:, room:]
        *sent, indices, values = self._upload.send(*parts, *changes)
        apply_updates(indices, values, self._rows.state)
        return sent

    def _step(
        self,
        runs: Runs,
        asked: list[Asked],
        prompts: list[Asked],
        failed: dict[int, FailureKind],
    ) -> GpuStep:
        ends = [entry.first_entry + entry.num_entries for entry in (*asked, *prompts)]
        drawn, arrival = self._draw.outputs.send(len(runs.sampling_rows), max(ends, default=0))
        return GpuStep(
            runs.sampling_rows, asked, prompts, drawn, arrival, failed=failed, board=self._board
        )


def _is_plain_decode(runs: Runs) -> bool:
    return 0 < runs.num_tokens == runs.num_decodes == len(runs.table) == len(runs.sampling_rows)
