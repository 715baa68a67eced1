"""From a config to a warm runner, and what it says it chose."""

from __future__ import annotations

from pathlib import Path

import numba
import pytest
import torch

from server.config import EngineConfig
from server.errors import ConfigError
from server.model.config import read_config
from server.runner.load import build_runner, resolve
from tests.runner.rig import NEVER_SAMPLED


def test_auto_is_resolved_and_said(tiny_model_dir: Path) -> None:
    gpt_config = read_config(tiny_model_dir)
    config, lines = resolve(EngineConfig(), gpt_config, has_bf16_dot=True)
    assert (config.device, config.dtype, config.max_model_len) == ("cpu", "bfloat16", 16384)
    assert any("bfloat16: this CPU" in line for line in lines)
    config, lines = resolve(EngineConfig(), gpt_config, has_bf16_dot=False)
    assert config.dtype == "float32"
    assert any("float32: this CPU has no" in line for line in lines)


def test_what_was_given_stays(tiny_model_dir: Path) -> None:
    given = EngineConfig(device="cpu", dtype="float32", max_model_len=100)
    config, lines = resolve(given, read_config(tiny_model_dir), has_bf16_dot=True)
    assert config == given
    assert "max_model_len 100 tokens, of the model's 16384" in lines


def test_more_than_the_models_context_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="16384 positions"):
        resolve(EngineConfig(max_model_len=16385), read_config(tiny_model_dir))


def test_build_runner_gives_a_warm_runner(tiny_model_dir: Path) -> None:
    config = EngineConfig(model=str(tiny_model_dir), max_model_len=64, max_num_seqs=4)
    num_threads, torch_threads = numba.get_num_threads(), torch.get_num_threads()
    try:
        loaded = build_runner(config, NEVER_SAMPLED, num_threads)
    finally:
        torch.set_num_threads(torch_threads)
    assert loaded.max_model_len == 64
    assert loaded.vocab_size == 320
    assert loaded.num_blocks == 4 * 64 // 16
    assert loaded.system_fingerprint.startswith("fp_")
    assert loaded.config.dtype in ("bfloat16", "float32")
    text = "\n".join(loaded.lines)
    assert "16 blocks hold 256 tokens" in text
    assert "threads" in text
