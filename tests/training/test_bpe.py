from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.training.bpe import (
    END_OF_TEXT,
    encode_documents,
    end_of_text_id,
    load_tokenizer,
    train_tokenizer,
)
from server.training.errors import TrainingError
from server.training.run import Data

TEXTS = [
    "".join(map(chr, range(256))),
    "a\u0301 \U0001f9d9\u200d\u2642\ufe0f \u4e2d\u6587 \u05e9\u05dc\u05d5\u05dd",
    "\ufeff\u2028 it's  we'LL\t\n\n x  ",
    "\U0010ffff\x00\x7f",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_the_round_trip(data: Data, text: str) -> None:
    assert data.tokenizer.decode(data.tokenizer.encode(text).ids) == text


def test_every_byte_has_a_token_of_its_own(data: Data) -> None:
    vocab = data.tokenizer.get_vocab()
    assert sum(len(token) == 1 for token in vocab) == 256
    assert sorted(vocab.values()) == list(range(len(vocab)))


def test_splits_as_gpt2_does(data: Data) -> None:
    split = data.tokenizer.pre_tokenizer.pre_tokenize_str("It's  12 o'clock, you'll see\n\n")
    pieces = [piece.replace("\u0120", " ").replace("\u010a", "\n") for piece, _ in split]
    assert pieces == [
        "It",
        "'s",
        " ",
        " 12",
        " o",
        "'",
        "clock",
        ",",
        " you",
        "'ll",
        " see",
        "\n\n",
    ]


def test_merges_are_in_the_order_of_their_ids(data: Data) -> None:
    """tiktoken takes a token's id for its merge rank; the server relies on the two being in one order."""
    model = json.loads(data.tokenizer.to_str())["model"]
    ids = [model["vocab"]["".join(merge)] for merge in model["merges"]]
    assert ids == sorted(ids)
    assert len(ids) == len(model["vocab"]) - 256 - 1


def test_training_twice_gives_one_tokenizer() -> None:
    documents = [f"tale {number} of the wood and the sea" * 3 for number in range(50)]
    first, second = (train_tokenizer(documents, 290) for _ in range(2))
    assert first.to_str() == second.to_str()


def test_documents_are_fenced_by_end_of_text(data: Data) -> None:
    separator = end_of_text_id(data.tokenizer)
    ids = encode_documents(data.tokenizer, ["one", "two"]).tolist()
    one, two = (data.tokenizer.encode(text).ids for text in ("one", "two"))
    assert ids == [separator, *one, separator, *two, separator]


def test_too_large_and_too_small_vocabularies_are_refused() -> None:
    with pytest.raises(TrainingError, match="vocab_size 5000 is too large"):
        train_tokenizer(["a short text"], 5000)
    with pytest.raises(TrainingError, match="must be above 256"):
        train_tokenizer(["a short text"], 256)


def test_missing_or_foreign_tokenizers_are_refused(tmp_path: Path, data: Data) -> None:
    with pytest.raises(TrainingError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "absent.json")
    foreign = tmp_path / "foreign.json"
    foreign.write_text(data.tokenizer.to_str().replace(END_OF_TEXT, "<|other|>"))
    with pytest.raises(TrainingError, match="has no <|endoftext|> token".replace("|", r"\|")):
        load_tokenizer(foreign)
