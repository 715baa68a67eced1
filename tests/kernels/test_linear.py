"""Linear layers against plain torch, and their promise: a row's bits do not depend on its batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.cpu import linear as cpu
from kernels.cpu.arrays import as_array
from kernels.cpu.kinds import BF16_KINDS, Kind
from kernels.cpu.threads import set_threads

EPILOGUES: dict[reference.Epilogue, int] = {
    "none": cpu.NONE,
    "gelu_tanh": cpu.GELU_TANH,
    "gelu_erf": cpu.GELU_ERF,
    "add": cpu.ADD,
}
KINDS = (Kind.F32, *BF16_KINDS)  # every one that this machine can run
EMBEDDED = [(256, 768), (256, 256), (256, 1024), (1024, 256), (256, 4096)]
HEAD_SIZE = 50257
GPT2 = [(768, 2304), (768, 768), (768, 3072), (3072, 768), (768, HEAD_SIZE)]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dtype_of(kind: Kind) -> torch.dtype:
    return torch.float32 if kind == Kind.F32 else torch.bfloat16


def pack(weight: Tensor, bias: Tensor | None, kind: Kind) -> cpu.PackedLinear:
    """As `kind`, or as the widening one where this width does not suit it."""
    packed = cpu.pack_linear(weight, bias, dtype_of(kind), (kind, Kind.BF16))
    width = {Kind.BF16_AMX: 32, Kind.BF16_DOT: 2}.get(kind, 1)
    assert packed.kind == (kind if weight.shape[1] % width == 0 else Kind.BF16)
    return packed


def run(x: Tensor, packed: cpu.PackedLinear, epilogue: int, out_dtype: torch.dtype) -> Tensor:
    out = torch.ones(len(x), packed.n_out, dtype=out_dtype)
    cpu.linear(as_array(x), packed, epilogue, as_array(out))
    return out


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize(
    ("rows", "n_in", "n_out"),
    [
        (0, 64, 64),
        (1, 8, 1),
        (2, 33, 65),
        (5, 64, 63),
        (7, 96, 301),
        (13, 130, 128),
        (16, 64, 130),
        (17, 160, 70),
        (33, 32, 64),
        (50, 128, 192),
        (101, 96, 65),
    ],
)
def test_equals_the_reference(
    kind: Kind,
    epilogue: reference.Epilogue,
    rows: int,
    n_in: int,
    n_out: int,
) -> None:
    dtype = dtype_of(kind)
    x, weight = random(0, rows, n_in).to(dtype), random(1, n_out, n_in).to(dtype)
    bias = random(2, n_out)
    expected = torch.ones(rows, n_out)
    reference.linear(x, weight, bias, epilogue, expected)
    for layout in (weight, weight.t().contiguous().t()):  # [out, in] and Conv1D's [in, out]
        packed = pack(layout, bias, kind)
        torch.testing.assert_close(
            run(x, packed, EPILOGUES[epilogue], torch.float32), expected, atol=3e-5, rtol=1e-5
        )
    if epilogue != "add":
        rounded = run(x, packed, EPILOGUES[epilogue], dtype)
        exact = run(x, packed, EPILOGUES[epilogue], torch.float32)
        assert torch.equal(rounded, exact.to(dtype))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("n_in", "n_out"), EMBEDDED + GPT2)
def test_a_row_is_the_same_alone_and_in_any_batch(kind: Kind, n_in: int, n_out: int) -> None:
    num_rows = max(17, 300_000 // n_out)
    packed, dtype = pack(random(3, n_out, n_in) * 0.05, random(4, n_out), kind), dtype_of(kind)
    x = random(5, num_rows, n_in).to(dtype)
    whole = run(x, packed, cpu.GELU_TANH, dtype)
    for batch in (1, 2, 3, 7, 17, 64):
        for start in range(0, num_rows, batch):
            part = run(x[start : start + batch], packed, cpu.GELU_TANH, dtype)
            assert torch.equal(part, whole[start : start + batch])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("n_in", "n_out"), EMBEDDED + GPT2)
def test_a_row_is_the_same_in_a_batch_of_a_thousand(kind: Kind, n_in: int, n_out: int) -> None:
    """Every row against all smaller batches cut from it, in fp32: no rounding hides a difference."""
    num_rows = 64 if n_out == HEAD_SIZE else 1000  # a head sees a row per sequence, not per token
    packed, dtype = pack(random(3, n_out, n_in) * 0.05, random(4, n_out), kind), dtype_of(kind)
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


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("n_in", "n_out"), [(768, 2304), (1024, 256), (768, HEAD_SIZE)])
def test_threads_do_not_change_bits(kind: Kind, n_in: int, n_out: int) -> None:
    packed = pack(random(3, n_out, n_in), None, kind)
    x = random(5, 64, n_in).to(dtype_of(kind))
    try:
        for rows in (1, 3, 17, 64):  # a matrix of 512 KB is one thread's for 1 and 3
            set_threads(1)
            alone = run(x[:rows], packed, cpu.NONE, torch.float32)
            set_threads(2)
            assert torch.equal(run(x[:rows], packed, cpu.NONE, torch.float32), alone)
    finally:
        set_threads(1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [9, 41])
def test_a_nan_stays_in_its_row(kind: Kind, rows: int) -> None:
    packed = pack(random(3, 70, 64), None, kind)
    x = random(5, rows, 64).to(dtype_of(kind))
    clean = run(x, packed, cpu.GELU_TANH, torch.bfloat16)
    x[4] = float("nan")
    dirty = run(x, packed, cpu.GELU_TANH, torch.bfloat16)
    assert dirty[4].isnan().all()
    clean[4] = dirty[4] = 0
    assert torch.equal(dirty, clean)
