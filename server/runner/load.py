"""From a config to a runner that is warm: choices, memory, weights, KV cache, compiled kernels.

For the composition root. Everything that was chosen is said in `LoadedRunner.lines`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch

from kernels.cpu.int8_linear import MAX_N_IN
from kernels.cpu.kinds import BF16_KINDS, Kind
from kernels.cpu.threads import set_threads, use_threads
from kernels.cpu.warm_up import warm_up
from server.board import Board
from server.budget import Part
from server.config import CPU_DTYPES, EngineConfig, Limits
from server.errors import ConfigError
from server.model.checkpoint import Checkpoint
from server.model.config import GPTConfig, read_config
from server.model.config_fields import ignored_in_words
from server.model.gpt import GPT
from server.model.kv_cache import KVCache
from server.model_files import ModelFiles
from server.runner.batch import Runner
from server.runner.cpu_runner import CpuRunner
from server.runner.fingerprint import system_fingerprint
from server.runner.memory import available_bytes, plan_memory
from server.runner.not_finite import warn_of_not_finite
from server.runner.thread_choice import ThreadChoice

_log = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# By device: sequences at once, and token rows in a step. A GPU reads its weights once a step, for however
# many rows; on a CPU a long step makes running streams wait.
_DEFAULT_SIZES = {"cpu": (64, 512), "cuda": (256, 4096)}

# Generated rows that take as long as what a step takes for itself, by what multiplies the weights. BF16_DOT
# as measured on two cores of an EPYC (1, 4 and 8 rows of the embedded model: 0.48, 0.77 and 1.3 ms; of a 124M
# one 4 and 8 rows take 1.1 to 1.3 and 1.6 times the time of one). F32 and BF16 on two cores with AVX2 (1 and
# 8 rows of the embedded model: 0.86 and 2.0 ms in bf16, 1.3 and 3.3 in fp32); AMX by bytes and products.
_NUM_FREE_ROWS = {Kind.F32: 4.0, Kind.BF16: 4.0, Kind.BF16_DOT: 5.0, Kind.BF16_AMX: 8.0}


class Chunks(NamedTuple):
    """What prompt tokens take on a device, beside generated ones."""

    min_chunk: int  # as long as what a step takes for itself, or less
    prompt_per_decode: int  # as long as a generated token, or less
    most_prompts: int  # that may make a step so much longer at once


# Without instructions for bf16 a row of a prompt takes what a generated one does: beside 8 generated rows of
# the embedded model (2.2 ms) 8 prompt tokens take 0.9 ms and 32 take 3.3; of a 124M one (17) 11 and 43.
_WIDENED_CHUNKS = Chunks(8, 1, 4)
_CHUNKS = {
    Kind.F32: _WIDENED_CHUNKS,
    Kind.BF16: _WIDENED_CHUNKS,
    Kind.BF16_DOT: Chunks(32, 3, 1),
    Kind.BF16_AMX: Chunks(32, 3, 1),
}


@dataclass(frozen=True, slots=True)
class LoadedRunner:
    """A runner, and what the engine and its api must know about it."""

    runner: Runner
    config: EngineConfig  # device and dtype as chosen
    limits: Limits
    num_blocks: int
    vocab_size: int  # width of the logits
    system_fingerprint: str
    lines: list[str]  # what was chosen and why, for people
    parts: tuple[Part, ...]  # all memory that is allocated at the start
    num_not_finite_tensors: int = 0
    num_free_rows: float = 0.0  # that take as long as what a step takes for itself; 0: no drafts
    chunks: Chunks | None = None  # None: a step takes as long with a whole prompt


class Resolved(NamedTuple):
    """The choices of `resolve`."""

    config: EngineConfig
    limits: Limits
    lines: list[str]


def resolve(
    config: EngineConfig,
    gpt_config: GPTConfig,
    *,
    bf16_kind: Kind = BF16_KINDS[0],
    has_gpu: bool | None = None,
) -> Resolved:
    """Choose what is "auto" or None, except the size of the KV cache. Raises ConfigError."""
    has_gpu = torch.cuda.is_available() if has_gpu is None else has_gpu
    device, why_device = _device(config, has_gpu)
    dtype, why_dtype = _dtype(config, device, bf16_kind)
    context = gpt_config.n_positions
    max_model_len = context if config.max_model_len is None else config.max_model_len
    if max_model_len > context:
        raise ConfigError(
            f"--max-model-len {max_model_len} is more than the {context} positions the model has."
        )
    why = "the model's context" if max_model_len == context else f"of the model's {context}"
    lines = [
        f"device {device}{why_device}",
        f"dtype {dtype}{why_dtype}",
        *_quantization_lines(config, gpt_config),
        f"max_model_len {max_model_len} tokens, {why}",
    ]
    resolved = replace(config, device=device, dtype=dtype, max_model_len=max_model_len)
    return Resolved(resolved, _limits(config, device, max_model_len), lines)


def _device(config: EngineConfig, has_gpu: bool) -> tuple[Literal["cpu", "cuda"], str]:
    if config.kv_cache_dtype == "fp8" and (config.device == "cpu" or not has_gpu):
        raise ConfigError("--kv-cache-dtype fp8 is for GPUs; leave it out on a CPU.")
    is_on_gpu = config.device == "cuda" or (config.device == "auto" and has_gpu)
    if config.quantization != "none" and is_on_gpu:
        raise ConfigError(
            f"--quantization {config.quantization} does not run on a GPU yet: use --device cpu, or leave "
            "it out."
        )
    if config.device == "cpu":
        return "cpu", ""
    if config.device == "cuda":
        if not has_gpu:
            raise ConfigError(
                "--device cuda: torch sees no GPU here. Check nvidia-smi, and that this torch was "
                "built with CUDA (make setup TORCH=cuda); or use --device cpu."
            )
        return "cuda", ""
    return ("cuda", ": torch sees a GPU") if has_gpu else ("cpu", ": torch sees no GPU here")


def _dtype(
    config: EngineConfig, device: str, bf16_kind: Kind
) -> tuple[Literal["bfloat16", "float16", "float32"], str]:
    if config.dtype != "auto":
        if device == "cpu" and config.dtype not in CPU_DTYPES:
            raise ConfigError(
                "--dtype float16 is for GPUs; on a CPU use bfloat16, float32 or auto."
            )
        return config.dtype, ""
    if device == "cuda":
        return "bfloat16", ": half the bytes of float32, and its range"
    how = "widens it as it reads" if bf16_kind == Kind.BF16 else "multiplies it directly"
    return "bfloat16", f": half the bytes of float32, and this CPU {how}"


def _quantization_lines(config: EngineConfig, gpt_config: GPTConfig) -> list[str]:
    if config.quantization == "none":
        return []
    widest = max(gpt_config.n_embd, gpt_config.n_inner)
    if widest > MAX_N_IN:
        raise ConfigError(
            f"--quantization {config.quantization}: sums of 32 bits hold {MAX_N_IN} products, and this "
            f"model's widest matrix has {widest}. Leave it out."
        )
    return [
        f"quantization {config.quantization}: of matrices, a scale for each output and each row"
    ]


def _limits(config: EngineConfig, device: str, max_model_len: int) -> Limits:
    """What was not given follows what was: a step has room for a token of every sequence."""
    num_seqs, num_tokens = _DEFAULT_SIZES[device]
    if config.max_num_seqs is not None:
        num_seqs, num_tokens = config.max_num_seqs, max(num_tokens, config.max_num_seqs)
    elif config.max_num_batched_tokens is not None:
        num_seqs = min(num_seqs, config.max_num_batched_tokens)
    if config.max_num_batched_tokens is not None:
        num_tokens = config.max_num_batched_tokens
    return Limits(max_model_len, num_seqs, num_tokens, config.block_size)


def build_runner(
    config: EngineConfig,
    never_sampled_ids: Collection[int],
    num_threads: int,
    board: Board | None = None,
) -> LoadedRunner:
    """`config.model` is a directory. `num_threads`: of the CPU kernels, set for the whole process.
    `board` is told how the runner gets on, from here on."""
    files = ModelFiles(config.model, config.model_manifest)
    gpt_config = read_config(files)
    if gpt_config.ignored:
        _log.warning("config.json: ignored %s", ignored_in_words(gpt_config.ignored))
    resolved = resolve(config, gpt_config)
    if resolved.config.device == "cuda":
        from server.runner.gpu.load import build_gpu_runner  # imports triton

        return build_gpu_runner(resolved, files, gpt_config, never_sampled_ids, board)
    return _build_cpu_runner(resolved, files, gpt_config, never_sampled_ids, num_threads, board)


def _build_cpu_runner(
    resolved: Resolved,
    files: ModelFiles,
    gpt_config: GPTConfig,
    never_sampled_ids: Collection[int],
    num_threads: int,
    board: Board | None,
) -> LoadedRunner:
    config, limits, lines = resolved
    most_threads = set_threads(num_threads)
    dtype = DTYPES[config.dtype]
    plan = plan_memory(config, gpt_config, dtype, limits, available_bytes(), num_threads)
    checkpoint = Checkpoint(files, gpt_config)  # first: a bad file is refused before it is hashed
    with ThreadPoolExecutor(1) as pool:  # hashing the weights takes as long as reading them
        fingerprint = pool.submit(
            system_fingerprint, files, f"{config.dtype} {config.quantization}", never_sampled_ids
        )
        model = GPT(gpt_config, checkpoint.weights(), dtype, config.quantization)
        kv_cache = KVCache.allocate(gpt_config, plan.num_blocks, config.block_size, dtype)
        runner = CpuRunner(
            model,
            kv_cache,
            max_num_seqs=limits.max_num_seqs,
            max_model_len=limits.max_model_len,
            never_sampled_ids=never_sampled_ids,
            board=board,
            threads=ThreadChoice(most_threads, use_threads),
        )
        warm_up(dtype, config.quantization)
    files.check_unchanged()
    lines.append(f"threads {num_threads}")
    if plan.is_capped:
        lines.append(
            "KV cache smaller than max_num_seqs full contexts: it takes half of the memory left"
        )
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
        _num_free_rows(config),
        _CHUNKS[_kind(config)],
    )


def _num_free_rows(config: EngineConfig) -> float:
    if config.prompt_lookup == "off":
        return 0.0
    return _NUM_FREE_ROWS[_kind(config)]


def _kind(config: EngineConfig) -> Kind:
    return Kind.F32 if config.dtype == "float32" else BF16_KINDS[0]
