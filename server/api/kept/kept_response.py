"""Responses that read a stream which outlives them: to the request that began it, to its repeats, and to
whoever resumes it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.http.http_protocol import body_writer
from server.api.http.request_log import CompletionRecord, record_of
from server.api.kept.kept_runs import KeptRuns
from server.api.kept.reply_response import REPLAYED
from server.api.kept.resumable_stream import ResumableStream
from server.api.kept.stream_reading import StreamReading
from server.api.reply.stream_errors import error_code
from server.errors import RequestError

_CUT = {"replaced": "stream_taken_over", "dropped": "stream_dropped"}  # for the log line


class KeptResponse(Response):
    """To the request that begins a stream. Submits only when it is called: so a run always has an owner."""

    def __init__(
        self,
        begin: Callable[[], Awaitable[ResumableStream]],
        kept: KeptRuns,
        *,
        has_ids: bool,
        is_repeatable: bool,
    ) -> None:
        """`is_repeatable`: there is another way to the stream than an event's id."""
        super().__init__()
        self._begin = begin
        self._kept = kept
        self._has_ids = has_ids
        self._is_repeatable = is_repeatable

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = await self._begin()
        run = stream.run  # which the stream lets go of when it is complete
        reading = StreamReading(stream, body_writer(scope), 0, has_ids=self._has_ids)
        record = record_of(scope)
        try:
            with reading.watched(receive):
                await reading.due()
                _raise_stillborn(stream, self._kept)
                await reading.send(send)
        finally:
            if not (reading.has_begun or self._is_repeatable):
                self._kept.remove(stream)  # nobody knows an id of it
            if run is not None:
                run.note(record)
            _note(record, reading, stream)


class RepeatResponse(Response):
    """To a repeat of the request that began a stream: all of it, from the first event on."""

    def __init__(self, stream: ResumableStream, kept: KeptRuns, *, has_ids: bool) -> None:
        super().__init__()
        self._stream = stream
        self._kept = kept
        self._has_ids = has_ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream, record = self._stream, record_of(scope)
        record.is_replayed = True
        reading = _attached(stream, scope, 0, self._has_ids, _result_gone)
        try:
            with reading.watched(receive):
                await reading.due()
                _raise_stillborn(stream, self._kept)
                await reading.send(send, [REPLAYED])
        finally:
            record.response_id = stream.response_id
            _note(record, reading, stream)


class ResumeResponse(Response):
    """To whoever has the events before number `start` already."""

    def __init__(self, stream: ResumableStream, start: int) -> None:
        super().__init__()
        self._stream = stream
        self._start = start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream, record = self._stream, record_of(scope)
        reading = _attached(stream, scope, self._start, True, stream_not_found)
        try:
            with reading.watched(receive):
                await reading.send(send)
        finally:
            record.response_id = stream.response_id
            record.num_events = reading.num_events
            _note(record, reading, stream)


def stream_not_found() -> RequestError:
    """The same whether it is unknown, foreign, expired or cut short: nobody learns which."""
    return RequestError(
        "There is no such stream, or what comes next of it is no longer kept.",
        code="stream_not_found",
        status=404,
    )


def _result_gone() -> RequestError:
    return RequestError(
        "The beginning of this request's stream is no longer kept.",
        param="Idempotency-Key",
        code="idempotency_result_gone",
        status=409,
    )


def _attached(
    stream: ResumableStream,
    scope: Scope,
    start: int,
    has_ids: bool,
    gone: Callable[[], RequestError],
) -> StreamReading:
    try:
        return StreamReading(stream, body_writer(scope), start, has_ids=has_ids)
    except LookupError:
        raise gone() from None


def _raise_stillborn(stream: ResumableStream, kept: KeptRuns) -> None:
    """What breaks before there is anything to send has a status, and nothing of it is kept."""
    if stream.is_stillborn:
        kept.remove(stream)
        assert stream.error is not None
        raise stream.error


def _note(record: CompletionRecord, reading: StreamReading, stream: ResumableStream) -> None:
    record.is_client_gone = reading.end == "gone"
    if reading.has_begun:
        record.status = 200
        record.code = _CUT.get(reading.end or "")
        if reading.end == "complete" and stream.error is not None:
            record.code = error_code(stream.error)
