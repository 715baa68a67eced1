"""The process whose connections are cut: the real app over a scripted engine, which writes for each prompt a
text that can be known beforehand. It prints its address, and for each line that it is sent what it holds; at
"die" its engine dies before, and comes back.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import os
import random
import sys
from collections.abc import Sequence

import msgspec

from server.api.app import Doors
from server.api.kept import kept_runs
from server.api.kept.idempotency import Entry
from server.api.kept.kept_reply import KeptReply
from server.api.kept.resumable_stream import ResumableStream
from server.api.kept.stream_reading import StreamReading
from tests.api import fake_engine
from tests.api.conftest import WORDS, word
from tests.api.serving_app import ServedApp, served_app

EXPIRY_S = 3.0
_LETTERS = [*b"abcdefghijklmnopqrstuvwxyz .,", *map(word, WORDS)]
_SPLIT = [0xE6, 0x97, 0xA5]  # the bytes of one character


def script_of(prompt_ids: Sequence[int]) -> list[int]:
    """Endless, for all that is asked of it; its characters are also split over tokens."""
    rng = random.Random(repr(list(prompt_ids)))
    token_ids: list[int] = []
    while len(token_ids) < 1000:
        token_ids += rng.choice([_SPLIT, *[[token_id] for token_id in _LETTERS]])
    return token_ids


def _holds(app: ServedApp) -> dict[str, int]:
    gc.collect()
    objects = gc.get_objects()
    kept = (ResumableStream, KeptReply, StreamReading, Entry)
    return {
        "kept": sum(isinstance(each, kept) for each in objects),
        "tasks": sum(isinstance(each, asyncio.Task) and not each.done() for each in objects),
        "fds": len(os.listdir("/proc/self/fd")),
        "running": app.engine.num_running,
        "submitted": len({request.seq_id for request in app.engine.submitted}),
    }


def main() -> None:
    faulthandler.enable()
    kept_runs.EXPIRY_S = EXPIRY_S
    fake_engine.INFO = msgspec.structs.replace(fake_engine.INFO, max_model_len=4096)
    with served_app(Doors()) as app:
        app.engine.script = lambda request: script_of(request.prompt_ids)
        print(app.url, flush=True)
        for line in sys.stdin:
            if line.strip() == "die":
                app.engine.kill()
                app.engine.start()
            print(json.dumps(_holds(app)), flush=True)


if __name__ == "__main__":
    main()
