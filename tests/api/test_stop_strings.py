"""Stop strings: the cut depends on the text alone, never on how it was split."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.api.reply.stop_strings import StopMatcher, StopPattern

stop_lists = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4)
pieces = st.lists(st.text("abcd", max_size=4), max_size=12)


def expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The first end of any stop string; of those that end there, the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@given(pieces, stop_lists, st.booleans())
def test_any_split_gives_the_same_cut(parts: list[str], stops: list[str], include: bool) -> None:
    matcher = StopMatcher(StopPattern(stops), include_stop=include)
    sent, found = "", None
    for part in parts:
        text, found = matcher.push(part)
        sent += text
        if found is not None:
            break
    if found is None:
        sent += matcher.flush()
    assert (sent, found) == expected("".join(parts), stops, include)


@given(pieces, stop_lists)
def test_nothing_is_held_back_that_cannot_become_a_stop_string(
    parts: list[str], stops: list[str]
) -> None:
    matcher = StopMatcher(StopPattern(stops), include_stop=False)
    text = sent = ""
    for part in parts:
        text += part
        released, found = matcher.push(part)
        sent += released
        if found is not None:
            return
        held = text[len(sent) :]
        assert bool(held) == matcher.has_held
        assert not held or any(stop.startswith(held) for stop in stops)
        tails = (text[i:] for i in range(len(sent)))
        assert not any(stop.startswith(tail) for tail in tails for stop in stops)
