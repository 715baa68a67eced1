"""A private socket directory and the plain data every ipc test needs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.ipc.frames import EngineInfo, EngineStats
from server.sequence import SamplingParams, SequenceRequest

INFO = EngineInfo(
    max_model_len=64,
    vocab_size=300,
    max_num_seqs=8,
    block_size=16,
    num_blocks=32,
    device="cpu",
    dtype="float32",
    system_fingerprint="fp_test",
)
STATS = EngineStats(*range(1, 12))


def sequence(seq_id: int) -> SequenceRequest:
    params = SamplingParams(max_tokens=4, seed=2**64 - 1, logit_bias=((3, -1.5),))
    return SequenceRequest(seq_id, [1, 2, 3], 0, params)


@pytest.fixture
def socket_path() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:  # short: Unix paths end at 107 bytes
        yield str(Path(directory) / "engine.sock")
