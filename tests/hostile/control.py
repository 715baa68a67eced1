"""The control stream: one request that is asked again and again beside everything else, on a connection that
stays open, and must always say what it said alone.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from typing import Any

from tests.chaos.reading import Answer, merged
from tests.hostile.sending import post
from tests.hostile.wire import Address, Malformed, Response, Responses

_MAX_IDLE_S = 3.0  # the server closes a connection that is idle for 5 s
_EVENT = re.compile(rb"(?:id: [0-9a-f]{32}:\d+\n)?data: ([^\n]*)")
_BODY: dict[str, Any] = {
    "prompt": "Once upon a time there was a control stream",
    "max_tokens": 160,
    "temperature": 0.9,
    "seed": 11,
    "logprobs": 2,
    "ignore_eos": True,
    "return_token_ids": True,
    "stream": True,
    "stream_options": {"include_usage": True},
    "priority": -1000,
}


def events_of(response: Response) -> list[dict[str, Any]]:
    """The chunks of a stream, with or without event ids."""
    *events, rest = response.body.split(b"\n\n")
    if rest or not events or not _EVENT.fullmatch(events[-1]) or not events[-1].endswith(b"[DONE]"):
        raise Malformed(f"a stream that ends with {response.body[-200:]!r}")
    chunks = []
    for event in events[:-1]:
        found = _EVENT.fullmatch(event)
        if found is None:
            raise Malformed(f"an event {event[:200]!r}")
        chunks.append(json.loads(found[1]))
    return chunks


def answer_of(response: Response) -> Answer:
    """Of a stream with usage, in the form that all its runs have in common."""
    return merged(iter(events_of(response)))


class Control:
    """`solo` was said before anybody else asked."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._socket = socket.create_connection(address, timeout=60)
        self._answered_at = time.monotonic()
        self._may_go_on = threading.Event()
        self._is_idle = threading.Event()
        self._is_over = False
        self.num_answers = 0
        self.failure = ""
        self.solo = self._ask()
        self._may_go_on.set()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._thread.start()

    def _ask(self) -> Answer:
        if time.monotonic() - self._answered_at > _MAX_IDLE_S:  # a long pause
            self._socket.close()
            self._socket = socket.create_connection(self._address, timeout=60)
        responses = Responses()
        self._socket.sendall(post(_BODY))
        while not responses.found:
            data = self._socket.recv(1 << 18)
            if not data:
                raise Malformed("the control connection was closed")
            responses.feed(data)
        if responses.found[0].status != 200 or not responses.is_between:
            raise Malformed(f"the control stream: {responses.found[0]}")
        self._answered_at = time.monotonic()
        return answer_of(responses.found[0])

    def _repeat(self) -> None:
        try:
            while not self._is_over:
                if not self._may_go_on.is_set():
                    self._is_idle.set()
                    self._may_go_on.wait(0.5)
                    continue
                self._is_idle.clear()
                self._check(self._ask())
        except Exception as error:  # a thread's own end would go unnoticed
            self.failure = f"{type(error).__name__}: {error}"
        self._is_idle.set()

    def _check(self, answer: Answer) -> None:
        if answer != self.solo:
            differing = [name for name in answer if answer[name] != self.solo[name]]
            raise AssertionError(f"answer {self.num_answers} has other {differing}")
        self.num_answers += 1

    def check(self) -> None:
        assert not self.failure, self.failure

    def pause(self) -> None:
        """Behind the answer that it is at."""
        self._may_go_on.clear()
        self._is_idle.clear()
        if self._thread.is_alive():
            assert self._is_idle.wait(60), "the control stream has not ended"
        self.check()

    def resume(self) -> None:
        self._may_go_on.set()

    def stop(self) -> None:
        self._is_over = True
        self._may_go_on.set()
        self._thread.join(60)
        self._socket.close()
