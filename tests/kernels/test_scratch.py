"""What a linear's rows take while it runs."""

from __future__ import annotations

import pytest
import torch

from kernels.cpu.kinds import Kind
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
