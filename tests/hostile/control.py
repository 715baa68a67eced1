"""The control stream: one request that is asked again and again beside everything else, on a connection that
stays open, and must always say what it said alone. After a failure it goes on with a new connection: each
failure is reported once, to whoever checks next, and the answers before and behind it must be the same.
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
_AGAIN_AFTER_S = 0.1  # behind a failure
_WELL_WITHIN_S = 10.0  # then it is time for the next failure
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

    def __init__(self, address: Address, patience_s: float = _WELL_WITHIN_S) -> None:
        """`patience_s`: for a new stream, behind a failure."""
        self._address = address
        self._socket = socket.create_connection(address, timeout=60)
        self._answered_at = time.monotonic()
        self._may_go_on = threading.Event()
        self._is_idle = threading.Event()
        self._is_over = threading.Event()
        self._is_well = threading.Event()  # its last answer was right
        self._failure = ""  # the first one that nobody was told of
        self._last_failure = ""
        self._patience_s = self._may_wait_s = patience_s
        self.num_answers = 0
        self.solo = self._ask()
        self._is_well.set()
        self._may_go_on.set()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._thread.start()

    def _ask(self) -> Answer:
        if time.monotonic() - self._answered_at > _MAX_IDLE_S:  # a long pause
            self._connect()
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

    def _connect(self) -> None:
        self._socket.close()
        self._socket = socket.create_connection(self._address, timeout=60)

    def _repeat(self) -> None:
        while not self._is_over.is_set():
            if not self._may_go_on.is_set():
                self._is_idle.set()
                self._may_go_on.wait(0.5)
                continue
            self._is_idle.clear()
            try:
                if not self._is_well.is_set():
                    self._connect()
                self._check(self._ask())
                self._is_well.set()
            except Exception as error:  # a thread's own end would go unnoticed
                self._is_well.clear()
                self._last_failure = f"{type(error).__name__}: {error}"
                self._failure = self._failure or self._last_failure
                self._is_over.wait(_AGAIN_AFTER_S)
        self._is_idle.set()

    def _check(self, answer: Answer) -> None:
        if answer != self.solo:
            differing = [name for name in answer if answer[name] != self.solo[name]]
            raise AssertionError(f"answer {self.num_answers} has other {differing}")
        self.num_answers += 1

    def check(self) -> None:
        """Raises what has failed since the last time, once there is a new stream for whoever comes next."""
        if self._failure or not self._is_well.is_set():
            is_well = self._is_well.wait(self._may_wait_s)
            self._may_wait_s = self._patience_s if is_well else 0.0  # one waits in vain, not all
            failure, self._failure = self._failure, ""
            raise AssertionError(failure or f"it has not come back behind {self._last_failure}")

    def pause(self) -> None:
        """Behind the answer that it is at."""
        self._is_idle.clear()
        self._may_go_on.clear()
        is_idle = self._is_idle.wait(60)
        if self._failure or not is_idle:
            self.resume()  # also for whoever comes next
            assert is_idle, "the control stream has not ended"
            self.check()

    def resume(self) -> None:
        self._may_go_on.set()

    def stop(self) -> None:
        self._is_over.set()
        self._may_go_on.set()
        self._thread.join(60)
        self._socket.close()
