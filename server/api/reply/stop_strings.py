"""Finding stop strings in text that arrives in pieces; what may become one is held back.

The match that ends first counts, and of those the longest: so the cut depends on the text alone,
not on how it was split into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class StopPattern:
    """The stop strings of a request, prepared once for all its choices (Knuth-Morris-Pratt)."""

    def __init__(self, stops: Sequence[str]) -> None:
        # longest first, so that it wins where several end at one character
        self.stops = sorted(set(stops), key=len, reverse=True)
        self.failures = [_failures(stop) for stop in self.stops]
        self.first_chars = frozenset(stop[0] for stop in self.stops)


def _failures(stop: str) -> list[int]:
    """Per prefix: the length of its longest proper prefix that is also its suffix."""
    failures = [0]
    k = 0
    for char in stop[1:]:
        while k and stop[k] != char:
            k = failures[k - 1]
        k += stop[k] == char
        failures.append(k)
    return failures


class Found(NamedTuple):
    text: str  # may be sent now
    stop: str | None  # the stop string that ended the text


class StopMatcher:
    """One choice's search. Constant work per character and stop string, whatever the text."""

    def __init__(self, pattern: StopPattern, *, include_stop: bool) -> None:
        self._pattern = pattern
        self._include_stop = include_stop
        self._matched = [0] * len(pattern.stops)  # characters of each stop that the text ends with
        self._held = ""

    @property
    def has_held(self) -> bool:
        return bool(self._held)

    def push(self, text: str) -> Found:
        """Not to be called again once a stop string was found."""
        if not self._held and self._pattern.first_chars.isdisjoint(text):
            return Found(text, None)
        buffer = self._held + text
        for position in range(len(self._held), len(buffer)):
            stop = self._advance(buffer[position])
            if stop is not None:
                end = position + 1
                return Found(buffer[: end if self._include_stop else end - len(stop)], stop)
        num_sent = len(buffer) - max(self._matched)
        self._held = buffer[num_sent:]
        return Found(buffer[:num_sent], None)

    def flush(self) -> str:
        """The text that was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> str | None:
        pattern = self._pattern
        found = None
        for i, stop in enumerate(pattern.stops):
            k = self._matched[i]
            while k and stop[k] != char:
                k = pattern.failures[i][k - 1]
            k += stop[k] == char
            self._matched[i] = k
            if k == len(stop) and found is None:
                found = stop
        return found
