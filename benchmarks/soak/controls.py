"""A few fixed requests that must always get the same bytes: under load, alone, and behind every death."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

from benchmarks.soak.bodies import Body
from benchmarks.soak.wire import Reply, ask, request
from benchmarks.soak.world import World, key

_BODIES: dict[str, Body] = {
    "greedy": {"prompt": "The old king", "max_tokens": 60, "temperature": 0, "seed": 1},
    "sampled, logprobs": {"prompt": "Once", "max_tokens": 60, "seed": 7, "logprobs": 3},
    "two choices": {"prompt": ["The sea", "A fox"], "n": 2, "max_tokens": 40, "seed": 3},
    "structured": {"prompt": "a", "max_tokens": 40, "seed": 5,
                   "structured_outputs": {"regex": "[a-z]{2,7}( [a-z]{2,7}){4}"}},
    "echo": {"prompt": "A bird sang " * 20, "max_tokens": 8, "echo": True, "logprobs": 1, "seed": 1},
    "streamed": {"prompt": "There was", "max_tokens": 120, "seed": 9, "logprobs": 1, "stream": True,
                 "stream_options": {"include_usage": True}},
}  # fmt: skip
_RETRY_S = 0.5
_MOST_REFUSALS = 300
_PATIENCE_S = 180.0  # it hangs: behind a death and a queue it is seconds


class Controls:
    """What was said at first, alone, is what is expected."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._expected: dict[str, Any] = {}
        self.num_equal = 0

    async def ask_all(self) -> None:
        """One after the other."""
        for name in _BODIES:
            await self._check(name)

    async def ask_together(self) -> None:
        await asyncio.gather(*map(self._check, _BODIES))

    async def repeat(self) -> None:
        """Until the load pauses."""
        for name in itertools.cycle(_BODIES):
            if self._world.paused.is_set():
                return
            await self._check(name)

    async def _check(self, name: str) -> None:
        reply = await self._ask(name)
        if reply is None:
            return
        said = _said(reply)
        expected = self._expected.setdefault(name, said)
        if said == expected:
            self.num_equal += 1
        else:
            where = _first_difference(repr(expected), repr(said))
            self._world.fault(f"the control request {name!r} got other bytes: {where}")

    async def _ask(self, name: str) -> Reply | None:
        """None: it has no answer, which is told."""
        sent = request(key("control"), body=_BODIES[name])
        for _ in range(_MOST_REFUSALS):
            try:
                reply = await asyncio.wait_for(ask(self._world.port, sent), _PATIENCE_S)
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
                self._world.fault(f"the control request {name!r}: {type(error).__name__}")
                return None
            self._world.note(reply.status, reply.body)
            if reply.status not in (429, 503):
                return reply
            await asyncio.sleep(_RETRY_S)
        self._world.fault(f"the control request {name!r} was refused {_MOST_REFUSALS} times")
        return None


def _first_difference(expected: str, found: str) -> str:
    pairs = enumerate(zip(expected, found, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(found)))
    near = slice(max(0, at - 30), at + 60)
    return f"...{found[near]}... instead of ...{expected[near]}..."


def _said(reply: Reply) -> Any:
    """What two runs of a request have in common: all but its id, its time and what the cache had; of a
    stream its deltas together, since how many tokens an event has depends on the load."""
    if not reply.headers.get("content-type", "").startswith("text/event-stream"):
        return _without_its_own(json.loads(reply.body))
    *events, end, rest = reply.body.split(b"\n\n")
    if rest or end != b"data: [DONE]":
        return reply.body
    choices: dict[int, dict[str, Any]] = {}
    last: dict[str, Any] = {}
    for event in events:
        if event.startswith(b"data: "):  # else a ping
            last = json.loads(event.removeprefix(b"data: "))
            for choice in last.get("choices", ()):
                _add(choices.setdefault(choice["index"], {}), choice)
    return _without_its_own({**last, "choices": choices})


def _add(whole: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        known = whole.get(name)
        if isinstance(value, dict):
            _add(whole.setdefault(name, {}), value)
        elif name == "text" or isinstance(value, list):
            whole[name] = value if known is None else known + value
        elif value is not None or known is None:
            whole[name] = value


def _without_its_own(document: dict[str, Any]) -> dict[str, Any]:
    document.get("usage", {}).pop("prompt_tokens_details", None)
    return {name: value for name, value in document.items() if name not in ("id", "created")}
