"""Logprobs of prompts in bounded memory: what a step allocates, and what is kept for the way out."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.cpu.arrays import Array
from kernels.cpu.warm_up import warm_up
from server.model.gpt import GPT
from server.model.kv_cache import KVCache
from server.runner import cpu_runner
from server.runner.batch import NewBlocks, NewRow, ScheduledRow, StepBatch
from server.runner.cpu_runner import CpuRunner
from server.sequence import PromptLogprobs, SamplingParams
from tests.runner.rig import load_tiny
from tests.tiny_model import write_tiny_model

NUM_ROWS, CONTEXT, SHARE = 64, 512, 8  # all rows at once, some tokens of each a step
BYTES_PER_TOKEN = 4 + 4 + 20 * (4 + 4)
LOGIT_ROWS = 100
MIB = 1 << 20


class Watched:
    """A model that notes where its logits are written."""

    def __init__(self, model: GPT) -> None:
        self.config = model.config
        self.forward = model.forward
        self.places: set[tuple[int, int]] = set()
        self._model = model

    def logits(self, hidden_rows: Array, out: Array) -> None:
        self.places.add((out.base.ctypes.data, out.base.nbytes))
        self._model.logits(hidden_rows, out)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    directory = tmp_path_factory.mktemp("narrow")
    write_tiny_model(directory, n_embd=32)
    return Watched(load_tiny(Path(directory), torch.float32))


def steps() -> list[StepBatch]:
    """64 prompts of full length with 20 logprobs, their first tokens drawn in the last step."""
    params = SamplingParams(max_tokens=1, seed=1, logprobs=20, prompt_logprobs=20)
    batches = []
    for begin in range(0, CONTEXT - 1, SHARE):
        share = min(SHARE, CONTEXT - 1 - begin)
        is_last = begin + share == CONTEXT - 1
        scheduled = [ScheduledRow(row, begin, share, is_last) for row in range(NUM_ROWS)]
        batches.append(StepBatch(begin, scheduled=scheduled))
    num_blocks = CONTEXT // 16
    for row in range(NUM_ROWS):
        prompt = [(row + 7 * i) % 298 for i in range(CONTEXT - 1)]
        batches[0].new_rows.append(NewRow(row, prompt, len(prompt), 0, params))
        block_ids = list(range(row * num_blocks, (row + 1) * num_blocks))
        batches[0].new_blocks.append(NewBlocks(row, 0, block_ids))
    return batches


def test_64_full_contexts_with_20_logprobs_take_what_their_bytes_take(
    model: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_runner, "LOGITS_BYTES", LOGIT_ROWS * 4 * 320)
    num_blocks = NUM_ROWS * CONTEXT // 16
    kv_cache = KVCache.allocate(model.config, num_blocks, 16, torch.float32)
    runner = CpuRunner(model, kv_cache, max_num_seqs=NUM_ROWS, max_model_len=CONTEXT)  # type: ignore[arg-type]
    warm_up(torch.float32)  # what numba reads from its cache is no step's
    batches = steps()
    kept: list[PromptLogprobs] = []
    tracemalloc.start()
    try:
        most_in_a_step = 0
        for batch in batches:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            result = runner.dispatch(batch).result()
            most_in_a_step = max(most_in_a_step, tracemalloc.get_traced_memory()[1] - before)
            kept += result.prompt_logprobs.values()
            del result
        in_all, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    num_bytes = sum(len(part) for chunk in kept for part in chunk[3:])
    assert num_bytes == NUM_ROWS * (CONTEXT - 2) * BYTES_PER_TOKEN
    # Beside the bytes themselves an object and four headers a chunk; as Python lists it was 25 times as much.
    assert in_all < 1.5 * num_bytes
    assert most_in_a_step < 3.5 * NUM_ROWS * SHARE * BYTES_PER_TOKEN
    assert model.places == {(runner._logits.ctypes.data, LOGIT_ROWS * 4 * 320)}, (
        "one, from the start"
    )


def test_chunks_follow_each_other_and_are_packed_row_by_row(model: Watched) -> None:
    kv_cache = KVCache.allocate(model.config, 8, 16, torch.float32)
    runner = CpuRunner(model, kv_cache, max_num_seqs=1, max_model_len=64)  # type: ignore[arg-type]
    prompt = [3 * i % 298 for i in range(33)]
    params = SamplingParams(max_tokens=1, seed=1, prompt_logprobs=2)
    new_rows, new_blocks = [NewRow(0, prompt, 33, 0, params)], [NewBlocks(0, 0, [4, 1, 6])]

    def run(batch: StepBatch) -> PromptLogprobs | None:
        return runner.dispatch(batch).result().prompt_logprobs.get(0)

    whole = run(StepBatch(0, new_rows, new_blocks, scheduled=[ScheduledRow(0, 0, 33, True)]))
    assert whole is not None and (whole.seq_id, whole.start, whole.num_top) == (0, 1, 2)
    ranges = [(0, 1), (1, 20), (20, 32), (32, 33)]
    chunks = []
    for begin, end in ranges:
        scheduled = [ScheduledRow(0, begin, end - begin, end == 33)]
        chunks.append(run(StepBatch(0, [] if begin else new_rows, [], scheduled=scheduled)))
    assert chunks[3] is None, "the last position predicts no prompt token"
    found = [chunk for chunk in chunks if chunk is not None]
    assert [chunk.start for chunk in found] == [1, 2, 21]
    for field in ("logprobs", "ranks", "top_ids", "top_logprobs"):
        assert b"".join(getattr(chunk, field) for chunk in found) == getattr(whole, field)
    top_ids = np.frombuffer(whole.top_ids, "<i4").reshape(32, 2)
    values = np.frombuffer(whole.top_logprobs, "<f4").reshape(32, 2)
    chosen, ranks = np.frombuffer(whole.logprobs, "<f4"), np.frombuffer(whole.ranks, "<i4")
    for place in (0, 1):
        is_here = ranks == place + 1
        assert (top_ids[is_here, place] == np.array(prompt)[1:][is_here]).all()
        assert (values[is_here, place] == chosen[is_here]).all()
    assert (chosen[ranks > 2] <= values[ranks > 2, 1]).all()
