"""The memory plan, and how much memory there is."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from kernels.cpu.int8_linear import pack_int8
from kernels.cpu.scratch import kind_of, words_per_row
from server.budget import shown
from server.config import EngineConfig, Limits, Quantization
from server.errors import ConfigError
from server.model.config import GPTConfig
from server.model.kv_cache import KVCache
from server.runner.cpu_runner import num_logit_rows
from server.runner.memory import MemoryPlan, available_bytes, plan_memory, weights_bytes
from server.runner.rows import Rows
from tests.runner.rig import load_tiny

GPT2 = GPTConfig(
    vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12, n_inner=3072
)
GIB = 1 << 30
BF16 = torch.bfloat16
BLOCK_BYTES = KVCache.bytes_per_block(GPT2, 16, BF16)


def plan(
    available: float = 64 * GIB, dtype: torch.dtype = BF16, num_threads: int = 2, **config: object
) -> MemoryPlan:
    limits = Limits(1024, max_num_seqs=64, max_num_batched_tokens=512, block_size=16)
    engine_config = EngineConfig(**config)  # type: ignore[arg-type]
    return plan_memory(engine_config, GPT2, dtype, limits, int(available), num_threads)


def test_weights_are_counted_as_packed() -> None:
    """124,439,808 parameters; the tied head is packed once more."""
    assert weights_bytes(GPT2, torch.float32) == 4 * (124_439_808 + 50257 * 768)


def test_int8_weights_are_counted_as_packed() -> None:
    """A byte for each weight of a matrix, and a scale and an offset for each output, of which there are a
    bias's, and 50,257; embeddings stay."""
    embeddings, linears = (50257 + 1024) * 768, 12 * 12 * 768 * 768
    outputs = 12 * 9 * 768 + 50257
    vectors = 124_439_808 - embeddings - linears
    expected = 2 * embeddings + linears + 50257 * 768 + 4 * vectors + 8 * outputs
    assert weights_bytes(GPT2, BF16, is_int8=True) == expected
    bf16 = weights_bytes(GPT2, BF16)
    assert bf16 - expected == linears + 50257 * 768 - 8 * outputs
    assert plan(quantization="int8").weights_bytes == expected


def test_the_arrays_of_an_int8_linear_are_what_is_counted() -> None:
    packed = pack_int8(torch.ones(128, 256), torch.ones(128))
    arrays = packed.weight, packed.offsets, packed.scales, packed.bias
    assert sum(array.nbytes for array in arrays) == 128 * 256 + 128 * 3 * 4


def test_the_workspace_counts_what_the_largest_step_takes() -> None:
    """83 rows of logits; 512 tokens of activations and 20 logprobs; 64 rows; a sampler a thread."""
    activations = 4 * 768 + 2 * (4 * 768 + 3072) + 4 * words_per_row(kind_of(BF16, 3072), 3072)
    rows = 64 * (4 * 1024 + 4 * 64 + 4 * 1571)
    most = 83 * 4 * 50257 + 512 * activations + 512 * 2 * 8 * 21 + rows
    assert plan(num_threads=0).workspace_bytes == most
    assert plan(num_threads=3).workspace_bytes == most + 3 * 16 * 50257


@pytest.mark.parametrize("quantization", get_args(Quantization))
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_the_rows_of_the_largest_step_are_what_is_counted(
    tiny_model_dir: Path, dtype: torch.dtype, quantization: Quantization
) -> None:
    model = load_tiny(tiny_model_dir, dtype, quantization)
    limits = Limits(64, max_num_seqs=4, max_num_batched_tokens=48, block_size=16)
    engine_config = EngineConfig(quantization=quantization)
    parts = plan_memory(engine_config, model.config, dtype, limits, GIB, 2).workspace
    rows = model._rows_for(48)
    arrays = rows.residual, rows.hidden, rows.qkv, rows.inner, rows.scratch
    counted = {part.name: part.max_bytes for part in parts}
    assert sum(array.nbytes for array in arrays) == counted["activations"]


def test_the_default_holds_every_sequence_at_full_length() -> None:
    found = plan()
    assert found.num_blocks == 64 * 1024 // 16
    assert not found.is_capped


def test_the_default_takes_half_of_what_is_left() -> None:
    found = plan(2 * GIB)
    left = 2 * GIB - found.weights_bytes - found.workspace_bytes
    assert found.is_capped
    assert left // 2 - BLOCK_BYTES < found.num_blocks * BLOCK_BYTES <= left // 2


