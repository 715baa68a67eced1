"""From what was resolved to a GPU runner that is warm: weights, measured memory, KV cache, graphs."""

from __future__ import annotations

import gc
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import torch

from kernels.gemm import capability
from server.board import Board
from server.errors import ConfigError
from server.model.checkpoint import Checkpoint
from server.model.config import GPTConfig
from server.model.device_kv_cache import FP8, DeviceKVCache, block_bytes
from server.model.gpu_gpt import GpuGPT
from server.model_files import ModelFiles
from server.runner.fingerprint import system_fingerprint
from server.runner.gpu.compiling import watch_compilations
from server.runner.gpu.memory import Measured, plan_gpu_memory
from server.runner.gpu.queue import CudaQueue
from server.runner.gpu.runner import GpuRunner
from server.runner.load import DTYPES, LoadedRunner, Resolved
from server.runner.not_finite import warn_of_not_finite

# Graphs that are captured before the first request; those of other batch sizes follow when first met.
GRAPHS_AT_START_S = 2.0
_GRAPHS_MEASURED_S = 0.5


def build_gpu_runner(
    resolved: Resolved,
    files: ModelFiles,
    gpt_config: GPTConfig,
    never_sampled_ids: Collection[int],
    board: Board | None = None,
) -> LoadedRunner:
    """`files`: of `resolved.config.model`. Raises ConfigError."""
    config, limits, lines = resolved
    if board is not None:
        watch_compilations(board)
    device = torch.device("cuda", torch.cuda.current_device())
    dtype = DTYPES[config.dtype]
    cache_dtype = FP8 if config.kv_cache_dtype == "fp8" else dtype
    check_supported(gpt_config, cache_dtype, capability(device))
    checkpoint = Checkpoint(files, gpt_config)  # first: a bad file is refused before it is hashed
    with ThreadPoolExecutor(1) as pool:  # hashing the weights takes as long as reading them
        fingerprint = pool.submit(
            system_fingerprint, files, f"{config.dtype} {cache_dtype}", never_sampled_ids,
            gpu_facts(device),
        )  # fmt: skip
        others = _used_bytes(device)
        weights = checkpoint.weights()
        model = GpuGPT(gpt_config, weights, dtype, device, limits.max_num_batched_tokens)
        del weights
        queue = CudaQueue(device)

        def runner_with(num_blocks: int) -> GpuRunner:
            kv_cache = DeviceKVCache.allocate(
                gpt_config, num_blocks, config.block_size, cache_dtype, device
            )
            return GpuRunner(model, kv_cache, queue, limits, never_sampled_ids, board)

        size = block_bytes(gpt_config, config.block_size, cache_dtype)
        after_weights = _used_bytes(device)
        runner = runner_with(limits.blocks_per_seq)
        for num_tokens in _profiled_sizes(limits.max_num_batched_tokens):
            runner.profile(num_tokens)
        num_first = runner.warm_up(0)  # the largest one, whose memory the others share
        after_steps = _used_bytes(device)
        num_more = runner.warm_up(_GRAPHS_MEASURED_S) - num_first
        measured = Measured(
            total=torch.cuda.mem_get_info(device)[1],
            others=others,
            weights=after_weights - others,
            workspace=after_steps - after_weights - limits.blocks_per_seq * size,
            graph=max(0, _used_bytes(device) - after_steps) // max(1, num_more),
            max_graphs=runner.max_graphs,
        )
        del runner
        gc.collect()
        torch.cuda.empty_cache()
        plan = plan_gpu_memory(config, limits, measured, size)
        runner = runner_with(plan.num_blocks)
        started = time.monotonic()
        num_graphs = runner.warm_up(GRAPHS_AT_START_S)
    files.check_unchanged()
    name = torch.cuda.get_device_name(device)
    lines += [
        f"GPU {name}",
        f"captured {num_graphs} graphs in {time.monotonic() - started:.1f} s; others when first needed",
    ]
    return LoadedRunner(
        runner,
        config,
        limits,
        plan.num_blocks,
        gpt_config.vocab_size,
        fingerprint.result(),
        [*lines, plan.left_line],
        plan.parts,
        warn_of_not_finite(checkpoint),
    )


def _profiled_sizes(max_num_tokens: int) -> list[int]:
    """Prompt rows of steps that between them use every tile there is; the largest last."""
    return [
        size for size in (1, 17, 33, 65, 129, 257, 513, 1025, 2049) if size < max_num_tokens
    ] + [max_num_tokens]


def check_supported(config: GPTConfig, cache_dtype: torch.dtype, gpu: tuple[int, int]) -> None:
    """Raises ConfigError for what the GPU kernels do not have. `gpu`: as of `kernels.gemm.capability`."""
    if config.head_dim % 16 or config.head_dim > 256:
        raise ConfigError(
            f"The GPU kernels take head sizes that are multiples of 16, up to 256; this model has "
            f"{config.head_dim}. Use --device cpu."
        )
    if cache_dtype == FP8 and (0, 0) < gpu < (8, 9):
        raise ConfigError(
            f"--kv-cache-dtype fp8 needs an NVIDIA GPU of compute capability 8.9 or newer; this one has "
            f"{gpu[0]}.{gpu[1]}. Leave it out."
        )


def gpu_facts(device: torch.device) -> dict[str, str]:
    """What tells one kind of GPU from another: the code that is compiled, and its order of additions."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": str(torch.version.cuda),
    }


def _used_bytes(device: torch.device) -> int:
    free, total = torch.cuda.mem_get_info(device)
    return total - free
