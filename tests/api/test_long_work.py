"""Long work runs in a thread of its own that gives way to the others, and raises what it raises."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from server.api.request.long_work import Line, bodies, texts
from server.errors import RequestError


def _niceness() -> tuple[str, int]:
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    return threading.current_thread().name, own


def test_its_thread_alone_is_nicer() -> None:
    here = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    name, niceness = asyncio.run(texts.run(0, _niceness))
    assert name.startswith("long-work")
    assert niceness == min(here + 5, 19)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == here


def test_what_it_raises_arrives() -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(bodies.run(0, divmod, 1, 0))


def test_who_would_wait_behind_too_much_is_told_so() -> None:
    async def ask() -> None:
        line, may_end = Line("test", 100), threading.Event()
        running = [asyncio.create_task(line.run(size, may_end.wait, 10)) for size in (200,)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError) as refused:
            await line.run(1, len, "")
        assert refused.value.status == 503
        assert refused.value.retry_after_s is not None
        may_end.set()
        await asyncio.gather(*running)
        assert line.num_bytes == 0
        assert await line.run(200, len, "a") == 1  # one that is larger than all is taken alone

    asyncio.run(ask())


def test_texts_that_take_long_hold_up_no_body() -> None:
    async def ask() -> None:
        may_end = threading.Event()
        slow = asyncio.create_task(texts.run(1 << 20, may_end.wait, 10))
        assert await asyncio.wait_for(bodies.run(1 << 20, len, "a"), 5) == 1
        assert not slow.done()
        may_end.set()
        await slow

    asyncio.run(ask())
