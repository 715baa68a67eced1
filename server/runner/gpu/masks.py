"""A step's masks on their way to the device: all of them in one upload and one launch."""

from __future__ import annotations

import numpy as np

from kernels.row_masks import write_masks
from kernels.sampling_rows import mask_words
from kernels.sampling_tables import SamplingTables
from server.runner.batch import RowMask
from server.runner.gpu.rows import DeviceRows
from server.runner.gpu.upload import Upload, aligned


def mask_upload_words(max_num_seqs: int, vocab_size: int) -> int:
    """What the upload must hold, so that a step whose rows all have new masks waits for no other's copy."""
    return aligned(max_num_seqs) + aligned(max_num_seqs * mask_words(vocab_size))


def send_masks(
    masks: list[RowMask], rows: DeviceRows, tables: SamplingTables, upload: Upload
) -> None:
    """Queues all that gives the rows their masks. Of distinct rows, behind what refills them."""
    for mask in masks:
        rows.note_mask(mask.row)
    row_ids = np.array([mask.row for mask in masks], np.int32)
    words = np.frombuffer(b"".join(mask.allowed for mask in masks), "<i4").astype(np.int32)
    sent_ids, sent_words = upload.send(row_ids, words)
    write_masks(sent_ids, sent_words, tables)
