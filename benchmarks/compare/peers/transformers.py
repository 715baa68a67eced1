"""transformers on a CPU: `generate` over one padded batch, and its continuous batching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_PAGE_TOKENS = 256  # its default


def load(
    folder: str, form: str, threads: int, max_streams: int
) -> Callable[[list[list[int]], int], list[list[int]]]:
    model = _model(folder, form, threads)

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts)  # of equal lengths, so nothing is padded
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return [row[ids.shape[1] :] for row in output.tolist()]

    return generate


def load_continuous(
    folder: str, form: str, threads: int, max_streams: int
) -> Callable[[list[list[int]], int], list[list[int]]]:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = _model(folder, form, threads)
    batching = ContinuousBatchingConfig(
        num_blocks=2 * max_streams + 8,
        max_batch_tokens=max(256, 16 * max_streams),
        allow_block_sharing=False,  # no two prompts begin alike
    )

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        config = GenerationConfig(
            max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        outputs = model.generate_batch(
            prompts,
            generation_config=config,
            continuous_batching_config=batching,
            persistent_manager=True,  # as a server would have it: not made anew for each batch
            max_new_tokens=num_tokens,
        )
        by_prompt = {tuple(each.prompt_ids): each.generated_tokens for each in outputs.values()}
        return [list(by_prompt[tuple(prompt)]) for prompt in prompts]

    return generate


def _model(folder: str, form: str, threads: int) -> Any:
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(threads)
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, form)).eval()
    model.generation_config.eos_token_id = None
    return model
