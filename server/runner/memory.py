"""How much memory there is, and how it is divided: weights, what a step needs, KV blocks.

`plan_memory` is pure; `available_bytes` reads the system. Knows shapes, allocates nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from kernels.cpu.kinds import INT8_KINDS
from kernels.cpu.scratch import kind_of, words_per_row
from kernels.sampling_rows import mask_words
from server.budget import Part, shown, total_bytes
from server.config import EngineConfig, Limits
from server.errors import ConfigError
from server.model.config import GPTConfig
from server.model.kv_cache import KVCache
from server.runner.cpu_runner import num_logit_rows
from server.runner.prompt_logprobs import MAX_TOP

# Of what weights and workspace leave, the default KV cache takes at most this share: the rest of the
# machine, and the page cache that holds the checkpoint, live in the same memory.
_MAX_KV_SHARE = 0.5

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where the bytes go."""

    available_bytes: int  # before anything of ours is allocated
    weights_bytes: int
    workspace: tuple[Part, ...]  # of the largest step
    block_bytes: int  # one KV block, all layers
    num_blocks: int
    block_size: int
    is_capped: bool  # the default would have been more

    @property
    def workspace_bytes(self) -> int:
        return total_bytes(self.workspace)

    @property
    def parts(self) -> tuple[Part, ...]:
        """All that is allocated at the start."""
        tokens = self.num_blocks * self.block_size
        note = f"{self.num_blocks:,} blocks hold {tokens:,} tokens"
        return (
            Part("weights", self.weights_bytes),
            *self.workspace,
            Part("kv_cache", self.num_blocks * self.block_bytes, note),
        )

    @property
    def left_line(self) -> str:
        left = self.available_bytes - total_bytes(self.parts)
        available = shown(self.available_bytes)
        return f"left free beside weights, workspace and KV cache: {shown(left)} of {available}"


def plan_memory(
    config: EngineConfig,
    gpt_config: GPTConfig,
    dtype: torch.dtype,
    limits: Limits,
    available: int,
    num_threads: int,
) -> MemoryPlan:
    """Blocks for max_num_seqs full contexts, or kv_cache_gib. Raises ConfigError when short."""
    is_int8 = config.quantization == "int8"
    weights = weights_bytes(gpt_config, dtype, is_int8=is_int8)
    workspace_parts = _workspace(gpt_config, dtype, limits, num_threads, is_int8=is_int8)
    workspace = total_bytes(workspace_parts)
    block_bytes = KVCache.bytes_per_block(gpt_config, config.block_size, dtype)
    blocks_per_seq = limits.blocks_per_seq
    left = available - weights - workspace
    if left < blocks_per_seq * block_bytes:
        raise ConfigError(
            f"Too little memory: {shown(available)} are available, but the weights take "
            f"{shown(weights)}, a step {shown(workspace)} and the KV cache of one sequence of "
            f"{limits.max_model_len} tokens {shown(blocks_per_seq * block_bytes)}. Free some memory, raise "
            f"the container's limit, or lower --max-model-len{_advice(dtype, is_int8=is_int8)}."
        )
    wanted = limits.max_num_seqs * blocks_per_seq
    if config.kv_cache_gib is None:
        affordable = int(left * _MAX_KV_SHARE) // block_bytes
        num_blocks = max(min(wanted, affordable), blocks_per_seq)
    else:
        num_blocks = _asked_blocks(config.kv_cache_gib, block_bytes, blocks_per_seq, left)
    return MemoryPlan(
        available,
        weights,
        workspace_parts,
        block_bytes,
        num_blocks,
        config.block_size,
        config.kv_cache_gib is None and num_blocks < wanted,
    )


def _asked_blocks(kv_cache_gib: float, block_bytes: int, blocks_per_seq: int, left: int) -> int:
    asked = int(kv_cache_gib * _GIB)
    if asked > left:
        raise ConfigError(
            f"--kv-cache-gib {kv_cache_gib:g} is more than the {left / _GIB:.2f} GiB that weights "
            "and workspace leave. Lower it, or leave it out."
        )
    if asked < blocks_per_seq * block_bytes:
        need = blocks_per_seq * block_bytes / _GIB
        raise ConfigError(
            f"--kv-cache-gib {kv_cache_gib:g} does not hold one sequence of full length: that takes "
            f"{need:.3g}. Raise it, or lower --max-model-len."
        )
    return asked // block_bytes


