"""int8 linears against sums of 64-bit integers, bit for bit, whatever multiplies; and a row's own scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.cpu import int8_linear as int8
from kernels.cpu import linear as cpu
from kernels.cpu.arrays import Array, as_array
from kernels.cpu.int8_linear import MAX_N_IN, PackedInt8, pack_int8
from kernels.cpu.kinds import INT8_KINDS, Kind, can_compile_int8_dot, int8_kinds
from kernels.cpu.threads import set_threads
from tests.kernels.test_linear import EPILOGUES, HEAD_SIZE, random

ROWS = (0, 1, 2, 3, 5, 6, 7, 8, 17, 64, 100)
SHAPES = [(64, 64), (8, 1), (33, 65), (130, 301), (260, 63), (768, 192)]
DTYPES = [torch.float32, torch.bfloat16]
each_kind = pytest.mark.parametrize("kind", INT8_KINDS, ids=lambda kind: kind.name)


def run(x: Tensor, packed: PackedInt8, epilogue: int, dtype: torch.dtype) -> Tensor:
    out = torch.ones(len(x), packed.n_out, dtype=dtype)
    cpu.linear(as_array(x), packed, epilogue, as_array(out))
    return out


def quantized(rows: Array) -> tuple[Array, Array]:
    """int64 [rows, n_in] and a fp32 scale for each row."""
    peaks = np.abs(rows).max(axis=1, initial=0)
    factors = np.float32(127) / np.maximum(peaks, np.float32(1e-30))
    return np.rint(rows * factors[:, None]).astype(np.int64), peaks / np.float32(127)


def expected(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """fp32 [rows, n_out], each step rounded as the kernels do it."""
    x_q, x_scales = quantized(x.float().numpy())
    w_q, w_scales = quantized(weight.float().numpy())
    sums = (x_q @ w_q.T).astype(np.float32)
    return torch.from_numpy(sums * w_scales * x_scales[:, None] + bias.numpy())


@each_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_in", "n_out"), SHAPES)
def test_equals_sums_of_integers(kind: Kind, dtype: torch.dtype, n_in: int, n_out: int) -> None:
    weight, bias = random(1, n_out, n_in).to(dtype), random(2, n_out)
    packed = pack_int8(weight, bias, (kind,))
    for rows in ROWS:
        x = random(3, rows, n_in).to(dtype)
        exact = expected(x, weight, bias)
        assert torch.equal(run(x, packed, cpu.NONE, torch.float32), exact)
        assert torch.equal(run(x, packed, cpu.ADD, torch.float32), 1 + exact)
        assert torch.equal(run(x, packed, cpu.NONE, torch.bfloat16), exact.bfloat16())


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_equals_the_reference_on_what_was_quantized(epilogue: reference.Epilogue) -> None:
    x, weight, bias = random(0, 13, 160), random(1, 70, 160), random(2, 70)
    rounded = [
        torch.from_numpy(q * scales[:, None]).float()
        for q, scales in map(quantized, (x.numpy(), weight.numpy()))
    ]
    exact = torch.ones(13, 70)
    reference.linear(*rounded, bias, epilogue, exact)
    found = run(x, pack_int8(weight, bias), EPILOGUES[epilogue], torch.float32)
    torch.testing.assert_close(found, exact, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize(("n_in", "n_out"), SHAPES)
def test_every_kind_gives_the_same_bits(epilogue: str, n_in: int, n_out: int) -> None:
    weight, bias, x = random(1, n_out, n_in), random(2, n_out), random(3, 41, n_in)
    found = [
        run(x, pack_int8(weight, bias, (kind,)), EPILOGUES[epilogue], torch.float32)  # type: ignore[index]
        for kind in INT8_KINDS
    ]
    assert all(torch.equal(each, found[0]) for each in found)


def test_strides_of_the_weight_do_not_matter() -> None:
    weight, x = random(1, 70, 96), random(3, 5, 96)
    for other in (weight.t().contiguous().t(), random(1, 70, 96).repeat(1, 2)[:, :96]):
        assert torch.equal(
            run(x, pack_int8(other, None), cpu.NONE, torch.float32),
            run(x, pack_int8(weight, None), cpu.NONE, torch.float32),
        )


@each_kind
@pytest.mark.parametrize(
    ("n_in", "n_out"), [(256, 768), (1024, 256), (768, 2304), (3072, 768), (768, HEAD_SIZE)]
)
def test_a_row_is_the_same_alone_and_in_any_batch(kind: Kind, n_in: int, n_out: int) -> None:
    """Rows of very different sizes: a scale that were shared would show."""
    num_rows = 64 if n_out == HEAD_SIZE else 300
    packed = pack_int8(random(3, n_out, n_in) * 0.05, random(4, n_out), (kind,))
    x = random(5, num_rows, n_in) * 10.0 ** (torch.arange(num_rows)[:, None] % 9 - 4)
    whole = run(x, packed, cpu.NONE, torch.float32)
    for batch in (2, 3, 7, 17, 64):
        parts = [run(part, packed, cpu.NONE, torch.float32) for part in x.split(batch)]
        assert torch.equal(torch.cat(parts), whole)
    for row in (*range(8), *range(num_rows - 8, num_rows)):
        assert torch.equal(run(x[row : row + 1], packed, cpu.NONE, torch.float32)[0], whole[row])


@each_kind
def test_threads_do_not_change_bits(kind: Kind) -> None:
    packed = pack_int8(random(3, 2304, 768), None, (kind,))
    x = random(5, 200, 768)
    try:
        for rows in (0, 1, 3, 17, 200):  # of 200 also the quantizing is shared out
            set_threads(1)
            alone = run(x[:rows], packed, cpu.NONE, torch.float32)
            set_threads(2)
            assert torch.equal(run(x[:rows], packed, cpu.NONE, torch.float32), alone)
    finally:
        set_threads(1)


@each_kind
@pytest.mark.parametrize("rows", [9, 41])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_stays_in_its_row(
    kind: Kind, rows: int, bad: float, dtype: torch.dtype
) -> None:
    packed = pack_int8(random(3, 70, 64), None, (kind,))
    x = random(5, rows, 64).to(dtype)
    clean = run(x, packed, cpu.GELU_TANH, torch.bfloat16)
    x[4, 17] = bad
    dirty = run(x, packed, cpu.GELU_TANH, torch.bfloat16)
    assert dirty[4].isnan().all()
    clean[4] = dirty[4] = 0
    assert torch.equal(dirty, clean)


def test_a_row_of_zeros_is_the_bias() -> None:
    bias = random(2, 70)
    for tiny in (0.0, 1e-44):
        out = run(torch.full((3, 64), tiny), pack_int8(random(1, 70, 64), bias), 0, torch.float32)
        assert torch.equal(out, bias.expand(3, -1))


def test_an_output_of_zeros_and_one_that_is_not_finite() -> None:
    weight, x = random(1, 70, 64), random(2, 3, 64)
    clean = run(x, pack_int8(weight, None), cpu.NONE, torch.float32)
    weight[3], weight[5, 7] = 0, float("nan")
    found = run(x, pack_int8(weight, None), cpu.NONE, torch.float32)
    assert not found[:, 3].any()
    assert found[:, 5].isnan().all()
    found[:, [3, 5]] = clean[:, [3, 5]] = 0
    assert torch.equal(found, clean)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_sizes_at_the_ends_of_fp32(scale: float) -> None:
    x, weight = random(0, 5, 64) * scale, random(1, 70, 64)
    found = run(x, pack_int8(weight, None), cpu.NONE, torch.float32)
    exact = x.double() @ weight.double().t()
    assert (found - exact).abs().max() < 0.02 * exact.abs().max()


@each_kind
def test_the_largest_sum_is_exact_and_a_larger_one_is_refused(kind: Kind) -> None:
    weight = torch.ones(2, MAX_N_IN)
    weight[1] = -1
    out = run(torch.ones(7, MAX_N_IN), pack_int8(weight, None, (kind,)), cpu.NONE, torch.float32)
    sums = np.array([127 * 127 * MAX_N_IN, -127 * 127 * MAX_N_IN], np.int64).astype(np.float32)
    step = np.float32(1) / np.float32(127)
    assert torch.equal(out, torch.from_numpy(sums * step * step).expand(7, -1))
    with pytest.raises(ValueError, match="overflow"):
        pack_int8(torch.ones(1, MAX_N_IN + 1), None, (kind,))


def test_words_of_a_panel_lie_as_amx_reads_them() -> None:
    """[k / 64, 4, 16, 16, 4]: chunks, tiles of columns, quads, columns, k. Needs no AMX to be packed."""
    q = torch.randint(-127, 128, (64, 128), generator=torch.Generator().manual_seed(0))
    q[:, 0] = 127
    words, offsets = np.zeros((1, 128 // 4 * 64), np.int32), np.zeros(64, np.int32)
    if int8.PANEL != 64:
        pytest.skip("no panel of 64 columns, so no AMX")
    scales = np.zeros(64, np.float32)
    int8._pack(q.float().numpy(), Kind.INT8_AMX.value, 0, words, offsets, scales)
    tiles = words.view(np.int8).reshape(2, 4, 16, 16, 4)
    for chunk, tile in np.ndindex(2, 4):
        part = q[16 * tile : 16 * tile + 16, 64 * chunk : 64 * chunk + 64].numpy()
        assert (tiles[chunk, tile] == part.reshape(16, 16, 4).transpose(1, 0, 2)).all()
    assert (offsets == -128 * q.sum(1).numpy()).all()


def test_a_kind_that_must_not_run_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "INT8_KINDS", (Kind.INT8,))
    with pytest.raises(ValueError, match="INT8_DOT"):
        pack_int8(torch.zeros(64, 64), None, (Kind.INT8_DOT,))


def test_the_fastest_kind_comes_first_and_any_cpu_has_one() -> None:
    assert int8_kinds(True, True) == (Kind.INT8_AMX, Kind.INT8_DOT, Kind.INT8)
    assert int8_kinds(True, False) == (Kind.INT8_AMX, Kind.INT8)
    assert int8_kinds(False, True) == (Kind.INT8_DOT, Kind.INT8)
    assert int8_kinds(False, False) == (Kind.INT8,)


@pytest.mark.parametrize(
    ("features", "can"),
    [
        ({"avx2"}, False),
        ({"avx2", "avxvnni"}, True),
        ({"avx2", "avx512f"}, False),
        ({"avx2", "avx512f", "avxvnni"}, False),  # vectors of 512 bits are taken, and have none
        ({"avx2", "avx512f", "avx512vnni"}, True),
        (set(), False),
    ],
)
def test_where_there_is_a_dot_product(features: set[str], can: Any) -> None:
    assert can_compile_int8_dot(frozenset(features)) == can
