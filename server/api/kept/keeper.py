"""Begins runs that outlive their connections, and answers those who ask for one again."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext

from starlette.responses import Response

from server.api.kept.idempotency import Entry
from server.api.kept.kept_reply import KeptReply
from server.api.kept.kept_response import KeptResponse, RepeatResponse
from server.api.kept.kept_runs import Kept, KeptRuns
from server.api.kept.reply_response import ReplyResponse
from server.api.kept.resumable_stream import ResumableStream
from server.api.reply.run import Run
from server.api.request.planning import Plan
from server.errors import RequestError

RESUMABLE = "X-Stream-Resumable"


class Keeper:
    """One request's: whose it is, and the entry of its Idempotency-Key if it has one."""

    def __init__(self, kept: KeptRuns, key_name: str, entry: Entry | None) -> None:
        self._kept = kept
        self.key_name = key_name
        self._entry = entry

    @property
    def is_repeatable(self) -> bool:
        return self._entry is not None

    def response(
        self, start: Callable[[], Awaitable[Run]], plan: Plan, *, has_ids: bool
    ) -> Response:
        """`start` submits; it is called when the response is."""
        if plan.request.stream:
            return KeptResponse(
                lambda: self._stream(start, has_ids=bool(plan.options.resumable)),
                self._kept,
                has_ids=has_ids,
                is_repeatable=self.is_repeatable,
            )
        entry = self._entry
        assert entry is not None, "nothing else of a plain request is kept"
        return ReplyResponse(lambda: self._reply(start, entry), is_replayed=False)

    async def _reply(self, start: Callable[[], Awaitable[Run]], entry: Entry) -> KeptReply:
        with entry.failing():
            reply = KeptReply(await start(), self._kept)
            self._kept.add(reply, self.key_name, on_gone=entry.forget)
            entry.start(reply)
        return reply

    async def _stream(
        self, start: Callable[[], Awaitable[Run]], *, has_ids: bool
    ) -> ResumableStream:
        entry = self._entry
        with self._failing():
            stream_id = self._kept.new_stream_id()
            stream = ResumableStream(
                await start(),
                stream_id,
                self._kept,
                time.monotonic,
                has_ids=has_ids,
                on_end=self._on_end,
            )
            on_gone = _nothing if entry is None else entry.forget
            self._kept.add(stream, self.key_name, stream_id=stream_id, on_gone=on_gone)
            if entry is not None:
                entry.start(stream)
        return stream

    def _failing(self) -> AbstractContextManager[None]:
        """What is raised in there before there is a run is also raised by those who wait for it."""
        return nullcontext() if self._entry is None else self._entry.failing()

    def _on_end(self, error: Exception | None) -> None:
        if self._entry is not None and error is not None:
            self._entry.forget()  # a retry may succeed


def repeat(kept: KeptRuns, begun: Kept, *, has_ids: bool) -> Response:
    """To a request with the same key and body as the one that has begun this."""
    if isinstance(begun, ResumableStream):
        return RepeatResponse(begun, kept, has_ids=has_ids or begun.has_ids)
    assert isinstance(begun, KeptReply)
    if has_ids:
        raise needs_stream()

    async def begin() -> KeptReply:
        return begun

    return ReplyResponse(begin, is_replayed=True)


def needs_stream() -> RequestError:
    return RequestError(f"{RESUMABLE} needs stream.", param=RESUMABLE)


def _nothing() -> None:
    """Nobody can repeat it."""
