"""From a config to a warm runner, and what it says it chose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numba
import pytest
import torch

from kernels.cpu.kinds import Kind
from server.config import EngineConfig, Limits, Quantization
from server.errors import ConfigError
from server.model.config import read_config
from server.runner.load import build_runner, resolve
from tests.runner.rig import NEVER_SAMPLED


def test_auto_is_resolved_and_said(tiny_model_dir: Path) -> None:
    gpt_config = read_config(tiny_model_dir)
    found = resolve(EngineConfig(), gpt_config, bf16_kind=Kind.BF16_DOT, has_gpu=False)
    assert (found.config.device, found.config.dtype) == ("cpu", "bfloat16")
    assert found.limits == Limits(16384, 64, 512, 16)
    assert any("this CPU multiplies it directly" in line for line in found.lines)
    found = resolve(EngineConfig(), gpt_config, bf16_kind=Kind.BF16, has_gpu=False)
    assert found.config.dtype == "bfloat16"
    assert any("this CPU widens it as it reads" in line for line in found.lines)
    found = resolve(EngineConfig(), gpt_config, bf16_kind=Kind.BF16, has_gpu=True)
    assert (found.config.device, found.config.dtype) == ("cuda", "bfloat16")
    assert found.limits == Limits(16384, 256, 4096, 16)
    assert found.lines[0] == "device cuda: torch sees a GPU"


def test_what_was_given_stays(tiny_model_dir: Path) -> None:
    given = EngineConfig(device="cpu", dtype="float32", max_model_len=100)
    found = resolve(given, read_config(tiny_model_dir), bf16_kind=Kind.BF16_DOT, has_gpu=True)
    assert found.config == given
    assert found.limits == Limits(100, 64, 512, 16)
    assert "max_model_len 100 tokens, of the model's 16384" in found.lines


@pytest.mark.parametrize(
    ("num_seqs", "num_tokens", "limits"),
    [
        (700, None, (700, 700)),
        (3, None, (3, 512)),
        (None, 40, (40, 40)),
        (None, 1000, (64, 1000)),
        (8, 9, (8, 9)),
    ],
)
def test_sizes_follow_what_was_given(
    tiny_model_dir: Path,
    num_seqs: int | None,
    num_tokens: int | None,
    limits: tuple[int, int],
) -> None:
    config = EngineConfig(max_num_seqs=num_seqs, max_num_batched_tokens=num_tokens)
    found = resolve(config, read_config(tiny_model_dir), has_gpu=False).limits
    assert (found.max_num_seqs, found.max_num_batched_tokens) == limits


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"max_model_len": 16385}, "16384 positions"),
        ({"device": "cuda"}, "torch sees no GPU here"),
        ({"dtype": "float16"}, "float16 is for GPUs"),
        ({"kv_cache_dtype": "fp8"}, "fp8 is for GPUs"),
        ({"quantization": "int4"}, "'int4' is not none or int8"),
        ({"max_num_seqs": 9, "max_num_batched_tokens": 8}, "gets its token in each step"),
    ],
)
def test_what_cannot_be_is_refused(
    tiny_model_dir: Path, config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        resolve(EngineConfig(**config), read_config(tiny_model_dir), has_gpu=False)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_int8_is_not_for_gpus_yet(tiny_model_dir: Path, device: Any) -> None:
    gpt_config = read_config(tiny_model_dir)
    config = EngineConfig(device=device, quantization="int8")
    with pytest.raises(ConfigError, match="--quantization int8 does not run on a GPU yet"):
        resolve(config, gpt_config, has_gpu=True)
    on_cpu = resolve(EngineConfig(device="cpu", quantization="int8"), gpt_config, has_gpu=True)
    assert on_cpu.config.quantization == "int8"
    assert any(line.startswith("quantization int8") for line in on_cpu.lines)
    assert resolve(EngineConfig(quantization="int8"), gpt_config, has_gpu=False)


def test_int8_sums_of_too_many_products_are_refused(tiny_model_dir: Path) -> None:
    gpt_config = replace(read_config(tiny_model_dir), n_inner=1 << 18)
    with pytest.raises(
        ConfigError, match="133120 products, and this model's widest matrix has 262144"
    ):
        resolve(EngineConfig(quantization="int8"), gpt_config, has_gpu=False)
    assert resolve(EngineConfig(), gpt_config, has_gpu=False)


def test_int8_has_a_fingerprint_of_its_own_and_half_the_weights(tiny_model_dir: Path) -> None:
    num_threads, torch_threads = numba.get_num_threads(), torch.get_num_threads()
    found = []
    try:
        for quantization in get_args(Quantization):
            config = EngineConfig(
                model=str(tiny_model_dir), max_model_len=64, quantization=quantization
            )
            found.append(build_runner(config, NEVER_SAMPLED, num_threads))
    finally:
        torch.set_num_threads(torch_threads)
    assert found[0].system_fingerprint != found[1].system_fingerprint
    weights = [{part.name: part.max_bytes for part in each.parts}["weights"] for each in found]
    assert weights[1] < weights[0]


def test_build_runner_gives_a_warm_runner(tiny_model_dir: Path) -> None:
    config = EngineConfig(model=str(tiny_model_dir), max_model_len=64, max_num_seqs=4)
    num_threads, torch_threads = numba.get_num_threads(), torch.get_num_threads()
    try:
        loaded = build_runner(config, NEVER_SAMPLED, num_threads)
    finally:
        torch.set_num_threads(torch_threads)
    assert loaded.limits.max_model_len == 64
    assert loaded.vocab_size == 320
    assert loaded.num_blocks == 4 * 64 // 16
    assert loaded.system_fingerprint.startswith("fp_")
    assert loaded.config.dtype in ("bfloat16", "float32")
    assert any("16 blocks hold 256 tokens" in part.note for part in loaded.parts)
    assert any("threads" in line for line in loaded.lines)