def test_one_full_sequence_always_fits_or_it_is_an_error() -> None:
    need = plan().weights_bytes + plan().workspace_bytes + 64 * BLOCK_BYTES
    assert plan(need).num_blocks == 64, "more than the half that the default takes"
    with pytest.raises(ConfigError, match=r"Too little memory.*--max-model-len"):
        plan(need - 1)


def test_float32_is_told_of_bfloat16() -> None:
    with pytest.raises(ConfigError, match="--dtype bfloat16"):
        plan(GIB // 2, torch.float32)
    with pytest.raises(ConfigError, match=r"--max-model-len, or try --quantization int8\.$"):
        plan(GIB // 8)
    with pytest.raises(ConfigError, match=r"--max-model-len\.$"):
        plan(GIB // 8, quantization="int8")


def test_an_asked_size_is_taken_or_refused() -> None:
    found = plan(kv_cache_gib=1.5)
    assert found.num_blocks == int(1.5 * GIB) // BLOCK_BYTES
    assert not found.is_capped
    with pytest.raises(ConfigError, match="--kv-cache-gib 70 is more than the 63"):
        plan(kv_cache_gib=70)
    with pytest.raises(ConfigError, match=r"does not hold one sequence.*takes 0\.0352"):
        plan(kv_cache_gib=0.01)


def test_the_table_adds_up_and_says_how_many_tokens() -> None:
    found = plan(3 * GIB, kv_cache_gib=1.0)
    assert [part.name for part in found.parts] == [
        *("weights", "activations", "logits", "logprobs_scratch", "sampler_scratch", "rows"),
        "kv_cache",
    ]
    assert f"hold {found.num_blocks * 16:,} tokens" in found.parts[-1].note
    left = 3 * GIB - sum(part.max_bytes for part in found.parts)
    assert found.left_line.endswith(f": {shown(left)} of 3.00 GiB")


def test_what_is_planned_is_what_is_allocated() -> None:
    """Rows, logits and KV blocks, by the bytes of their arrays."""
    small = GPTConfig(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=2, n_inner=64)
    limits = Limits(64, max_num_seqs=4, max_num_batched_tokens=32, block_size=16)
    found = plan_memory(EngineConfig(), small, torch.float32, limits, GIB, 1)
    parts = {part.name: part.max_bytes for part in found.parts}
    cache = KVCache.allocate(small, found.num_blocks, 16, torch.float32)
    assert parts["kv_cache"] == sum(tensor.nbytes for tensor in (*cache.k, *cache.v))
    rows = Rows(4, 64, 16, 300)
    assert (
        parts["rows"] == rows.token_ids.nbytes + rows.block_tables.nbytes + rows.masks.words.nbytes
    )
    assert parts["logits"] == torch.empty(num_logit_rows(300), 300).nbytes


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable:    4000 kB\n")
    return proc


def write_group(
    directory: Path,
    limit: str,
    used: int,
    cache: str,
    files: tuple[str, str] = ("memory.max", "memory.current"),
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / files[0]).write_text(f"{limit}\n")
    (directory / files[1]).write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"anon 5\n{cache}\n")


def test_without_limits_it_is_mem_available(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/user/me\n")
    write_group(tmp_path / "cg" / "user" / "me", "max", 1000, "inactive_file 3")
    assert available_bytes(proc, tmp_path / "cg") == 4000 * 1024


def test_the_nearest_limit_of_all_groups_above_counts(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/outer/inner\n")
    write_group(tmp_path / "cg" / "outer", "50000", 20000, "inactive_file 700")
    write_group(tmp_path / "cg" / "outer" / "inner", "90000", 15000, "inactive_file 0")
    assert available_bytes(proc, tmp_path / "cg") == 50000 - 20000 + 700


def test_cgroup_v1(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("4:cpu,cpuacct:/a\n3:memory:/a\n1:name=systemd:/a\n")
    write_group(
        tmp_path / "cg" / "memory" / "a",
        "60000",
        10000,
        "total_inactive_file 100",
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    )
    assert available_bytes(proc, tmp_path / "cg") == 50100


def test_a_group_over_its_limit_has_no_room(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/\n")
    write_group(tmp_path / "cg", "100", 500, "inactive_file 0")
    assert available_bytes(proc, tmp_path / "cg") == 0


def test_this_machine_has_some() -> None:
    assert available_bytes() > 1 << 20
