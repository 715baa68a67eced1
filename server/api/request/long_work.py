"""Work on long bodies and texts, away from the event loop: a thread for each, which gives way to the engine.

What runs here holds up the loop only while it keeps the GIL: tiktoken gives it up, Python code and the JSON
parsers do not; who uses them should work in parts, with a `pause` between them.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from server.errors import RequestError

# Added to that of this thread alone: Linux keeps it by thread. Not 19: where all cores are busy such a thread
# is put aside for tens of milliseconds, also while it has the GIL, and then the loop waits for it. With 1 MB
# prompts beside 8 streams and two busy processes on two cores, p99 between tokens was 38 to 44 ms; with 5 it
# was 12 to 20.
_NICENESS = 5
_MAX_NICENESS = 19

_Result = TypeVar("_Result")


def _give_way() -> None:
    thread = threading.get_native_id()
    niceness = os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS
    os.setpriority(os.PRIO_PROCESS, thread, min(niceness, _MAX_NICENESS))


class Line:
    """One thread, and what waits for it."""

    def __init__(self, name: str, max_bytes: int) -> None:
        self._pool = ThreadPoolExecutor(1, f"long-work-{name}", initializer=_give_way)
        self.max_bytes = max_bytes
        self.num_bytes = 0

    async def run(self, num_bytes: int, function: Callable[..., _Result], *args: object) -> _Result:
        """`function(*args)`, which has so much to read, behind what was given before; raises what it
        raises, and RequestError where too much waits."""
        if self.num_bytes and self.num_bytes + num_bytes > self.max_bytes:
            raise RequestError(
                "The server has too many long texts to read; try again in a moment.",
                code="server_overloaded",
                status=503,
                retry_after_s=random.randint(2, 10),
            )
        self.num_bytes += num_bytes
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        finally:
            self.num_bytes -= num_bytes


# Apart: a megabyte of JSON takes some 20 ms, one of letters without a blank a second to tokenise.
bodies = Line("bodies", 64 << 20)
texts = Line("texts", 16 << 20)


def pause() -> None:
    """Lets the loop have the GIL at once, not after the interpreter's switch interval of 5 ms."""
    time.sleep(0)
