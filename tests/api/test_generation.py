"""What a turn of the loop owes its readers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.api.generation import Turn


def test_a_reader_that_raises_takes_nobody_along() -> None:
    due: list[Callable[[], None]] = []
    turn, called = Turn(due.append), list[str]()

    def broken() -> None:
        called.append("broken")
        raise ValueError("ours")

    turn.add(lambda: called.append("a"))
    turn.add(broken)
    turn.add(lambda: called.append("b"))
    turn.add(lambda: called.append("c"))
    with pytest.raises(ValueError, match="ours"):
        due.pop(0)()
    while due:
        due.pop(0)()
    assert called == ["a", "broken", "b", "c"]
