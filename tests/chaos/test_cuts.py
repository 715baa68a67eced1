"""Connections cut at any byte: no event is lost, none comes twice, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.api.conftest import make_tokenizer
from tests.chaos.cut_app import EXPIRY_S, script_of
from tests.chaos.cutting_client import Reader
from tests.serving import ROOT

NUM_READERS = 32
ENGINE_DIES_EVERY = 8  # streams


class App:
    """The process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.chaos.cut_app"]
        pipe = subprocess.PIPE
        self._one_at_a_time = threading.Lock()
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)

    def wait(self) -> None:
        assert self._process.stdout is not None
        url = urlsplit(self._process.stdout.readline().strip())
        assert url.hostname is not None and url.port is not None, "it did not start"
        self.address = (url.hostname, url.port)

    def holds(self, command: str = "") -> dict[str, int]:
        """ "die": and its engine is another one then."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._one_at_a_time:
            print(command, file=self._process.stdin, flush=True)
            if not select.select([self._process.stdout], [], [], 60)[0]:
                self._process.send_signal(signal.SIGABRT)  # it says where its threads are
            found: dict[str, int] = json.loads(self._process.stdout.readline())
        return found

    def end(self) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            return self._process.wait(20)
        finally:
            self._process.kill()
            self._process.stdout.close()


@pytest.fixture
def app() -> Iterator[App]:
    app = App()
    try:
        app.wait()
        yield app
    finally:
        app.end()


def body_of(rng: random.Random, number: int) -> dict[str, Any]:
    return {
        "prompt": f"{number}",
        "max_tokens": rng.randrange(1, 500),
        "n": rng.choice([1, 1, 2]),
        "logprobs": rng.choice([None, None, 2]),
        "echo": rng.random() < 0.2,
        "stream": True,
        "stream_options": {"resumable": True, "include_usage": rng.random() < 0.5},
    }


def text_of(body: dict[str, Any]) -> str:
    """What each choice must say."""
    prompt_ids = [*body["prompt"].encode()]
    token_ids = script_of(prompt_ids)[: body["max_tokens"]]
    return make_tokenizer().decode([*(prompt_ids if body["echo"] else []), *token_ids])


async def read_all(app: App, rng: random.Random, num_cuts: int) -> list[Reader]:
    """So many streams, one behind the other at each of NUM_READERS, that they are cut so often in all."""
    readers: list[Reader] = []

    async def read_on() -> None:
        while sum(reader.num_cuts for reader in readers) < num_cuts:
            number, seed = len(readers), rng.random()
            body = body_of(rng, number)
            reader = Reader(app.address, body, f"name-{number}", random.Random(seed))
            readers.append(reader)
            await reader.read()
            assert await reader.read_again() == b"".join(reader.events)
            await kill_now_and_then(number)

    async def kill_now_and_then(number: int) -> None:
        if number % ENGINE_DIES_EVERY == 0:
            await asyncio.to_thread(app.holds, "die")

    await asyncio.gather(*[read_on() for _ in range(NUM_READERS)])
    return readers


def check(reader: Reader) -> None:
    assert reader.events[-1].endswith(b"\ndata: [DONE]\n\n")
    chunks = [json.loads(event.partition(b"\ndata: ")[2]) for event in reader.events[:-1]]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    texts = ["" for _ in range(reader.body["n"])]
    for choice in choices:
        texts[choice["index"]] += choice["text"]
    assert texts == [text_of(reader.body)] * reader.body["n"]
    assert [choice["finish_reason"] for choice in choices].count("length") == reader.body["n"]


def test_no_event_is_lost_or_comes_twice_and_nothing_stays(
    app: App, rng: random.Random, is_long: bool
) -> None:
    num_cuts = 10_000 if is_long else 1_500
    before = app.holds()
    readers = asyncio.run(read_all(app, rng, num_cuts))
    for reader in readers:
        check(reader)
    after = app.holds()
    assert after["submitted"] == sum(reader.body["n"] for reader in readers)  # none ran twice
    cuts, takeovers, posts = (
        sum(getattr(reader, name) for reader in readers)
        for name in ("num_cuts", "num_takeovers", "num_posts")
    )
    print(f"{len(readers)} streams, {posts} POSTs, {cuts} cuts, {takeovers} of them by silence")
    deadline = time.monotonic() + EXPIRY_S + 10
    while (holds := app.holds()) != {**before, "submitted": after["submitted"]}:
        assert time.monotonic() < deadline, (before, holds)
        time.sleep(0.2)
    assert app.end() == 0
