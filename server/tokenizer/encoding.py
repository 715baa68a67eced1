"""The tokenizer in memory: encoding by tiktoken, decoding by a byte table. Knows no files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import tiktoken

# GPT-2's splitting, in tiktoken's form: possessive, so that no text makes it backtrack.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# The last place where a piece of the pattern ends whatever is around: between anything and a blank, between a
# letter or digit and a mark. The pieces that follow are the same without what is in front of them.
_LAST_BREAK = re.compile(r".*(?:\S[ \t\n\r]|[^\W_][!-/:-@\[-`{-~\u3001\u3002\uff0c])", re.DOTALL)

# What `\s` of the pattern matches; Python's has four more.
_BLANK = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_BLANKS = re.compile(f"{_BLANK}+")
# `\s+(?!\S)` alone can backtrack, over a run of blanks: beyond a million tiktoken gives up, or panics.
_LONG_RUN = 250_000
_LONG_BLANK = re.compile(f"{_BLANK}{{{_LONG_RUN}}}")

# tiktoken looks for special tokens again from each character of one that is not asked for: one of a thousand
# letters costs a second in each 100 KB of them. We ask for none; nobody needs this one, but it needs some.
_NO_SPECIAL = "\0no special token\0"

_ITERATED_IDS = 1024


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a model directory says, whatever its format."""

    token_bytes: Mapping[int, bytes]  # every id that exists; special tokens by their spelling
    mergeable: Sequence[bytes]  # the 256 single bytes, then what merges make, first merge first
    special_tokens: Mapping[str, int]
    bos_token_id: int | None
    eos_token_id: int | None


class PackedIds:
    """The ids of a long text: their number is known before they are objects."""

    def __init__(self, ranks: memoryview, ids: list[int] | None) -> None:
        self._ranks = ranks
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ranks)

    def __iter__(self) -> Iterator[int]:
        """Only a few of them are objects at a time."""
        for start in range(0, len(self), _ITERATED_IDS):
            yield from self._unpack(self._ranks[start : start + _ITERATED_IDS])

    def last(self, num_ids: int) -> list[int]:
        """At most so many of them, from the end."""
        return self._unpack(self._ranks[-num_ids:])

    def _unpack(self, packed: memoryview) -> list[int]:
        ranks: list[int] = packed.tolist()
        return ranks if self._ids is None else [self._ids[rank] for rank in ranks]


class Tokenizer:
    """Ids are in [0, num_tokens), holes excepted. Special tokens have an id but no text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.num_tokens = max(vocabulary.token_bytes) + 1
        self.special_tokens = dict(vocabulary.special_tokens)
        self.bos_token_id = vocabulary.bos_token_id
        self.eos_token_id = vocabulary.eos_token_id
        self._token_bytes: list[bytes | None] = [
            vocabulary.token_bytes.get(i) for i in range(self.num_tokens)
        ]
        self._holes = {i for i, raw in enumerate(self._token_bytes) if raw is None}
        special_ids = set(self.special_tokens.values())
        # per id: its bytes in a text, and the text itself where they are whole characters
        self.text_bytes = [
            b"" if raw is None or i in special_ids else raw
            for i, raw in enumerate(self._token_bytes)
        ]
        self.whole_texts = [_whole_text(raw) for raw in self.text_bytes]
        self.max_token_bytes = max(map(len, vocabulary.mergeable))  # that a token takes of a text
        self._ids = _ids_by_rank(vocabulary)
        self._encoding = _encoding(vocabulary)

    @cached_property
    def spelled_bytes(self) -> list[bytes]:
        """As `text_bytes`, with special tokens as they are spelled."""
        return [raw or b"" for raw in self._token_bytes]

    @cached_property
    def spelled_texts(self) -> list[str | None]:
        """As `whole_texts`, with special tokens as they are spelled."""
        return [_whole_text(raw) for raw in self.spelled_bytes]

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. What spells a special token is text.

        Releases the GIL while tiktoken works; lone surrogates become U+FFFD.
        """
        if _has_long_blank(text):
            return list(self.encode_packed(text))
        ranks = self._encoding.encode_ordinary(text)
        ids = self._ids
        return ranks if ids is None else [ids[rank] for rank in ranks]

    def encode_packed(self, text: str) -> PackedIds:
        """As `encode`, without an object for each id: making half a million of them would hold up every
        other thread for tens of milliseconds."""
        ranks = b"".join(map(self._ranks, _parts(text)))
        return PackedIds(memoryview(ranks).cast("I"), self._ids)

    def _ranks(self, text: str) -> bytes:
        encode = self._encoding._core_bpe.encode_to_tiktoken_buffer
        try:
            buffer = encode(text, set())
        except UnicodeEncodeError:  # lone surrogates, as tiktoken itself treats them
            buffer = encode(
                text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), set()
            )
        return bytes(buffer)

    def end_of(self, text: str, num_ids: int) -> str:
        """Its end, perhaps all of it, whose last `num_ids` ids are those of `text`, which need not be
        encoded for them."""
        last = len(text) - num_ids * self.max_token_bytes
        found = _LAST_BREAK.match(text, 0, last) if last > 0 else None
        return text if found is None else text[found.end() - 1 :]

    def decode_bytes(self, token_ids: Iterable[int]) -> bytes:
        """The bytes of the text; special tokens add none."""
        text_bytes = self.text_bytes
        return b"".join([text_bytes[i] for i in token_ids])

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(token_ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The token's own bytes; a special token's spelling; nothing for a hole."""
        return self._token_bytes[token_id] or b""

    def is_token(self, token_id: int) -> bool:
        return 0 <= token_id < self.num_tokens and token_id not in self._holes

    def are_tokens(self, token_ids: Sequence[int]) -> bool:
        """Whether every id exists; quick for long prompts."""
        if not token_ids:
            return True
        in_range = min(token_ids) >= 0 and max(token_ids) < self.num_tokens
        return in_range and self._holes.isdisjoint(token_ids)


def _whole_text(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _has_long_blank(text: str) -> bool:
    """Whether a run of blanks may be too long for tiktoken; one of twice _LONG_RUN always is found."""
    starts = range(0, len(text) - _LONG_RUN + 1, _LONG_RUN)
    return any(_LONG_BLANK.match(text, start) for start in starts)


def _parts(text: str) -> Iterator[str]:
    """The text, cut around long runs of blanks where the pattern would cut it, too: in front of a run, and of
    its last blank, unless the text ends with it."""
    done = 0
    if _has_long_blank(text):
        for run in _BLANKS.finditer(text):
            if run.end() - run.start() >= _LONG_RUN and run.end() < len(text):
                yield text[done : run.start()]
                yield text[run.start() : (done := run.end() - 1)]
    yield text[done:]


def _ids_by_rank(vocabulary: Vocabulary) -> list[int] | None:
    """tiktoken knows a token by its place in merge order; None where that is its id already."""
    ids = {raw: i for i, raw in vocabulary.token_bytes.items()}
    special_ids = set(vocabulary.special_tokens.values())
    ids.update({raw: i for i, raw in vocabulary.token_bytes.items() if i not in special_ids})
    by_rank = [ids[raw] for raw in vocabulary.mergeable]
    return None if by_rank == list(range(len(by_rank))) else by_rank


def _encoding(vocabulary: Vocabulary) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "model",
        pat_str=GPT2_PATTERN,
        mergeable_ranks={raw: rank for rank, raw in enumerate(vocabulary.mergeable)},
        special_tokens={_NO_SPECIAL: len(vocabulary.mergeable)},
    )
