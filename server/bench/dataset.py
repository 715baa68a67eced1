"""A file of conversations: first turns for prompts, first replies for how long an answer is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.errors import ConfigError

_TURNS = ("conversations", "messages")
_SPEAKERS = ("from", "role")
_TEXTS = ("value", "content")
_ASKING = ("human", "user")
_PROMPTS = ("prompt", "instruction", "question")
_REPLIES = ("completion", "response", "output", "answer")


@dataclass(frozen=True, slots=True)
class Conversation:
    prompt: str
    reply_words: int  # 0: the file holds no reply


def load_dataset(path: Path) -> list[Conversation]:
    """JSON (a list) or JSON lines; an entry is ShareGPT's (`conversations`), OpenAI's (`messages`) or has a
    `prompt`. Entries without a first turn of a person are left out. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--dataset {path}: no such file of UTF-8 text.") from error
    found = [entry for document in _documents(path, text) for entry in _conversation(document)]
    if not found:
        raise ConfigError(f"--dataset {path}: no entry with `conversations` or `prompt`.")
    return found


def _documents(path: Path, text: str) -> list[Any]:
    try:
        if text.lstrip().startswith("["):
            documents: list[Any] = json.loads(text)
            return documents
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise ConfigError(f"--dataset {path}: neither a JSON list nor JSON lines.") from error


def _conversation(document: Any) -> Iterator[Conversation]:
    if not isinstance(document, dict):
        return
    turns = _first(document, _TURNS)
    if isinstance(turns, list):
        yield from _from_turns([turn for turn in turns if isinstance(turn, dict)])
        return
    prompt, reply = _first(document, _PROMPTS), _first(document, _REPLIES)
    if isinstance(prompt, str) and prompt.strip():
        yield Conversation(prompt, _num_words(reply))


def _from_turns(turns: list[dict[str, Any]]) -> Iterator[Conversation]:
    spoken = [turn for turn in turns if _first(turn, _SPEAKERS) != "system"]
    if not spoken or _first(spoken[0], _SPEAKERS) not in _ASKING:
        return
    prompt = _first(spoken[0], _TEXTS)
    if isinstance(prompt, str) and prompt.strip():
        yield Conversation(prompt, _num_words(_first(spoken[1], _TEXTS) if spoken[1:] else None))


def _first(document: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((document[key] for key in keys if key in document), None)


def _num_words(reply: Any) -> int:
    return len(reply.split()) if isinstance(reply, str) else 0