def _advice(dtype: torch.dtype, *, is_int8: bool) -> str:
    if dtype == torch.float32:
        return ", or try --dtype bfloat16"
    return "" if is_int8 else ", or try --quantization int8"


def weights_bytes(config: GPTConfig, dtype: torch.dtype, *, is_int8: bool = False) -> int:
    """What the model holds: embeddings, and packed linears; a tied head is packed beside wte."""
    n, inner = config.n_embd, config.n_inner
    embeddings = (config.vocab_size + config.n_positions) * n
    head = config.vocab_size * n
    linears = config.n_layer * (4 * n * n + 2 * n * inner)
    vectors = config.n_layer * (9 * n + inner) + 2 * n  # biases and LayerNorms, in fp32
    if not is_int8:
        return (embeddings + head + linears) * dtype.itemsize + vectors * 4
    outputs = (
        config.n_layer * (5 * n + inner) + config.vocab_size
    )  # each with a scale and an offset
    return embeddings * dtype.itemsize + head + linears + (vectors + 2 * outputs) * 4


def _workspace(
    config: GPTConfig, dtype: torch.dtype, limits: Limits, num_threads: int, *, is_int8: bool
) -> tuple[Part, ...]:
    """Of the largest step: every row with a mask, every token a prompt's with MAX_TOP logprobs."""
    vocab_size, num_tokens = config.vocab_size, limits.max_num_batched_tokens
    # fp32 residual; hidden, qkv (3) and the MLP's inner rows in the compute dtype
    activations = 4 * config.n_embd + dtype.itemsize * (4 * config.n_embd + config.n_inner)
    activations += 4 * max(
        words_per_row(INT8_KINDS[0] if is_int8 else kind_of(dtype, width), width)
        for width in (config.n_embd, config.n_inner)
    )  # the rows of a linear that runs, as its weights want them
    logprobs = 2 * 8 * (1 + MAX_TOP)  # ids and values, as arrays and packed
    row = 4 * (limits.max_model_len + limits.blocks_per_seq) + 4 * mask_words(vocab_size)
    return (
        Part("activations", num_tokens * activations, "of the largest step"),
        Part("logits", num_logit_rows(vocab_size) * 4 * vocab_size),
        Part("logprobs_scratch", num_tokens * logprobs, f"of {num_tokens} prompt tokens"),
        # a sampler's: z, what is kept, weights, counts
        Part("sampler_scratch", num_threads * 4 * 4 * vocab_size),
        Part("rows", limits.max_num_seqs * row, "token ids, block tables, masks"),
    )


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """What this process may still allocate: MemAvailable, or less where a cgroup's limit is nearer."""
    meminfo = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    rooms = [int(meminfo["MemAvailable"].split()[0]) * 1024]
    for entry in (proc / "self" / "cgroup").read_text().splitlines():
        _, controllers, path = entry.split(":", 2)
        if not controllers:
            files = ("memory.max", "memory.current")
            rooms += _cgroup_rooms(cgroups, path, *files, "inactive_file")
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            rooms += _cgroup_rooms(cgroups / "memory", path, *files, "total_inactive_file")
    return min(rooms)


def _cgroup_rooms(root: Path, path: str, limit: str, usage: str, cache: str) -> list[int]:
    """Room in a group and all above it. Page cache that can be dropped is room too."""
    group = root / path.lstrip("/")
    rooms = []
    for directory in (group, *group.parents):
        if not directory.is_relative_to(root):
            break
        try:
            top = (directory / limit).read_text().strip()
            used = int((directory / usage).read_text())
            stat = dict(
                line.split() for line in (directory / "memory.stat").read_text().splitlines()
            )
        except OSError:
            continue  # the root group has no limit; a namespace hides groups above ours
        if top != "max":
            rooms.append(max(0, int(top) - used + int(stat.get(cache, 0))))
    return rooms
