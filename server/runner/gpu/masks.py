"""A step's masks on their way to the device: all of them in one upload and one launch."""

from __future__ import annotations

import numpy as np

from kernels.row_masks import write_masks
from kernels.sampling_rows import mask_words
from kernels.sampling_tables import SamplingTables
from server.runner.batch import RowMask
from server.runner.gpu.rows import DeviceRows
from server.runner.gpu.upload import Upload, aligned
from server.runner.row_faults import fail_row
from server.sequence import FailureKind


def mask_upload_words(max_num_seqs: int, vocab_size: int) -> int:
    """What the upload must hold, so that a step whose rows all have new masks waits for no other's copy."""
    return aligned(max_num_seqs) + aligned(max_num_seqs * mask_words(vocab_size))


def send_masks(
    masks: list[RowMask],
    rows: DeviceRows,
    tables: SamplingTables,
    upload: Upload,
    failed: dict[int, FailureKind],
) -> None:
    """Queues all that gives the rows their masks. Of distinct rows, behind what refills them."""
    num_bytes = 4 * tables.row_masks.shape[1]
    for mask in masks:
        rows.note_mask(mask.row)
        if len(mask.allowed) != num_bytes:  # would shift those behind it
            fail_row(mask.row, ValueError(f"{len(mask.allowed)} bytes"), failed)
    fitting = [mask for mask in masks if len(mask.allowed) == num_bytes]
    row_ids = np.array([mask.row for mask in fitting], np.int32)
    words = np.frombuffer(b"".join(mask.allowed for mask in fitting), "<i4").astype(np.int32)
    sent_ids, sent_words = upload.send(row_ids, words)
    write_masks(sent_ids, sent_words, tables)
