"""Steps that make every CPU kernel compile, or load from its cache, before the first request."""

from __future__ import annotations

from kernels.cpu.sampler import IDS_PER_WORKER
from server.runner.batch import NewBlocks, NewRow, Runner, ScheduledRow, StepBatch
from server.sequence import SamplingParams

_PLAIN = SamplingParams(max_tokens=2, seed=0, logprobs=0)
_EVERYTHING = SamplingParams(
    max_tokens=2,
    seed=0,
    min_tokens=1,
    top_k=2,
    top_p=0.5,
    min_p=0.1,
    presence_penalty=0.5,
    repetition_penalty=1.5,
    eos_token_id=0,
    logprobs=1,
    prompt_logprobs=1,
)


def warm_up(runner: Runner, max_num_seqs: int, vocab_size: int, num_blocks: int) -> None:
    """Prompts of one token, then their second token: alone with all parameters, then as many rows as
    wake every thread. Leaves garbage in rows and blocks, as any finished sequence does."""
    num_rows = min(max_num_seqs, num_blocks, IDS_PER_WORKER // vocab_size + 2)
    for params, rows in ((_EVERYTHING, range(1)), (_PLAIN, range(num_rows))):
        runner.dispatch(
            StepBatch(
                0,
                [NewRow(row, [0], 1, 0, params) for row in rows],
                [NewBlocks(row, 0, [row]) for row in rows],
                [ScheduledRow(row, 0, 1, True) for row in rows],
            )
        ).result()
        runner.dispatch(
            StepBatch(1, [], [], [ScheduledRow(row, 1, 1, True) for row in rows])
        ).result()
