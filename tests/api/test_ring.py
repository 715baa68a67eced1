"""The ring: events keep their numbers, whatever goes, and its bytes are those of what is there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.kept.ring import Ring

Steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.binary(max_size=30)),
        st.tuples(st.just("drop"), st.integers(0, 60), st.none() | st.integers(0, 300)),
        st.tuples(st.just("since"), st.integers(0, 60), st.integers(0, 9)),
    ),
    max_size=80,
)


@given(Steps, st.integers(0, 100))
def test_it_is_the_end_of_a_list(steps: list[tuple[str, ...]], num_before: int) -> None:
    """With many events before, both ways through the deque are taken."""
    ring, model, first = Ring(1000), [b"before"] * num_before, 0
    for event in model:
        ring.append(event)
    for name, *arguments in steps:
        if name == "append":
            (event,) = arguments
            ring.append(event)  # type: ignore[arg-type]
            model.append(event)  # type: ignore[arg-type]
        elif name == "drop":
            n, num_bytes = arguments
            first = _drop(ring, model, first, n, num_bytes)  # type: ignore[arg-type]
        else:
            n, num_events = arguments
            if first <= n <= len(model):  # type: ignore[operator]
                wanted = model[n:][:num_events]  # type: ignore[misc]
                assert ring.since(n, num_events) == wanted  # type: ignore[arg-type]
        assert (ring.first, ring.next) == (first, len(model))
        assert ring.num_bytes == sum(len(event) + 41 for event in model[first:])
        assert ring.is_full == (ring.num_bytes > 1000)


def _drop(ring: Ring, model: list[bytes], first: int, n: int, num_bytes: int | None) -> int:
    before = ring.num_bytes
    ring.drop_before(n, num_bytes)
    freed, wanted = 0, 1 << 60 if num_bytes is None else num_bytes
    while first < min(n, len(model)) and freed < wanted:
        freed += len(model[first]) + 41
        first += 1
    assert before - ring.num_bytes == freed
    return first


@pytest.mark.parametrize("n", [0, 1, 5, 99])
def test_an_event_that_is_gone_or_far_from_come_is_not_given(n: int) -> None:
    ring = Ring(1000)
    for event in (b"a", b"b", b"c", b"d"):
        ring.append(event)
    ring.drop_before(2)
    with pytest.raises(LookupError):
        ring.since(n, 10)
    assert ring.since(2, 10) == [b"c", b"d"]
    assert ring.since(4, 10) == []
