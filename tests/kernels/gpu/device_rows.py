"""The CPU sampler's test rows as a GPU runner holds them: tensors, tables, scratch memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kernels.reference_sampler import edited_logits, kept_ids, noise
from kernels.row_masks import write_masks
from kernels.sampling_rows import LogitEdits, RowFills, RowMasks, SamplingRows
from kernels.sampling_tables import SamplingTables, fill_tables
from tests.kernels.gpu.device import DEVICE
from tests.kernels.sampling_cases import no_masks, to_tensors

_NEVER = 1 << 30


def to_device(arrays: Any) -> Any:
    """A NamedTuple of arrays as one of tensors, copied."""
    return type(arrays)(*(torch.tensor(np.ascontiguousarray(a)).to(DEVICE) for a in arrays))


def make_fills(
    edits: LogitEdits, rows: Any, wants_logits: Any = 0, banned_below: Any = _NEVER
) -> RowFills:
    """Fills of rows 0 .. n-1; an edit of -inf is a banned id, any other a bias."""
    num_rows = len(rows.num_tokens)
    biases: tuple[list[int], list[int], list[float]] = ([0], [], [])
    bans: tuple[list[int], list[int]] = ([0], [])
    for row in range(num_rows):
        for i in range(edits.starts[row], edits.starts[row + 1]):
            if edits.values[i] == -np.inf:
                bans[1].append(edits.token_ids[i])
            else:
                biases[1].append(edits.token_ids[i])
                biases[2].append(edits.values[i])
        biases[0].append(len(biases[1]))
        bans[0].append(len(bans[1]))
    arrays = RowFills(
        row_ids=np.arange(num_rows, dtype=np.int32),
        banned_below=np.full(num_rows, banned_below, np.int32),
        wants_logits=np.broadcast_to(np.asarray(wants_logits, np.int32), num_rows),
        bias_starts=np.array(biases[0], np.int32),
        bias_ids=np.array(biases[1], np.int32),
        bias_values=np.array(biases[2], np.float32),
        ban_starts=np.array(bans[0], np.int32),
        ban_ids=np.array(bans[1], np.int32),
    )
    fills: RowFills = to_device(arrays)
    return fills


def make_tables(
    rows: SamplingRows, mask: Any, edits: LogitEdits, masks: RowMasks | None = None, **fill: Any
) -> tuple[SamplingRows, SamplingTables]:
    """Rows on the device, and their filled tables; what a table held before is garbage."""
    on_device: SamplingRows = to_device(rows)
    tables = SamplingTables.allocate(len(rows.num_tokens), torch.from_numpy(mask), DEVICE)
    tables.token_counts.fill_(0x3FFFFFFF)
    tables.token_bias.fill_(float("nan"))
    tables.row_flags.fill_(-1)
    tables.row_masks.fill_(0x5A5A5A5A)
    fill_tables(make_fills(edits, rows, **fill), on_device, tables)
    if masks is not None:
        set_masks(masks, tables)
    return on_device, tables


def set_masks(masks: RowMasks, tables: SamplingTables) -> None:
    """Those of the rows that have one, as an upload brings them."""
    masked = np.flatnonzero(masks.has_mask).astype(np.int32)
    row_ids, words = (torch.from_numpy(array).to(DEVICE) for array in (masked, masks.words[masked]))
    write_masks(row_ids, words, tables)


def close_calls(
    logits: Any,
    mask: Any,
    rows: SamplingRows,
    edits: LogitEdits,
    drawn: Any,
    expected: Any,
    masks: RowMasks | None = None,
) -> list[int]:
    """Rows whose two tokens are within 1e-5 of each other, or of the border of what filters leave."""
    tensors: Any = to_tensors(rows)
    row_masks = to_tensors(no_masks(*logits.shape) if masks is None else masks)
    found = []
    for row in np.flatnonzero(drawn != expected).tolist():
        x = edited_logits(
            torch.from_numpy(logits[row]),
            torch.from_numpy(mask),
            row,
            tensors,
            to_tensors(edits),
            row_masks,
            row,
        )
        z = x / rows.temperature[row]
        keep = kept_ids(z, int(rows.top_k[row]), float(rows.top_p[row]), float(rows.min_p[row]))
        place = int(rows.seed[row]), int(rows.choice[row]), int(rows.num_tokens[row])
        keys = z.double() + noise(len(z), *place)
        pair = [int(drawn[row]), int(expected[row])]
        near = 1e-5 * max(1.0, float(z.abs().max()))
        is_tie = abs(keys[pair[0]] - keys[pair[1]]) < near
        is_border = (z[pair] - z[keep].min()).abs().min() < near
        if is_tie or is_border:
            found.append(row)
    return found
