"""What followed the last time that the same ids stood in a row: a draft of what comes next, for the price of
a dictionary. Of one sequence, prompt and generated ids alike; after prompt lookup decoding (A. Saxena, 2023).

    ids     .. a b c d e f .. a b c | ?
                     ^ match          draft: d e f ..

Knows ids only: no step, no other sequence. How good its drafts would have been it counts as it goes, without
one being computed: for each id it asks itself what it would have foreseen.
"""

from __future__ import annotations

NGRAM = 3  # ids that must match
BYTES_PER_ID = 160  # of the index, at most: an entry of a dict, its key and its position
_ID_BITS = 21  # two ids alike in them make a useless draft, no wrong one
_KEY = (1 << _ID_BITS * NGRAM) - 1
_RATE = 1 / 8  # of the running means: they forget half in five ids that had a match
# What is hoped for before anything is known: that a match holds for one id, and that it goes on to hold.
_HOPES = (0.3, 0.7)


class PromptLookup:
    """Follows the ids of one sequence, which only grow."""

    __slots__ = ("_index", "_key", "is_right", "match", "num_seen", "rates")

    def __init__(self) -> None:
        self._index: dict[int, int] = {}  # the last NGRAM ids -> where the id behind them stands
        self._key = 0
        self.num_seen = 0
        self.match: int | None = None  # where that stands which followed the last ids before
        self.is_right = False  # it foresaw the last id
        # How often a match holds: behind an id that was not foreseen, and behind one that was.
        self.rates = list(_HOPES)

    @property
    def num_bytes(self) -> int:
        return BYTES_PER_ID * len(self._index)

    def follow(self, ids: list[int], num_prompt_tokens: int, limit: int) -> None:
        """Take in what is new in `ids`, `limit` of them at most. O(1) an id. What a prompt repeats says
        little of what comes behind it, so it is not counted."""
        end = min(len(ids), self.num_seen + limit)
        if self.num_seen < num_prompt_tokens:
            self._index_prompt(ids, min(end, num_prompt_tokens))
        index, key, rates, is_right = self._index, self._key, self.rates, self.is_right
        match = self.match
        for position in range(self.num_seen, end):
            token_id = ids[position]
            if match is None:
                is_right = False
            else:
                was_right, is_right = is_right, ids[match] == token_id
                rates[was_right] += (is_right - rates[was_right]) * _RATE
            index[key] = position
            key = (key << _ID_BITS | token_id) & _KEY
            match = index.get(key)
        self._key, self.match, self.is_right, self.num_seen = key, match, is_right, end

    def _index_prompt(self, ids: list[int], end: int) -> None:
        index, key = self._index, self._key
        for position in range(self.num_seen, end):
            index[key] = position
            key = (key << _ID_BITS | ids[position]) & _KEY
        self._key, self.match, self.num_seen = key, index.get(key), end

    def draft(self, ids: list[int], num: int) -> list[int]:
        """`num` ids that may come behind `ids`, all of which it has followed; none without a match. A match
        that reaches the end goes on with itself: text in a loop is foreseen for more than one round."""
        match = self.match
        if match is None:
            return []
        drafted = ids[match : match + num]
        if len(drafted) < num:
            drafted = (drafted * -(-num // len(drafted)))[:num]
        return drafted
