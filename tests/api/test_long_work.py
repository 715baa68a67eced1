"""Long work runs in a thread of its own that gives way to the others, and raises what it raises."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from server.api.request.long_work import off_loop


def _niceness() -> tuple[str, int]:
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    return threading.current_thread().name, own


def test_its_thread_alone_is_nicer() -> None:
    here = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    name, niceness = asyncio.run(off_loop(_niceness))
    assert name.startswith("long-work")
    assert niceness == min(here + 5, 19)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == here


def test_what_it_raises_arrives() -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(off_loop(divmod, 1, 0))
