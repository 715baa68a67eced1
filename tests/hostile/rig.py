"""A server with keys and few KV blocks, and the watch over it, for tests and for the fuzzer alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.hostile.control import Control
from tests.hostile.sending import CANARY, KEY, METRICS_KEY, post, write_key_file
from tests.hostile.watch import Watch, address_of
from tests.hostile.wire import exchange
from tests.serving import Server

# KV blocks for some 12,000 tokens: what overlaps preempts each other at times.
_FLAGS = ("--max-num-seqs", "16", "--max-model-len", "2048", "--kv-cache-gib", "0.012")


@contextmanager
def serving(
    model: Path, directory: Path, *flags: str, more_keys: Mapping[bytes, str] | None = None
) -> Iterator[Server]:
    """`more_keys`: each with its limits, as words of the key file."""
    keys = directory / "keys"
    write_key_file(keys, more_keys or {})
    server = Server(model, *_FLAGS, "--api-key-file", str(keys), *flags)
    try:
        yield server.wait_ready()
    finally:
        server.clean_up()


@contextmanager
def watching(server: Server) -> Iterator[Watch]:
    """At the end nothing may be left, and the log holds no secret."""
    _warm_up(address_of(server))
    control = Control(address_of(server))
    try:
        watch = Watch(server, control)
        yield watch
        watch.check_idle()
        watch.check_log(KEY, METRICS_KEY, CANARY.encode())
    finally:
        control.stop()


def _warm_up(address: tuple[str, int]) -> None:
    """All threads and child processes that come when they are first needed."""
    bodies = [
        {"prompt": "a" * 8000, "truncate_prompt_tokens": 4, "max_tokens": 1},
        {"prompt": "a" * 100_000, "truncate_prompt_tokens": 4, "max_tokens": 1},
        {"prompt": "a", "max_tokens": 4, "structured_outputs": {"regex": "[a-z]+"}},
    ]
    with ThreadPoolExecutor(12) as pool:
        sent = [post(body) for body in bodies for _ in range(12)]
        assert set(pool.map(lambda each: _warmed_up(address, each), sent)) == {200}


def _warmed_up(address: tuple[str, int], sent: bytes) -> int:
    """A server that lets few wait may refuse it at first, on a slow machine."""
    deadline = time.monotonic() + 60
    while True:
        (response,) = exchange(address, [sent], timeout_s=60).responses
        if response.status != 503 or time.monotonic() > deadline:
            return response.status
