"""CTranslate2's Generator: one static batch, greedy. It has no server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path


def load(
    folder: str, form: str, threads: int, max_streams: int
) -> Callable[[list[list[int]], int], list[list[int]]]:
    from ctranslate2 import Generator

    generator = Generator(
        folder, device="cpu", compute_type=form, inter_threads=1, intra_threads=threads
    )
    vocabulary = json.loads((Path(folder) / "vocabulary.json").read_text(encoding="utf-8"))

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        results = generator.generate_batch(
            [[vocabulary[token_id] for token_id in prompt] for prompt in prompts],
            max_length=num_tokens,
            min_length=num_tokens,  # masks the end token until then
            sampling_topk=1,
            beam_size=1,
            include_prompt_in_result=False,
        )
        return [list(result.sequences_ids[0]) for result in results]

    return generate
