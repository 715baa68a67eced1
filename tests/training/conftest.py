"""A small text with enough repetition to be learned in seconds, and a model to fit it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from server.training.config import TrainConfig
from server.training.device import Compute, choose_compute
from server.training.run import Data, prepare_data

WORDS = (
    "the clever fox",
    "a speckled hen",
    "the old king",
    "wandered",
    "sang softly",
    "slept",
    "in the dark wood",
    "beside the sea",
    "and then",
)
TINY = TrainConfig(
    vocab_size=300,
    n_layer=2,
    n_head=2,
    n_embd=32,
    context=32,
    batch_size=4,
    steps=60,
    lr=1e-2,
    warmup=5,
    seed=3,
)


def tiny_text(num_documents: int) -> str:
    documents = [
        " ".join(WORDS[(start + 2 * step * start + step) % len(WORDS)] for step in range(40))
        for start in range(1, num_documents + 1)
    ]
    return "".join(f"{document}.\n<|endoftext|>\n" for document in documents)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices this small lose time on a second thread, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "tiny.txt"
    path.write_text(tiny_text(12))
    return path


@pytest.fixture(scope="session")
def data(text_file: Path) -> Data:
    return prepare_data([text_file], text_file, None, TINY.vocab_size)


@pytest.fixture(scope="session")
def compute() -> Compute:
    chosen = choose_compute("cpu", use_compile=False, num_threads=None)
    return Compute(chosen.device, use_bf16=False, use_compile=False)
