"""The tokenizer: byte-level BPE with GPT-2's splitting pattern, trained and run by the `tokenizers`
library.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from server.model_files import ModelFiles
from server.tokenizer.huggingface import read_tokenizer_json
from server.tokenizer.limits import MAX_FILE_BYTES
from server.training.errors import TrainingError

END_OF_TEXT = "<|endoftext|>"
NUM_BYTES = 256


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Raises TrainingError if the text does not hold enough merges for `vocab_size`."""
    if vocab_size <= NUM_BYTES:
        raise TrainingError(
            f"vocab_size must be above {NUM_BYTES} (the bytes and {END_OF_TEXT}), not {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise TrainingError(
            f"vocab_size {vocab_size} is too large: "
            f"the text only yields {tokenizer.get_vocab_size()} tokens"
        )
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a tokenizer.json of GPT-2's kind: its splitting pattern is the library's, not the file's.
    Raises ModelError, or TrainingError if it is missing or has no end-of-text token."""
    files = ModelFiles(path.parent)
    if not files.has(path.name):
        raise TrainingError(f"no tokenizer at {path}")
    read_tokenizer_json(files, path.name)
    try:
        tokenizer = Tokenizer.from_buffer(files.read(path.name, MAX_FILE_BYTES))
    except Exception as error:  # the library raises no narrower class
        raise TrainingError(f"{path} is not a tokenizer: {error}") from None
    end_of_text_id(tokenizer)
    return tokenizer


def end_of_text_id(tokenizer: Tokenizer) -> int:
    token_id: int | None = tokenizer.token_to_id(END_OF_TEXT)
    if token_id is None:
        raise TrainingError(f"the tokenizer has no {END_OF_TEXT} token")
    return token_id


def encode_documents(tokenizer: Tokenizer, documents: list[str]) -> NDArray[np.int64]:
    """One stream: end-of-text, then every document followed by end-of-text."""
    separator = end_of_text_id(tokenizer)
    ids = [separator]
    for encoding in tokenizer.encode_batch(documents, add_special_tokens=False):
        ids.extend(encoding.ids)
        ids.append(separator)
    return np.array(ids, dtype=np.int64)
