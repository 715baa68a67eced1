"""How a GPU's memory is divided, once everything but the KV cache has been loaded and run. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from server.budget import Part, shown
from server.config import EngineConfig, Limits
from server.errors import ConfigError

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes, as the driver counts them."""

    total: int  # of the GPU
    others: int  # in use before we began: other processes, and our own CUDA context
    weights: int
    workspace: int  # activations, rows, logits: what the largest steps left allocated
    graph: int = 0  # one captured graph, the mean of some
    max_graphs: int = 0  # captured in the end

    @property
    def graphs(self) -> int:
        return self.graph * self.max_graphs

    @property
    def used(self) -> int:
        return self.others + self.weights + self.workspace + self.graphs


@dataclass(frozen=True, slots=True)
class GpuMemoryPlan:
    measured: Measured
    block_bytes: int  # one KV block, all layers
    num_blocks: int
    block_size: int

    @property
    def parts(self) -> tuple[Part, ...]:
        """All of the GPU's memory that is ours; `graphs` of them are allocated as they are captured."""
        found, tokens = self.measured, self.num_blocks * self.block_size
        kv_note = f"{self.num_blocks:,} blocks hold {tokens:,} tokens"
        graphs_note = f"room for all {found.max_graphs}, by the size of the first ones"
        return (
            Part("weights", found.weights, "measured"),
            Part("workspace", found.workspace, "activations, rows, logits, logprobs: measured"),
            Part("graphs", found.graphs, graphs_note),
            Part("kv_cache", self.num_blocks * self.block_bytes, kv_note),
        )

    @property
    def left_line(self) -> str:
        found = self.measured
        left = found.total - found.used - self.num_blocks * self.block_bytes
        return (
            f"left free of the GPU's {shown(found.total)}: {shown(left)}; in use before we began: "
            f"{shown(found.others)}"
        )


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
