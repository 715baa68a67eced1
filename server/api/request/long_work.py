"""Work on long bodies and texts, away from the event loop: one thread, which gives way to the engine.

What runs here holds up the loop only while it keeps the GIL: tiktoken gives it up, Python code and the JSON
parsers do not; who uses them should work in parts, with a `pause` between them.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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


_num_jobs = 0
_pool = ThreadPoolExecutor(1, thread_name_prefix="long-work", initializer=_give_way)


async def off_loop(function: Callable[..., _Result], *args: object) -> _Result:
    """`function(*args)`, behind what was given before; raises what it raises."""
    global _num_jobs  # as the pool is the process's
    _num_jobs += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(_pool, function, *args)
    finally:
        _num_jobs -= 1


def num_jobs() -> int:
    """Given and not done; each belongs to a request, whose bytes are counted where it arrived."""
    return _num_jobs


def pause() -> None:
    """Lets the loop have the GIL at once, not after the interpreter's switch interval of 5 ms."""
    time.sleep(0)
