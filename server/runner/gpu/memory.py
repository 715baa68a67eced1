"""How a GPU's memory is divided, once everything but the KV cache has been loaded and run. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from server.config import EngineConfig, Limits
from server.errors import ConfigError
from server.runner.memory import shown

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes, as the driver counts them."""

    total: int  # of the GPU
    others: int  # in use before we began: other processes, and our own CUDA context
    weights: int
    workspace: int  # activations, rows, logits, graphs: what the largest steps left allocated

    @property
    def used(self) -> int:
        return self.others + self.weights + self.workspace


@dataclass(frozen=True, slots=True)
class GpuMemoryPlan:
    measured: Measured
    block_bytes: int  # one KV block, all layers
    num_blocks: int
    block_size: int

    def lines(self) -> list[str]:
        """The memory table, for people."""
        found, kv_bytes = self.measured, self.num_blocks * self.block_bytes
        tokens = self.num_blocks * self.block_size
        rows = [
            ("in use", found.others, "before we began"),
            ("weights", found.weights, ""),
            ("workspace", found.workspace, "activations, rows, logits and graphs, measured"),
            ("KV cache", kv_bytes, f"{self.num_blocks:,} blocks hold {tokens:,} tokens"),
            ("left free", found.total - found.used - kv_bytes, f"of {shown(found.total)}"),
        ]
        return [f"{name:<10} {shown(size):>10}   {note}".rstrip() for name, size, note in rows]


def plan_gpu_memory(
    config: EngineConfig, limits: Limits, measured: Measured, block_bytes: int
) -> GpuMemoryPlan:
    """All that `gpu_memory_utilization` leaves, or `kv_cache_gib`. Raises ConfigError when short."""
    left = int(measured.total * config.gpu_memory_utilization) - measured.used
    need = limits.blocks_per_seq * block_bytes
    asked = left if config.kv_cache_gib is None else int(config.kv_cache_gib * _GIB)
    if asked > left:
        raise ConfigError(
            f"--kv-cache-gib {config.kv_cache_gib:g} is more than the {left / _GIB:.2f} GiB that are "
            f"left of the GPU. Lower it, or leave it out."
        )
    if asked < need:
        raise ConfigError(
            f"Too little GPU memory: of {shown(measured.total)}, {shown(measured.others)} were in use, "
            f"the weights take {shown(measured.weights)}, the workspace {shown(measured.workspace)}; the "
            f"KV cache of one sequence of {limits.max_model_len} tokens takes {shown(need)} and would "
            f"have {shown(max(asked, 0))}. Free some memory, raise --gpu-memory-utilization, or lower "
            "--max-num-batched-tokens, --max-num-seqs or --max-model-len."
        )
    return GpuMemoryPlan(measured, block_bytes, asked // block_bytes, config.block_size)
