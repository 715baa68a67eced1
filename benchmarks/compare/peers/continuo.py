"""Our engine without a server: scheduler, KV cache and model as `continuo serve` would build them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from server.config import EngineConfig
from server.sequence import SamplingParams, SequenceRequest
from server.startup import child_environment


def load(
    folder: str, form: str, threads: int, max_streams: int
) -> Callable[[list[list[int]], int], list[list[int]]]:
    """Greedy ids of each prompt. Raises TypeError or ConfigError where this version has no such form."""
    os.environ.update(child_environment())  # before torch and numba are imported
    from server.assembly import engine_of
    from server.runner.load import build_runner

    chosen: dict[str, Any] = {"quantization": "int8"} if form == "int8" else {"dtype": form}
    config = EngineConfig(
        model=folder,
        max_num_seqs=max(8, max_streams),
        prompt_lookup="off",  # the same work for all: greedy text of random weights repeats itself
        **chosen,
    )
    engine = engine_of(build_runner(config, [], threads))

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        params = SamplingParams(max_tokens=num_tokens, seed=0, temperature=0.0)
        outputs: list[list[int]] = [[] for _ in prompts]
        for seq_id, prompt in enumerate(prompts):
            engine.submit(SequenceRequest(seq_id, prompt, 0, params))
        while engine.has_work:
            for _, output in engine.step().outputs:
                outputs[output.seq_id] += output.token_ids
        return outputs

    return generate
