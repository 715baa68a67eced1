from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest

from server.training.data import WindowSampler, read_documents
from server.training.errors import TrainingError


def sampler(num_tokens: int = 1000, context: int = 32, batch_size: int = 4) -> WindowSampler:
    return WindowSampler(np.arange(num_tokens, dtype=np.int64), context, batch_size, seed=5)


def test_documents_end_at_lines_that_hold_only_the_separator(tmp_path: Path) -> None:
    text = "one\n\nstill <|endoftext|> one\n<|endoftext|>\ntwo\n<|endoftext|>\n<|endoftext|>\n"
    plain, packed = tmp_path / "t.txt", tmp_path / "t.txt.xz"
    plain.write_text(text)
    packed.write_bytes(lzma.compress(text.encode()))
    assert read_documents(plain) == ["one\n\nstill <|endoftext|> one", "two"]
    assert read_documents(packed) == read_documents(plain)


def test_a_text_without_separators_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("only one\n")
    assert read_documents(path) == ["only one"]


def test_unreadable_texts_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"cannot read .*absent\.txt: No such file"):
        read_documents(tmp_path / "absent.txt")
    for name, content in (("t.txt", b"\xff\xfe"), ("t.txt.xz", b"no xz at all")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TrainingError, match="is not UTF-8 text"):
            read_documents(tmp_path / name)
    (tmp_path / "empty.txt").write_text("\n<|endoftext|>\n")
    with pytest.raises(TrainingError, match="holds no text"):
        read_documents(tmp_path / "empty.txt")


def test_targets_are_the_inputs_moved_by_one() -> None:
    inputs, targets = sampler().batch(7)
    assert inputs.shape == targets.shape == (4, 32)
    assert (targets == inputs + 1).all()


def test_an_epoch_sees_each_window_once() -> None:
    windows = sampler(num_tokens=1000, context=32, batch_size=5)
    assert windows.num_windows == 30
    starts = [int(row[0]) for step in range(6) for row in windows.batch(step)[0]]
    assert len(set(starts)) == 30
    assert len({start % 32 for start in starts}) == 1


def test_epochs_differ_in_order_and_borders() -> None:
    windows = sampler(num_tokens=1000, context=32, batch_size=30)
    first, second = (windows.batch(step)[0][:, 0].tolist() for step in range(2))
    assert first != second
    assert first[0] % 32 != second[0] % 32


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    one, other = sampler(), sampler()
    for step in range(20):
        one.batch(step)
    assert (one.batch(11)[0] == other.batch(11)[0]).all()


@pytest.mark.parametrize("num_tokens", [64, 65, 95, 96])
def test_the_smallest_texts_stay_in_bounds(num_tokens: int) -> None:
    windows = sampler(num_tokens, context=32, batch_size=3)
    for step in range(50):
        assert windows.batch(step)[1].shape == (3, 32)


def test_a_context_larger_than_the_data_is_refused() -> None:
    with pytest.raises(TrainingError, match="context 32 is larger than the data: it has 63 tokens"):
        sampler(num_tokens=63)
