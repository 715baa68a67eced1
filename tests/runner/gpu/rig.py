"""The real engine over the GPU runner: on a GPU where there is one, else every kernel in the interpreter."""

from __future__ import annotations

from pathlib import Path

import torch

from server.config import Limits
from server.engine.block_manager import BlockManager
from server.engine.engine import Engine
from server.engine.prefix_cache import PrefixCache
from server.engine.scheduler import Scheduler
from server.model.checkpoint import load_weights
from server.model.config import read_config
from server.model.device_kv_cache import FP8, DeviceKVCache
from server.model.gpu_gpt import GpuGPT
from server.runner.gpu.queue import CudaQueue, EagerQueue, Queue
from server.runner.gpu.runner import GpuRunner
from tests.kernels.gpu.device import DEVICE
from tests.runner.rig import MAX_MODEL_LEN, NEVER_SAMPLED, VOCAB_SIZE, Rig

MAX_NUM_BATCHED_TOKENS = 64


def load_tiny(directory: Path, dtype: torch.dtype) -> GpuGPT:
    config = read_config(directory)
    weights = load_weights(directory, config)
    return GpuGPT(config, weights, dtype, DEVICE, MAX_NUM_BATCHED_TOKENS)


def make_queue() -> Queue:
    return CudaQueue(DEVICE) if DEVICE.type == "cuda" else EagerQueue()


def make_runner(
    model: GpuGPT,
    *,
    num_blocks: int = 80,
    block_size: int = 8,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS,
    cache_dtype: torch.dtype | None = None,
) -> GpuRunner:
    """Its cache is NaN: what is read before it is written shows."""
    kv_cache = DeviceKVCache.allocate(
        model.config, num_blocks, block_size, cache_dtype or model.dtype, DEVICE
    )
    for tensor in (*kv_cache.k, *kv_cache.v):
        if tensor.dtype == FP8:
            tensor.view(torch.uint8).fill_(0x7F)
        else:
            tensor.fill_(float("nan"))
    limits = Limits(MAX_MODEL_LEN, max_num_seqs, max_num_batched_tokens, block_size)
    return GpuRunner(model, kv_cache, make_queue(), limits, NEVER_SAMPLED)


def make_rig(
    model: GpuGPT,
    *,
    num_blocks: int = 80,
    block_size: int = 8,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS,
    cache_dtype: torch.dtype | None = None,
) -> Rig:
    runner = make_runner(
        model,
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        cache_dtype=cache_dtype,
    )
    scheduler = Scheduler(
        BlockManager(num_blocks, PrefixCache(block_size)),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=MAX_MODEL_LEN,
    )
    return Rig(Engine(scheduler, runner, VOCAB_SIZE))
