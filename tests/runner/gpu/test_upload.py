"""Uploads: parts arrive whole, each on 16 bytes, however many are on their way."""

from __future__ import annotations

import numpy as np
import pytest

from server.runner.gpu.queue import CudaQueue, EagerQueue
from server.runner.gpu.upload import Upload, aligned
from tests.kernels.gpu.device import DEVICE


def make(num_words: int) -> Upload:
    return Upload(EagerQueue() if DEVICE.type == "cpu" else CudaQueue(DEVICE), num_words)


def test_parts_arrive_whole_and_aligned() -> None:
    upload = make(40)
    for turn in range(5):  # the host's buffers are used again
        parts = [np.arange(size, dtype=np.int32) + 100 * turn for size in (1, 0, 7, 4, 13)]
        sent = upload.send(*parts, np.full((2, 3), turn, np.int32))
        assert [part.tolist() for part in sent[:-1]] == [part.tolist() for part in parts]
        assert sent[-1].tolist() == 6 * [turn]
        assert all(part.data_ptr() % 16 == 0 for part in sent if len(part))
        assert sent[0].data_ptr() == upload.device_words.data_ptr()


def test_a_full_buffer_is_used_to_its_end() -> None:
    upload = make(8)
    assert [part.tolist() for part in upload.send(*np.ones((2, 4), np.int32))] == 2 * [4 * [1]]
    assert [aligned(num) for num in (0, 1, 4, 5)] == [0, 4, 4, 8]


def test_what_is_not_int32_is_refused() -> None:
    with pytest.raises(AssertionError):
        make(8).send(np.array([0.5], np.float32))
