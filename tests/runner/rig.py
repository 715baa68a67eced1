"""The real engine over the CPU runner and a tiny random GPT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from server.config import Quantization
from server.engine.block_manager import BlockManager
from server.engine.engine import Engine
from server.engine.prefix_cache import PrefixCache
from server.engine.scheduler import Scheduler
from server.engine.speculation import Speculation
from server.model.gpt import GPT
from server.model.kv_cache import KVCache
from server.model.load import load_model
from server.runner.cpu_runner import CpuRunner
from server.sequence import PromptLogprobs, SamplingParams, SequenceRequest, TokenLogprobs

VOCAB_SIZE = 320
NEVER_SAMPLED = range(298, VOCAB_SIZE)
MAX_MODEL_LEN = 96
DTYPES = (torch.float32, torch.bfloat16)


@dataclass
class Answer:
    """What one sequence gave, except for what may differ: when, and how much was cached."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None


@dataclass
class Rig:
    """An engine, and how much of its prompts each sequence found in the cache."""

    engine: Engine
    num_cached_tokens: dict[int, int] = field(default_factory=dict)

    def run(
        self, requests: Sequence[SequenceRequest], late: Sequence[SequenceRequest] = ()
    ) -> list[Answer]:
        """Submit all at once, `late` after three steps, run to the end; answers in this order."""
        answers = {request.seq_id: Answer() for request in (*requests, *late)}
        for request in (*requests, *late):
            if request.params.prompt_logprobs is not None:
                answers[request.seq_id].prompt_logprobs = []
        for request in requests:
            self.engine.submit(request)
        num_steps = 0
        while self.engine.has_work:
            if num_steps == 3:
                for request in late:
                    self.engine.submit(request)
            num_steps += 1
            added = self.engine.step()
            assert not added.failures
            for _, chunk in added.prompt_logprobs:
                so_far = answers[chunk.seq_id].prompt_logprobs
                assert so_far is not None and chunk.start == len(so_far) + 1
                so_far += unpacked(chunk)
            for _, output in added.outputs:
                answer = answers[output.seq_id]
                answer.token_ids += output.token_ids
                answer.logprobs += output.logprobs or []
                answer.finish_reason = output.finish_reason
                if output.first is not None:
                    self.num_cached_tokens[output.seq_id] = output.first.num_cached_tokens
        return list(answers.values())

    def run_alone(self, request: SequenceRequest) -> Answer:
        return self.run([request])[0]


def unpacked(chunk: PromptLogprobs) -> list[TokenLogprobs]:
    """One entry per prompt token."""
    num = len(chunk.logprobs) // 4
    return [
        TokenLogprobs(*entry)
        for entry in zip(
            np.frombuffer(chunk.logprobs, "<f4").tolist(),
            np.frombuffer(chunk.ranks, "<i4").tolist(),
            np.frombuffer(chunk.top_ids, "<i4").reshape(num, chunk.num_top).tolist(),
            np.frombuffer(chunk.top_logprobs, "<f4").reshape(num, chunk.num_top).tolist(),
            strict=True,
        )
    ]


def load_tiny(directory: Path, dtype: torch.dtype, quantization: Quantization = "none") -> GPT:
    return load_model(directory, dtype, None, quantization)


def make_rig(
    model: GPT,
    *,
    num_blocks: int = 400,
    block_size: int = 8,
    max_num_seqs: int = 20,
    max_num_batched_tokens: int = 256,
    speculation: Callable[[Scheduler], Speculation] | None = None,
) -> Rig:
    kv_cache = KVCache.allocate(model.config, num_blocks, block_size, model.dtype)
    for tensor in (*kv_cache.k, *kv_cache.v):
        tensor.fill_(float("nan"))  # what is read before it is written shows
    runner = CpuRunner(
        model,
        kv_cache,
        max_num_seqs=max_num_seqs,
        max_model_len=MAX_MODEL_LEN,
        never_sampled_ids=NEVER_SAMPLED,
    )
    scheduler = Scheduler(
        BlockManager(num_blocks, PrefixCache(block_size)),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=MAX_MODEL_LEN,
    )
    drafts = None if speculation is None else speculation(scheduler)
    return Rig(Engine(scheduler, runner, VOCAB_SIZE, speculation=drafts))


def cut(request: SequenceRequest, answer: Answer, num_emitted: int) -> SequenceRequest:
    """As it is submitted to the next engine, when one has died behind so many of its tokens."""
    return replace(request, emitted_ids=answer.token_ids[:num_emitted])


def rest(answer: Answer, num_emitted: int) -> Answer:
    """What the next engine must give."""
    return Answer(
        answer.token_ids[num_emitted:],
        answer.logprobs[num_emitted:],
        None if answer.prompt_logprobs is None else [],
        answer.finish_reason,
    )


def make_request(
    seq_id: int, num_prompt_tokens: int = 20, *, choice: int = 0, **params: object
) -> SequenceRequest:
    """A prompt that depends on seq_id, or on `prompt_seed` where that is given."""
    generator = torch.Generator().manual_seed(int(str(params.pop("prompt_seed", seq_id))))
    prompt_ids = torch.randint(0, 298, (num_prompt_tokens,), generator=generator).tolist()
    base = SamplingParams(max_tokens=12, seed=1000 + seq_id)
    return SequenceRequest(seq_id, prompt_ids, choice, replace(base, **params))  # type: ignore[arg-type]
