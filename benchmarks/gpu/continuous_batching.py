"""transformers' continuous batching, if it is installed: the same prompts and token counts as our engine."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.offline import Load, Offline, requests
from benchmarks.gpu.random_model import config_of

_PROMPT_TOKENS, _NEW_TOKENS = 128, 64
_ROUNDS = 2


def measure(bench: Bench, shape: str, streams: Sequence[int]) -> None:
    """figures: <streams>.speedup: its time for all requests / ours, prefill included in both."""
    if importlib.util.find_spec("transformers") is None:
        bench.note("transformers is not installed, so its continuous batching was not measured.")
        return
    shape = "tiny" if bench.is_dry else shape
    for num_streams in streams:
        load = Load(2, 5, 2) if bench.is_dry else Load(num_streams, _PROMPT_TOKENS, _NEW_TOKENS)
        offline = Offline(config_of(shape), load, bench.device)
        prompts = [request.prompt_ids for request in requests(load, offline.config.vocab_size)]
        model = _model(shape, bench.device)
        _theirs(model, prompts, load.num_steps)  # makes its cache and its graphs
        ours, theirs = [], []
        for _ in range(1 if bench.is_dry else _ROUNDS):
            ours.append(_ours(offline, load))
            theirs.append(_theirs(model, prompts, load.num_steps))
        key, num_tokens = f"{load.num_streams}", load.num_streams * load.num_steps
        bench.samples[key], bench.samples[f"{key}.transformers"] = ours, theirs
        bench.figure(f"{key}.speedup", statistics.median(theirs) / statistics.median(ours))
        bench.row(
            f"{load.num_streams} requests, {load.prompt_tokens} + {load.num_steps} tokens",
            "tokens/s", num_tokens / statistics.median(ours),
            "transformers", num_tokens / statistics.median(theirs),
        )  # fmt: skip


def _ours(offline: Offline, load: Load) -> float:
    """Seconds from the first request to the last token."""
    exact = [
        replace(request, params=replace(request.params, max_tokens=load.num_steps))
        for request in requests(load, offline.config.vocab_size)
    ]
    engine = offline.engine()
    started = time.perf_counter()
    for request in exact:
        engine.submit(request)
    while engine.has_work:
        engine.step()
    return time.perf_counter() - started


def _model(shape: str, device: torch.device) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = config_of(shape)
    theirs = GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.n_positions, n_embd=config.n_embd,
        n_layer=config.n_layer, n_head=config.n_head, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    with torch.device(device):
        model = GPT2LMHeadModel(theirs)
    return model.to(device=device, dtype=torch.bfloat16).eval()


def _theirs(model: Any, prompts: list[list[int]], num_tokens: int) -> float:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    size = {"num_blocks": 8, "max_batch_tokens": 16} if model.device.type == "cpu" else {}
    config = GenerationConfig(
        max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    started = time.perf_counter()
    outputs = model.generate_batch(
        prompts,
        generation_config=config,
        continuous_batching_config=ContinuousBatchingConfig(**size),
        persistent_manager=True,  # as a server would have it: not made anew for each batch
    )
    seconds = time.perf_counter() - started
    lengths = {len(output.generated_tokens) for output in outputs.values()}
    if len(outputs) != len(prompts) or lengths != {num_tokens}:
        raise ArithmeticError(f"transformers gave {len(outputs)} outputs of {lengths} tokens")
    return seconds
