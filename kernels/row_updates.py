"""What the host changes in the device-resident rows, applied in one launch: state[index] = value.

All rows live in one int32 tensor, so a step's changes (a new row's tokens and parameters, new entries of
block tables) are one list of pairs and one copy.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import pdl

_BLOCK = 256


@triton.jit
def _apply_updates_kernel(
    indices_ptr,  # [num_updates] int32
    values_ptr,  # [num_updates] int32
    state_ptr,  # [size] int32
    num_updates,
    size,
    BLOCK: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    pdl.wait(USE_PDL)
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_update = offsets < num_updates
    index = tl.load(indices_ptr + offsets, mask=is_update, other=-1)
    value = tl.load(values_ptr + offsets, mask=is_update, other=0)
    tl.store(state_ptr + index, value, mask=(index >= 0) & (index < size))


def apply_updates(indices: Tensor, values: Tensor, state: Tensor) -> None:
    """`indices` and `values` int32 [n], `state` int32, flat. Indices are distinct; others are skipped."""
    assert indices.dtype == values.dtype == state.dtype == torch.int32
    assert indices.shape == values.shape and state.is_contiguous() and state.ndim == 1
    if not len(indices):
        return
    use_pdl = pdl.use_pdl(state.device)
    _apply_updates_kernel[(triton.cdiv(len(indices), _BLOCK),)](
        indices_ptr=indices,
        values_ptr=values,
        state_ptr=state,
        num_updates=len(indices),
        size=len(state),
        BLOCK=_BLOCK,
        USE_PDL=use_pdl,
        **pdl.pdl_options(use_pdl),
    )
