"""A choice of a plain reply: its pieces kept small while they come, then written as JSON in parts."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from server.api.reply.choice_stream import Delta
from server.api.reply.json_parts import item_parts
from server.api.reply.logprobs import Logprobs
from server.api.reply.plain_prompt import PlainPrompt
from server.sequence import FinishReason

_PART_ENTRIES = 64  # with 20 alternatives each a part takes below a millisecond

_encode = msgspec.json.Encoder().encode


class PlainChoice:
    """Joins what a stream would send. Logprobs are kept as the JSON that they become: as Python's
    objects they would take three times the memory."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._logprobs: dict[str, bytearray] = {}  # by the name of the list: its items, with commas
        self._has_logprobs = False
        self._token_ids: list[int] = []
        self._finish_reason: FinishReason | None = None
        self._stop_reason: str | int | None = None

    def add(self, delta: Delta) -> None:
        self._texts.append(delta.text)
        self._finish_reason, self._stop_reason = delta.finish_reason, delta.stop_reason
        if delta.token_ids:
            self._token_ids += delta.token_ids
        if delta.logprobs is not None:
            self._add_logprobs(delta.logprobs)

    def _add_logprobs(self, logprobs: Logprobs) -> None:
        self._has_logprobs = True
        for name, entries in logprobs.items():
            items = _encode(entries)[1:-1]
            kept = self._logprobs.setdefault(name, bytearray())
            kept += b"," + items if kept and items else items

    def parts(self, index: int, prompt: PlainPrompt) -> Iterator[bytes]:
        """The choice as a JSON object."""
        text = prompt.text + "".join(self._texts)
        yield b'{"index":%d,"text":%s,"logprobs":' % (index, _encode(text))
        yield from self._logprobs_parts(prompt)
        finish, stop = _encode(self._finish_reason), _encode(self._stop_reason)
        yield b',"finish_reason":%s,"stop_reason":%s' % (finish, stop)
        if prompt.has_token_ids:
            yield b',"token_ids":' + _encode(self._token_ids)
            yield b',"prompt_token_ids":' + _encode(prompt.view.token_ids)
        if prompt.prompt_logprobs is not None:
            yield b',"prompt_logprobs":['
            yield from item_parts(prompt.maps(), _PART_ENTRIES)
            yield b"]"
        yield b"}"

    def _logprobs_parts(self, prompt: PlainPrompt) -> Iterator[bytes]:
        if not self._has_logprobs:
            yield b"null"
            return
        separator = b"{"
        for name, echoed in prompt.echoed().items():
            yield b'%s"%s":[' % (separator, name.encode())
            yield from item_parts(echoed(), _PART_ENTRIES, bytes(self._logprobs[name]))
            yield b"]"
            separator = b","
        yield b"}"
