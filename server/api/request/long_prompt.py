"""A body's long prompt, read apart from the rest. Knows no other field.

The strict parser of requests tries one form of a prompt after the other and takes 40 ms for a megabyte
of ids, all the while keeping every other thread of the process from running; this takes 10.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from server.api.request.expected import EXPECTED
from server.api.request.long_work import pause
from server.api.request.protocol import Prompt
from server.errors import RequestError

LONG_PROMPT_BYTES = 1 << 14
MAX_PROMPTS = 1024  # as many as one request can have sequences
_HEAD_BYTES = 256

_TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class _PromptOnly(msgspec.Struct):
    prompt: msgspec.Raw = msgspec.Raw()


_read_raw = msgspec.json.Decoder(_PromptOnly).decode
_read_text = msgspec.json.Decoder(str).decode
_read_lists = (
    msgspec.json.Decoder(list[_TokenId]).decode,
    msgspec.json.Decoder(list[str]).decode,
    msgspec.json.Decoder(list[list[_TokenId]]).decode,
)


def split_long_prompt(body: bytes) -> tuple[bytes, Prompt] | None:
    """The body with a short string in the prompt's place, and the prompt.

    None where the body has no long prompt, or a fault, or anything else that begins as the prompt does:
    then it is to be parsed as a whole. Raises RequestError where the prompt has none of its forms, or is far
    too many: that parser takes half a second to say so.
    """
    if len(body) <= LONG_PROMPT_BYTES:
        return None
    try:
        raw = bytes(_read_raw(body).prompt)
        if len(raw) <= LONG_PROMPT_BYTES:
            return None
        pause()
        prompt = _read_prompt(raw)
        pause()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    head = raw[:_HEAD_BYTES]
    start = body.find(head)
    end = start + len(raw)
    rest = body[:start] + b'""' + body[end:]
    if body[start:end] != raw or head in rest:
        return None
    return rest, prompt


def _read_prompt(raw: bytes) -> Prompt:
    if raw.startswith(b'"'):
        return _read_text(raw)
    if (
        raw.startswith(b"[")
        and raw[1:].lstrip().startswith(b"[")
        and raw.count(b"[") > 1 + MAX_PROMPTS
    ):
        raise RequestError(f"prompt holds more than {MAX_PROMPTS} prompts.", param="prompt")
    for read in _read_lists:
        try:
            return read(raw)
        except msgspec.ValidationError:  # another form; it shows early
            continue
    raise RequestError(f"prompt must be {EXPECTED['prompt']}.", param="prompt")
