"""What the GPU kernels do not have is said before anything is loaded."""

from __future__ import annotations

import pytest
import torch

from server.errors import ConfigError
from server.model.config import GPTConfig
from server.model.device_kv_cache import FP8
from server.runner.gpu.load import check_supported

BF16 = torch.bfloat16


def config(n_embd: int, n_head: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=50257, n_positions=1024, n_embd=n_embd, n_layer=1, n_head=n_head, n_inner=64
    )


@pytest.mark.parametrize(("n_embd", "n_head"), [(768, 12), (1600, 25), (96, 2), (256, 1)])
def test_served_shapes_are_taken(n_embd: int, n_head: int) -> None:
    check_supported(config(n_embd, n_head), BF16, (8, 0))


@pytest.mark.parametrize(("n_embd", "n_head"), [(80, 2), (272, 1)])
def test_other_head_sizes_are_refused(n_embd: int, n_head: int) -> None:
    with pytest.raises(ConfigError, match=r"multiples of 16, up to 256.*--device cpu"):
        check_supported(config(n_embd, n_head), BF16, (9, 0))


@pytest.mark.parametrize("gpu", [(8, 9), (9, 0), (10, 0), (0, 0)])
def test_an_fp8_cache_where_the_gpu_has_it(gpu: tuple[int, int]) -> None:
    check_supported(config(768, 12), FP8, gpu)


def test_an_fp8_cache_on_an_older_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"8\.9 or newer; this one has 8\.0"):
        check_supported(config(768, 12), FP8, (8, 0))
