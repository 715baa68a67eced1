"""The bytes of a stream: `data: {json}` and a blank line, each event on one line.

An event of a stream differs from the next in little, so the rest is made once per choice.
"""

from __future__ import annotations

import msgspec

from server.api.reply.choice_stream import Delta
from server.api.reply.replies import Head, Usage

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

_encode = msgspec.json.Encoder().encode
# Legal inside a JSON string, but line ends for clients that split lines as Python's str does.
_LINE_ENDS = tuple((char.encode(), b"\\u%04x" % ord(char)) for char in "\u0085\u2028\u2029")
_NO_FINISH = b',"finish_reason":null,"stop_reason":null}]'


class EventWriter:
    """The events of one request's stream. `shows_usage`: every event has the key `usage`."""

    def __init__(self, head: Head, num_choices: int, *, shows_usage: bool) -> None:
        self._before_choices = b'data: {"id":%s,"object":"text_completion",' % _encode(head.id)
        self._before_choices += b'"created":%d,"model":%s,' % (head.created, _encode(head.model))
        self._prefixes = [
            self._before_choices + b'"choices":[{"index":%d,"text":' % index
            for index in range(num_choices)
        ]
        self._end = b',"system_fingerprint":%s,"seed":%d}\n\n' % (
            _encode(head.system_fingerprint),
            head.seed,
        )
        self._no_usage_end = (b',"usage":null' if shows_usage else b"") + self._end
        self._plain_end = b',"logprobs":null' + _NO_FINISH + self._no_usage_end

    def event(self, index: int, delta: Delta, usage: Usage | None) -> bytes:
        """One chunk; `usage` where every chunk reports it."""
        text = _encode(delta.text)
        has_extras = delta.logprobs is not None or delta.token_ids is not None
        if delta.finish_reason is None and usage is None and not has_extras:
            event = self._prefixes[index] + text + self._plain_end
        else:
            event = self._prefixes[index] + text + self._rare_end(delta, usage)
        return event if event.isascii() else _one_line(event)

    def usage_event(self, usage: Usage) -> bytes:
        """The chunk without a choice that ends a stream with include_usage."""
        return b"%s%s%s%s" % (
            self._before_choices,
            b'"choices":[],"usage":',
            _encode(usage),
            self._end,
        )

    def _rare_end(self, delta: Delta, usage: Usage | None) -> bytes:
        finish = b',"finish_reason":%s,"stop_reason":%s%s}]' % (
            _encode(delta.finish_reason),
            _encode(delta.stop_reason),
            _token_ids(delta),
        )
        end = self._no_usage_end if usage is None else b',"usage":' + _encode(usage) + self._end
        return b',"logprobs":' + _encode(delta.logprobs) + finish + end


def _token_ids(delta: Delta) -> bytes:
    """With return_token_ids; those of the prompt on a choice's first event."""
    if delta.token_ids is None:
        return b""
    ids = b',"token_ids":' + _encode(delta.token_ids)
    if delta.prompt_token_ids is None:
        return ids
    return ids + b',"prompt_token_ids":' + _encode(delta.prompt_token_ids)


def _one_line(event: bytes) -> bytes:
    for char, escaped in _LINE_ENDS:
        event = event.replace(char, escaped)
    return event


def error_event(error: bytes) -> bytes:
    """What a stream ends with, instead of [DONE], when it breaks."""
    return b"data: " + error + b"\n\n"
