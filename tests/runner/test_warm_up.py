"""After a start nothing is compiled any more, whatever is asked: a compilation would stall every stream."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numba
import pytest
import torch

from kernels.cpu import (
    int8_linear,
    linear,
    logprobs,
    paged_attention,
    prefill_attention,
    sampler,
    short_step,
    step_inputs,
)
from server.assembly import engine_of
from server.config import EngineConfig, Quantization
from server.runner.load import build_runner
from server.sequence import SamplingParams, SequenceRequest

MODULES = (
    linear,
    int8_linear,
    paged_attention,
    prefill_attention,
    sampler,
    logprobs,
    short_step,
    step_inputs,
)


def _signatures() -> dict[str, int]:
    return {
        f"{module.__name__}.{name}": len(value.signatures)
        for module in MODULES
        for name, value in vars(module).items()
        if hasattr(value, "signatures") and value.__module__ == module.__name__
    }


@pytest.mark.parametrize("quantization", get_args(Quantization))
def test_no_kernel_is_compiled_after_the_start(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, quantization: Quantization
) -> None:
    config = EngineConfig(
        model=str(tiny_model_dir), max_model_len=1024, max_num_seqs=8, quantization=quantization
    )
    torch_threads = torch.get_num_threads()
    try:
        loaded = build_runner(config, [], max(2, numba.get_num_threads()))
        before = _signatures()
        # work that the tiny model's 320 ids would never be
        for module in (sampler, logprobs):
            monkeypatch.setattr(module, "IDS_PER_WORKER", 1)
        engine = engine_of(loaded)
        for seq_id in range(8):
            params = SamplingParams(
                max_tokens=20,
                seed=seq_id,
                temperature=seq_id / 4,
                top_k=seq_id * 5,
                top_p=0.9 if seq_id % 2 else 1.0,
                min_p=0.02 * (seq_id % 3),
                frequency_penalty=0.1 * (seq_id % 2),
                logit_bias=((5, 1.0),) if seq_id % 3 else (),
                allowed_token_ids=tuple(range(seq_id, 290)) if seq_id % 4 == 3 else None,
                logprobs=seq_id if seq_id % 2 else None,
                prompt_logprobs=2 if seq_id == 5 else None,
            )
            prompt = [(seq_id + 3 * i) % 300 for i in range(1 + 120 * seq_id)]
            engine.submit(SequenceRequest(seq_id, prompt, 0, params))
        while engine.has_work:
            engine.step()
    finally:
        torch.set_num_threads(torch_threads)
    assert sum(before.values()) >= 10
    assert _signatures() == before
