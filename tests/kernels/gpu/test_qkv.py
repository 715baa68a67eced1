"""The fused QKV product: q to its buffer, K and V to their slots and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import reference_layers, tuning
from kernels.gemm import Norm
from kernels.kv_write import kv_write
from kernels.layer_norm import layer_norm
from kernels.linear import linear
from kernels.qkv import qkv
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.products import (
    DTYPES,
    SENTINEL,
    WORKSPACE,
    Guarded,
    check_close,
    check_counters,
    randn,
    random_norm,
    rows_within,
)

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
NUM_BLOCKS = 7
# (heads, KV heads, head_dim, block_size): tiles hold columns of q and K, of K and V, of all three.
HEADS = [(5, 5, 16, 16), (4, 1, 48, 8), (2, 2, 64, 16), (1, 1, 16, 4)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Layer:
    """Weights, caches full of sentinels, and where the rows go."""

    def __init__(
        self,
        heads: tuple[int, int, int, int],
        n_embd: int,
        dtype: torch.dtype,
        cache_dtype: torch.dtype,
    ) -> None:
        num_heads, num_kv_heads, head_dim, block_size = heads
        self.q_cols = num_heads * head_dim
        n_out = self.q_cols + 2 * num_kv_heads * head_dim
        self.weight = randn(n_out, n_embd, dtype=dtype, scale=n_embd**-0.5)
        self.bias = randn(n_out)
        self.num_slots = NUM_BLOCKS * block_size
        shape = (NUM_BLOCKS, num_kv_heads, block_size, head_dim)
        self.caches = [torch.full(shape, SENTINEL, device=DEVICE).to(cache_dtype) for _ in range(4)]
        self.scales: dict[str, Tensor] = {}
        if cache_dtype == FP8:
            # The smallest makes values saturate.
            steps = torch.arange(num_kv_heads, device=DEVICE)
            self.scales = {"k_scale": 0.05 * (1 + steps), "v_scale": 0.002 * (1 + steps)}

    def run(self, x: Tensor, slots: Tensor, norm: Norm | None = None) -> Tensor:
        q = Guarded((len(x), self.q_cols), self.weight.dtype)
        qkv(
            x, self.weight, self.bias, q.view, self.caches[0], self.caches[1], slots,
            norm=norm, **self.scales, workspace=WORKSPACE,
        )  # fmt: skip
        q.check_borders()
        check_counters()
        return q.view

    def run_reference(self, x: Tensor, slots: Tensor, norm: Norm | None = None) -> Tensor:
        q = torch.empty(len(x), self.q_cols, dtype=self.weight.dtype, device=DEVICE)
        reference_layers.qkv(
            x, self.weight, self.bias, q, self.caches[2], self.caches[3], slots,
            norm=norm, **self.scales,
        )  # fmt: skip
        return q

    def random_slots(self, num_rows: int) -> Tensor:
        """Distinct slots, some of them padding."""
        slots = torch.randperm(self.num_slots)[:num_rows]
        slots[1::3] = -1
        slots[-1] = (
            self.num_slots - 1 if num_rows % 2 else self.num_slots
        )  # the last slot, or beyond
        slots[:-1][slots[:-1] == slots[-1]] = -1
        return slots.to(DEVICE)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 17])
def test_equals_the_reference(
    heads: tuple[int, int, int, int], dtype: torch.dtype, num_rows: int
) -> None:
    layer = Layer(heads, 80, dtype, dtype)
    x, slots = rows_within(randn(num_rows, 80, dtype=dtype)), layer.random_slots(num_rows)
    check_close(layer.run(x, slots), layer.run_reference(x, slots), dtype)
    for cache, expected in zip(layer.caches[:2], layer.caches[2:], strict=True):
        assert torch.equal(cache == SENTINEL, expected == SENTINEL)  # these slots and no others
        check_close(cache, expected, dtype)


@pytest.mark.parametrize("num_rows", [2, 66])
def test_layer_norm_in_front(num_rows: int) -> None:
    layer, other = (Layer((12, 12, 16, 16), 192, BF16, BF16) for _ in range(2))
    other.weight, other.bias = layer.weight, layer.bias
    residual, slots = rows_within(randn(num_rows, 192)), layer.random_slots(num_rows)
    norm = random_norm(residual)
    q = layer.run(residual, slots, norm)
    check_close(q, layer.run_reference(residual, slots, norm), BF16)
    hidden = torch.empty(num_rows, 192, dtype=BF16, device=DEVICE)
    layer_norm(residual, norm, hidden)
    assert torch.equal(other.run(hidden, slots), q)
    for cache, same in zip(layer.caches[:2], other.caches[:2], strict=True):
        assert torch.equal(cache, same)


@pytest.mark.parametrize("cache_dtype", [BF16, FP8])
def test_the_bits_are_those_of_linear_then_kv_write(cache_dtype: torch.dtype) -> None:
    layer = Layer((3, 3, 48, 16), 80, BF16, cache_dtype)
    x, slots = randn(33, 80, dtype=BF16), layer.random_slots(33)
    fused = torch.empty(33, len(layer.weight), dtype=BF16, device=DEVICE)
    linear(x, layer.weight, layer.bias, fused, workspace=WORKSPACE)
    kv_write(fused, None, layer.caches[2], layer.caches[3], slots, **layer.scales)
    assert torch.equal(layer.run(x, slots), fused[:, : layer.q_cols])
    for cache, same in zip(layer.caches[:2], layer.caches[2:], strict=True):
        assert torch.equal(cache.view(torch.uint8), same.view(torch.uint8))


def test_fp8_cache() -> None:
    layer = Layer((2, 2, 64, 16), 128, BF16, FP8)
    x, slots = randn(20, 128, dtype=BF16), layer.random_slots(20)
    layer.run(x, slots)
    layer.run_reference(x, slots)
    for cache, expected in zip(layer.caches[:2], layer.caches[2:], strict=True):
        bits, expected_bits = cache.view(torch.uint8), expected.view(torch.uint8)
        # Triton's interpreter halves a value that its rounding carries up to a power of two.
        checked = (expected_bits & 7 != 0) | (DEVICE.type == "cuda")
        # A value that lies near the middle of two steps may be rounded to either: 1/8 apart.
        torch.testing.assert_close(
            cache.float()[checked], expected.float()[checked], atol=2e-3, rtol=0.13
        )
        assert (bits == expected_bits)[checked].float().mean() > 0.98
    assert (layer.caches[1].float().abs() == 448.0).any()  # saturated, not infinite


@pytest.mark.parametrize("num_rows", [1, 2, 63, 64, 65, 130])
def test_bits_do_not_depend_on_the_other_rows(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Layer((2, 2, 16, 32), 768, BF16, BF16)
    residual, slots = randn(130, 768), torch.arange(130, device=DEVICE)
    norm = random_norm(residual)
    together = layer.run(residual, slots, norm)
    all_k, all_v = (cache.clone() for cache in layer.caches[:2])
    assert norm.stats is not None
    part = Norm(norm.stats[:num_rows], norm.weight, norm.bias, norm.eps)
    for max_split_tiles in (128, 0):
        monkeypatch.setattr(tuning, "MAX_SPLIT_TILES", max_split_tiles)
        layer.caches[0].zero_()
        layer.caches[1].zero_()
        q = layer.run(residual[:num_rows], slots[:num_rows], part)
        assert torch.equal(q, together[:num_rows])
        for cache, whole in zip(layer.caches[:2], (all_k, all_v), strict=True):
            written = cache != 0
            assert written.transpose(1, 2).flatten(0, 1)[:num_rows].all()
            assert torch.equal(cache[written], whole[written])


def test_no_rows() -> None:
    layer = Layer((2, 2, 16, 16), 64, BF16, BF16)
    layer.run(randn(0, 64, dtype=BF16), torch.empty(0, dtype=torch.int64, device=DEVICE))
    assert (layer.caches[0] == SENTINEL).all()


def test_what_does_not_fit_is_refused() -> None:
    layer = Layer((2, 2, 16, 16), 64, BF16, BF16)
    slots, x = torch.arange(3, device=DEVICE), randn(3, 64, dtype=BF16)
    residual = randn(3, 64)
    with pytest.raises(ValueError, match="statistics"):
        layer.run(residual, slots, Norm(None, randn(64), randn(64), 1e-5))
    with pytest.raises(ValueError):
        layer.run(residual, slots)
    layer.q_cols = 48
    with pytest.raises(ValueError):
        layer.run(x, slots)
