"""One streamed completion as it is read: events out of the body, times and counts into a Record."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import msgspec

from server.bench.connection import HttpClient, TransferError
from server.bench.record import INTERRUPTED, Record
from server.bench.sse import EventParser, EventTooLongError

_MAX_MESSAGE = 200  # characters of what a server says about a failure
_MAX_ERROR_BODY_BYTES = 1 << 16
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)  # no JSON, another schema, no UTF-8


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None  # what reasoning models think: tokens all the same


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


class StreamReader:
    """Fills a Record from a response; `finish` says what was wrong with it."""

    def __init__(self, record: Record, *, needs_done: bool = True) -> None:
        self._record = record
        self._needs_done = needs_done
        self._status = 0
        self._events = EventParser()
        self._error_body = b""
        self._failure = ""
        self._is_done = False
        self._has_finish_reason = False

    def begin(self, status: int) -> None:
        self._status = status

    def receive(self, body: bytes, at_s: float) -> None:
        self._record.end_s = at_s
        if self._status != 200:
            self._error_body += body[: _MAX_ERROR_BODY_BYTES - len(self._error_body)]
            return
        try:
            events = self._events.feed(body)
        except EventTooLongError as error:
            raise TransferError("event too long") from error
        for event in events:
            if event == b"[DONE]":
                self._is_done = True
            else:
                self._take(event, at_s)

    def _take(self, event: bytes, at_s: float) -> None:
        try:
            chunk = _DECODER.decode(event)
        except _UNREADABLE as error:
            raise TransferError("malformed event") from error
        if self._is_done:
            self._failure = "event after [DONE]"
        if chunk.error is not None:
            self._failure = "error event"
            self._record.message = error_message(event)
        for choice in chunk.choices or ():
            if _has_text(choice):
                self._record.text_s.append(at_s)
            if choice.finish_reason is not None:
                self._has_finish_reason = True
        if chunk.usage is not None:
            self._take_usage(chunk.usage)

    def _take_usage(self, usage: _Usage) -> None:
        self._record.prompt_tokens = usage.prompt_tokens
        self._record.completion_tokens = usage.completion_tokens
        if usage.prompt_tokens_details is not None:
            self._record.cached_tokens = usage.prompt_tokens_details.cached_tokens

    def finish(self) -> str:
        """The response was whole as HTTP. What is wrong with it all the same, or nothing."""
        if self._status != 200:
            self._record.message = error_message(self._error_body)
            return f"HTTP {self._status}"
        is_ended = self._has_finish_reason and (self._is_done or not self._needs_done)
        is_whole = is_ended and not self._events.is_inside_event
        return self._failure or ("" if is_whole else "stream cut short")


_DECODER = msgspec.json.Decoder(_Chunk)


def _has_text(choice: _Choice) -> bool:
    delta = choice.delta
    if delta is not None:
        return bool(delta.content or delta.reasoning_content)
    return bool(choice.text)


def error_message(body: bytes) -> str:
    """What an error body says, on one printable line: OpenAI's form, its neighbours', or nothing."""
    try:
        document = msgspec.json.decode(body)
    except _UNREADABLE:
        return ""
    for key in ("error", "message", "detail"):
        if isinstance(document, dict) and key in document:
            document = document[key]
    text = document if isinstance(document, str) else ""
    return "".join(char if char.isprintable() else " " for char in text)[:_MAX_MESSAGE]


async def complete(
    client: HttpClient, request: bytes, record: Record, timeout_s: float, *, needs_done: bool = True
) -> None:
    """Sends and reads one streamed request. A failure is noted, not raised; "interrupted" if cancelled."""
    reader = StreamReader(record, needs_done=needs_done)
    record.failure = INTERRUPTED
    record.sent_s = record.end_s = perf_counter()
    try:
        await client.send(request, reader, timeout_s)
    except TransferError as error:
        record.failure = str(error)
    else:
        record.failure = reader.finish()
