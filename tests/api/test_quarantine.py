"""Which requests are refused, and for how long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from server.api.quarantine import HOLD_S, MAX_HELD, Quarantine
from server.sequence import Grammar, SamplingParams, SequenceRequest

REQUEST = SequenceRequest(7, [1, 2], 0, SamplingParams(max_tokens=3, seed=1))


@pytest.mark.parametrize(
    ("change", "is_held"),
    [
        ({}, True),
        ({"seq_id": 8, "choice": 3, "priority": 1, "cache_salt": "x", "emitted_ids": [4]}, True),
        ({"params": SamplingParams(max_tokens=3, seed=2)}, True),
        ({"params": SamplingParams(max_tokens=4, seed=1)}, False),
        ({"prompt_ids": [1, 2, 2]}, False),
        ({"grammar": Grammar("regex", "a")}, False),
    ],
)
def test_what_is_alike(change: dict[str, Any], is_held: bool) -> None:
    quarantine = Quarantine()
    assert not quarantine.holds(REQUEST, 0.0)
    quarantine.add(REQUEST, 0.0)
    assert quarantine.holds(replace(REQUEST, **change), 1.0) == is_held


def test_it_ends_and_is_bounded() -> None:
    quarantine = Quarantine()
    requests = [replace(REQUEST, prompt_ids=[i]) for i in range(MAX_HELD + 1)]
    for request in requests:
        quarantine.add(request, 5.0)
    assert [quarantine.holds(request, 6.0) for request in requests] == [False] + [True] * MAX_HELD
    assert quarantine.holds(requests[1], 5.0 + HOLD_S - 0.1)
    assert not quarantine.holds(requests[1], 5.0 + HOLD_S)
