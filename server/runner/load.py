"""From a config to a runner that is warm: choices, memory, weights, KV cache, compiled kernels.

For the composition root. Everything that was chosen is said in `LoadedRunner.lines`.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kernels.cpu.threads import set_threads
from kernels.cpu.tile import HAS_BF16_DOT
from kernels.cpu.warm_up import warm_up
from server.config import EngineConfig
from server.errors import ConfigError
from server.model.config import GPTConfig, read_config
from server.model.kv_cache import KVCache
from server.model.load import load_model
from server.runner.cpu_runner import CpuRunner
from server.runner.fingerprint import system_fingerprint
from server.runner.memory import available_bytes, plan_memory

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class LoadedRunner:
    """A runner, and what the engine and its api must know about it."""

    runner: CpuRunner
    config: EngineConfig  # device, dtype and max_model_len as chosen
    max_model_len: int  # tokens
    num_blocks: int
    vocab_size: int  # width of the logits
    system_fingerprint: str
    lines: list[str]  # what was chosen and why, for people


def resolve(
    config: EngineConfig, gpt_config: GPTConfig, *, has_bf16_dot: bool = HAS_BF16_DOT
) -> tuple[EngineConfig, list[str]]:
    """Choose what is "auto" or None, except the size of the KV cache. Raises ConfigError."""
    context = gpt_config.n_positions
    max_model_len = context if config.max_model_len is None else config.max_model_len
    if max_model_len > context:
        raise ConfigError(
            f"--max-model-len {max_model_len} is more than the {context} positions the model has."
        )
    lines = [
        "device cpu: this version runs on the CPU" if config.device == "auto" else "device cpu"
    ]
    dtype = config.dtype
    if dtype != "auto":
        lines.append(f"dtype {dtype}")
    elif has_bf16_dot:
        dtype = "bfloat16"
        lines.append(
            "dtype bfloat16: this CPU multiplies it directly, in half the bytes of float32"
        )
    else:
        dtype = "float32"
        lines.append("dtype float32: this CPU has no bfloat16 dot product")
    why = "the model's context" if max_model_len == context else f"of the model's {context}"
    lines.append(f"max_model_len {max_model_len} tokens, {why}")
    resolved = replace(config, device="cpu", dtype=dtype, max_model_len=max_model_len)
    return resolved, lines


def build_runner(
    config: EngineConfig, never_sampled_ids: Collection[int], num_threads: int
) -> LoadedRunner:
    """`config.model` is a directory. `num_threads`: of the kernels, set for the whole process."""
    model_dir = Path(config.model)
    set_threads(num_threads)
    gpt_config = read_config(model_dir)
    config, lines = resolve(config, gpt_config)
    dtype = _DTYPES[config.dtype]
    max_model_len = config.max_model_len or gpt_config.n_positions
    plan = plan_memory(config, gpt_config, dtype, max_model_len, available_bytes())
    with ThreadPoolExecutor(1) as pool:  # hashing the weights takes as long as reading them
        fingerprint = pool.submit(system_fingerprint, model_dir, config.dtype, never_sampled_ids)
        model = load_model(model_dir, dtype, gpt_config)
        kv_cache = KVCache.allocate(gpt_config, plan.num_blocks, config.block_size, dtype)
        runner = CpuRunner(
            model,
            kv_cache,
            max_num_seqs=config.max_num_seqs,
            max_model_len=max_model_len,
            never_sampled_ids=never_sampled_ids,
        )
        warm_up(dtype)
    lines.append(f"threads {num_threads}")
    if plan.is_capped:
        lines.append(
            "KV cache smaller than max_num_seqs full contexts: it takes half of the memory left"
        )
    return LoadedRunner(
        runner,
        config,
        max_model_len,
        plan.num_blocks,
        gpt_config.vocab_size,
        fingerprint.result(),
        lines + plan.lines(),
    )
