"""The memory plan of a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.config import EngineConfig, Limits
from server.errors import ConfigError
from server.runner.gpu.memory import GpuMemoryPlan, Measured, plan_gpu_memory

GIB = 1 << 30
BLOCK_BYTES = 589_824  # 124M, blocks of 16, bf16
MEASURED = Measured(total=80 * GIB, others=GIB, weights=GIB // 4, workspace=GIB // 2)


def plan(measured: Measured = MEASURED, **config: object) -> GpuMemoryPlan:
    return plan_gpu_memory(
        EngineConfig(**config), Limits(1024, 256, 4096, 16), measured, BLOCK_BYTES
    )  # type: ignore[arg-type]


def test_the_cache_takes_what_the_share_leaves() -> None:
    found = plan(gpu_memory_utilization=0.9)
    left = int(80 * GIB * 0.9) - MEASURED.used
    assert left - BLOCK_BYTES < found.num_blocks * BLOCK_BYTES <= left
    assert plan(gpu_memory_utilization=0.5).num_blocks < found.num_blocks


def test_an_asked_size_is_taken_or_refused() -> None:
    assert plan(kv_cache_gib=2).num_blocks == 2 * GIB // BLOCK_BYTES
    with pytest.raises(ConfigError, match=r"--kv-cache-gib 75 is more than the 70\.25 GiB"):
        plan(kv_cache_gib=75)


def test_one_sequence_of_full_length_fits_or_it_is_an_error() -> None:
    need = 64 * BLOCK_BYTES
    assert plan(kv_cache_gib=need / GIB).num_blocks == 64
    with pytest.raises(ConfigError, match=r"one sequence of 1024 tokens takes 36\.0 MiB"):
        plan(kv_cache_gib=(need - 1) / GIB)
    full = Measured(total=8 * GIB, others=8 * GIB, weights=GIB, workspace=GIB)
    with pytest.raises(ConfigError, match=r"would have 0\.0 MiB\. Free some memory"):
        plan(full)


def test_the_table_adds_up() -> None:
    found = plan(kv_cache_gib=2)
    assert [part.name for part in found.parts] == ["weights", "workspace", "graphs", "kv_cache"]
    assert "3,640 blocks hold 58,240 tokens" in found.parts[3].note
    assert found.left_line.startswith("left free of the GPU's 80.00 GiB: 76.25 GiB")


def test_all_graphs_have_room_before_the_cache_takes_the_rest() -> None:
    with_graphs = replace(MEASURED, graph=4 << 20, max_graphs=111)
    found, without = plan(with_graphs), plan()
    assert found.parts[2].max_bytes == 111 * (4 << 20)
    lost = (without.num_blocks - found.num_blocks) * BLOCK_BYTES
    assert abs(lost - 111 * (4 << 20)) < BLOCK_BYTES
