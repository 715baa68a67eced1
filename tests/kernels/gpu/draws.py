"""The GPU's sampler and the CPU's, called alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.sampler import sample as cpu_sample
from kernels.logit_rows import RowScratch
from kernels.sampler import sample
from kernels.sampling_rows import LogitEdits, RowMasks, SamplingRows
from kernels.sampling_tables import SamplingTables, new_logits
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.device_rows import make_tables
from tests.kernels.sampling_cases import no_edits, no_mask, no_masks, row_ids


def on_device(logits: Any, is_padded: bool = True) -> Tensor:
    table = torch.from_numpy(logits)
    if not is_padded:
        return table.to(DEVICE)
    padded = new_logits(*logits.shape, DEVICE)
    padded.copy_(table)
    return padded


def run(logits: Tensor, ids: Any, rows: SamplingRows, tables: SamplingTables, **kw: Any) -> Any:
    sampled = torch.full((len(logits),), -7, dtype=torch.int64, device=DEVICE)
    scratch = RowScratch.allocate(len(logits), logits.shape[1], DEVICE)
    ids = torch.from_numpy(np.asarray(ids, np.int32)).to(DEVICE)
    sample(logits, ids, rows, tables, scratch, sampled, **kw)
    return sampled.cpu().numpy()


def draw(
    logits: Any,
    rows: SamplingRows,
    mask: Any = None,
    edits: LogitEdits | None = None,
    masks: RowMasks | None = None,
    **fill: Any,
) -> Any:
    mask = no_mask(logits.shape[1]) if mask is None else mask
    edits = no_edits(len(logits)) if edits is None else edits
    device_rows, tables = make_tables(rows, mask, edits, masks, **fill)
    return run(on_device(logits), row_ids(len(logits)), device_rows, tables)


def draw_on_cpu(
    logits: Any,
    rows: SamplingRows,
    mask: Any = None,
    edits: LogitEdits | None = None,
    masks: RowMasks | None = None,
) -> Any:
    mask = no_mask(logits.shape[1]) if mask is None else mask
    edits = no_edits(len(logits)) if edits is None else edits
    masks = no_masks(*logits.shape) if masks is None else masks
    return cpu_sample(logits, mask, row_ids(len(logits)), rows, edits, masks)
