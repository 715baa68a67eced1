"""A JSON reply made in parts: small ones leave at once, large ones part by part."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import repeat
from typing import Any

import pytest

from server.api.reply.json_parts import send_json


def sent(parts: Iterable[bytes], gone_after: int = 1 << 30) -> list[Any]:
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    asyncio.run(send_json(iter(parts), send, lambda: len(messages) >= gone_after))
    return messages


@pytest.mark.parametrize("parts", [[b"{}"], [b"{", b"", b"}"], [b"a" * 65536]])
def test_a_small_one_has_a_length(parts: list[bytes]) -> None:
    start, body = sent(parts)
    whole = b"".join(parts)
    assert (b"content-length", str(len(whole)).encode()) in start["headers"]
    assert body == {"type": "http.response.body", "body": whole}


@pytest.mark.parametrize(
    "parts", [[b"a" * 65537], [b"a" * 40000, b"b" * 40000, b"c"], [b"x" * 999] * 500]
)
def test_a_large_one_is_whole_and_no_message_is_large(parts: list[bytes]) -> None:
    start, *bodies = sent(parts)
    assert start["headers"] == [(b"content-type", b"application/json")]
    assert b"".join(body["body"] for body in bodies) == b"".join(parts)
    assert max(len(body["body"]) for body in bodies) <= 65536 + max(map(len, parts))
    assert [body.get("more_body", False) for body in bodies] == [True] * (len(bodies) - 1) + [False]


def test_nothing_is_made_for_a_client_that_is_gone() -> None:
    """These parts have no end."""
    messages = sent(repeat(b"a" * 1000), gone_after=4)
    assert len(messages) == 4


def test_others_get_their_turn() -> None:
    async def main() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async def send(_: Any) -> None:
            """Never waits, as a fast client lets it."""

        task = asyncio.create_task(other())
        await send_json(iter([b"a" * 1000] * 1000), send, lambda: False)
        task.cancel()
        assert turns > 900

    asyncio.run(main())
