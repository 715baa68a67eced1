"""A byte-level BPE vocabulary of any size for random weights: the embedded model's, and made-up merges.

Peers' servers and converters want a tokenizer; what its tokens mean is the same for all of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

_END = "<|endoftext|>"
_LONGEST = 24  # characters of a made-up token


def write_tokenizer(source: Path, folder: Path, vocab_size: int, seed: int = 0) -> None:
    """tokenizer.json, vocab.json, merges.txt and tokenizer_config.json; the end token comes last."""
    document = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    model = document["model"]
    model["vocab"], model["merges"] = grow(model["vocab"], model["merges"], vocab_size, seed)
    document["added_tokens"][0]["id"] = vocab_size - 1
    _write(folder / "tokenizer.json", document)
    _write(folder / "vocab.json", model["vocab"])
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    _write(folder / "tokenizer_config.json", {**config, "model_max_length": 1024})


def grow(
    vocab: dict[str, int], merges: list[list[str]], vocab_size: int, seed: int
) -> tuple[dict[str, int], list[list[str]]]:
    """As many tokens as asked for, each of the new ones a merge of two before it."""
    tokens = [token for token in sorted(vocab, key=lambda token: vocab[token]) if token != _END]
    known, grown = set(tokens), [list(pair) for pair in merges]
    rng = Random(seed)
    while len(tokens) < vocab_size - 1:
        first, second = rng.choice(tokens), rng.choice(tokens)
        if len(first + second) <= _LONGEST and first + second not in known:
            grown.append([first, second])
            known.add(first + second)
            tokens.append(first + second)
    return {token: index for index, token in enumerate([*tokens, _END])}, grown


def _write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
