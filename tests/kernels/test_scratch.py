"""What a linear's rows take while it runs."""

from __future__ import annotations

import pytest
import torch

from kernels.cpu.arrays import as_array
from kernels.cpu.int8_linear import _parts_of
from kernels.cpu.kinds import Kind
from kernels.cpu.linear import _wide_rows
from kernels.cpu.scratch import kind_of, new_scratch, words_per_row

BYTES = {
    Kind.F32: 0,
    Kind.BF16: 4 * 768,
    Kind.BF16_DOT: 0,
    Kind.BF16_AMX: 0,
    Kind.INT8: 768 + 2 * 768 + 4,
    Kind.INT8_DOT: 768 + 4,
    Kind.INT8_AMX: 768 + 4,
}


@pytest.mark.parametrize("kind", Kind)
def test_a_row_takes_what_its_weights_want(kind: Kind) -> None:
    assert words_per_row(kind, 768) * 4 == BYTES[kind]
    scratch = new_scratch(5, words_per_row(kind, 768))
    assert scratch.nbytes == 5 * BYTES[kind]
    assert scratch.ctypes.data % 64 == 0 or not scratch.nbytes


def test_int8_is_filled_up_to_whole_chunks() -> None:
    assert words_per_row(Kind.INT8_DOT, 65) == 1 + 128 // 4


def test_the_kind_is_the_first_with_instructions_for_the_width() -> None:
    kinds = Kind.BF16_AMX, Kind.BF16_DOT, Kind.BF16
    found = [kind_of(torch.bfloat16, width, kinds) for width in (64, 66, 67)]
    assert found == list(kinds)
    assert kind_of(torch.float32, 64, kinds) == Kind.F32


@pytest.mark.parametrize("kind", [Kind.INT8, Kind.INT8_DOT, Kind.INT8_AMX])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_the_parts_of_int8_fill_it_and_do_not_overlap(kind: Kind, rows: int) -> None:
    scratch = new_scratch(rows, words_per_row(kind, 128))
    q, wide, row_scales = _parts_of(scratch, rows, 128, kind.value)
    assert q.shape == (rows, 128)
    assert wide.shape == (rows if kind == Kind.INT8 else 0, 64)
    assert row_scales.shape == (rows,)
    assert q.nbytes + wide.nbytes + row_scales.nbytes == scratch.nbytes
    for number, part in enumerate((q, wide, row_scales)):
        part[...] = number + 1
    assert (q == 1).all() and (wide == 2).all() and (row_scales == 3).all()


@pytest.mark.parametrize("kind", [Kind.F32, Kind.BF16, Kind.BF16_DOT])
def test_only_what_has_no_instruction_is_widened(kind: Kind) -> None:
    x = torch.zeros(3, 40).to(torch.float32 if kind == Kind.F32 else torch.bfloat16)
    wide = _wide_rows(as_array(x), kind.value, new_scratch(3, words_per_row(kind, 40)))
    assert wide.shape == (3 if kind == Kind.BF16 else 0, 40)
