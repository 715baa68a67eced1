"""Linear layers against plain torch, and their promise: a row's bits do not depend on its batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.cpu import linear as cpu
from kernels.cpu.arrays import as_array
from kernels.cpu.threads import set_threads
from kernels.cpu.tile import HAS_BF16_DOT

EPILOGUES: dict[reference.Epilogue, int] = {
    "none": cpu.NONE,
    "gelu_tanh": cpu.GELU_TANH,
    "gelu_erf": cpu.GELU_ERF,
    "add": cpu.ADD,
}
# (dtype, use the dot instruction): every variant that this machine can run
VARIANTS = [(torch.float32, False), (torch.bfloat16, False)]
VARIANTS += [(torch.bfloat16, True)] if HAS_BF16_DOT else []
EMBEDDED = [(256, 768), (256, 256), (256, 1024), (1024, 256), (256, 4096)]
HEAD_SIZE = 50257
GPT2 = [(768, 2304), (768, 768), (768, 3072), (3072, 768), (768, HEAD_SIZE)]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(x: Tensor, packed: cpu.PackedLinear, epilogue: int, out_dtype: torch.dtype) -> Tensor:
    out = torch.ones(len(x), packed.n_out, dtype=out_dtype)
    cpu.linear(as_array(x), packed, epilogue, as_array(out))
    return out


@pytest.mark.parametrize(("dtype", "use_dot"), VARIANTS)
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize(
    ("rows", "n_in", "n_out"), [(1, 8, 1), (2, 33, 65), (5, 64, 63), (7, 96, 301), (13, 130, 128)]
)
def test_equals_the_reference(
    dtype: torch.dtype,
    use_dot: bool,
    epilogue: reference.Epilogue,
    rows: int,
    n_in: int,
    n_out: int,
) -> None:
    x, weight = random(0, rows, n_in).to(dtype), random(1, n_out, n_in).to(dtype)
    bias = random(2, n_out)
    expected = torch.ones(rows, n_out)
    reference.linear(x, weight, bias, epilogue, expected)
    for layout in (weight, weight.t().contiguous().t()):  # [out, in] and Conv1D's [in, out]
        packed = cpu.pack_linear(layout, bias, dtype, use_dot)
        torch.testing.assert_close(
            run(x, packed, EPILOGUES[epilogue], torch.float32), expected, atol=3e-5, rtol=1e-5
        )
    if epilogue != "add":
        rounded = run(x, packed, EPILOGUES[epilogue], dtype)
        exact = run(x, packed, EPILOGUES[epilogue], torch.float32)
        assert torch.equal(rounded, exact.to(dtype))


@pytest.mark.parametrize(("dtype", "use_dot"), VARIANTS)
@pytest.mark.parametrize(("n_in", "n_out"), EMBEDDED + GPT2)
def test_a_row_is_the_same_alone_and_in_any_batch(
    dtype: torch.dtype, use_dot: bool, n_in: int, n_out: int
) -> None:
    num_rows = max(17, 300_000 // n_out)
    packed = cpu.pack_linear(random(3, n_out, n_in) * 0.05, random(4, n_out), dtype, use_dot)
    x = random(5, num_rows, n_in).to(dtype)
    whole = run(x, packed, cpu.GELU_TANH, dtype)
    for batch in (1, 2, 3, 17, 64):
        for start in range(0, num_rows, batch):
            part = run(x[start : start + batch], packed, cpu.GELU_TANH, dtype)
            assert torch.equal(part, whole[start : start + batch])


@pytest.mark.parametrize(("dtype", "use_dot"), VARIANTS)
@pytest.mark.parametrize(("n_in", "n_out"), EMBEDDED + GPT2)
def test_a_row_is_the_same_in_a_batch_of_a_thousand(
    dtype: torch.dtype, use_dot: bool, n_in: int, n_out: int
) -> None:
    """Every row against all smaller batches cut from it, in fp32: no rounding hides a difference."""
    num_rows = 64 if n_out == HEAD_SIZE else 1000  # a head sees a row per sequence, not per token
    packed = cpu.pack_linear(random(3, n_out, n_in) * 0.05, random(4, n_out), dtype, use_dot)
    x = random(5, num_rows, n_in).to(dtype)
    whole = run(x, packed, cpu.NONE, torch.float32)
    out = torch.empty_like(whole)
    for batch in (2, 3, 17, 64):
        out.zero_()
        for x_part, out_part in zip(x.split(batch), out.split(batch), strict=True):
            cpu.linear(as_array(x_part), packed, cpu.NONE, as_array(out_part))
        assert torch.equal(out, whole)
    for row in (*range(8), *range(num_rows - 8, num_rows)):  # full tiles, and what is left over
        alone = run(x[row : row + 1], packed, cpu.NONE, torch.float32)
        assert torch.equal(alone[0], whole[row])


def test_threads_do_not_change_bits() -> None:
    packed = cpu.pack_linear(random(3, 2304, 768), None, torch.bfloat16)
    x = random(5, 64, 768).bfloat16()
    try:
        set_threads(1)
        alone = run(x, packed, cpu.NONE, torch.float32)
        set_threads(2)
        assert torch.equal(run(x, packed, cpu.NONE, torch.float32), alone)
    finally:
        set_threads(1)


def test_a_nan_stays_in_its_row() -> None:
    packed = cpu.pack_linear(random(3, 70, 64), None, torch.bfloat16)
    x = random(5, 9, 64).bfloat16()
    clean = run(x, packed, cpu.NONE, torch.bfloat16)
    x[4] = float("nan")
    dirty = run(x, packed, cpu.NONE, torch.bfloat16)
    assert dirty[4].isnan().all()
    clean[4] = dirty[4] = 0
    assert torch.equal(dirty, clean)
