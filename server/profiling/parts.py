"""The named parts of a step and of a token's way out: what spans are of. Standard library only."""

from __future__ import annotations

from enum import IntEnum


class Part(IntEnum):
    """Its value stands in a span's record; `label` is what people read."""

    label: str

    def __new__(cls, value: int, label: str) -> Part:
        part = int.__new__(cls, value)
        part._value_ = value
        part.label = label
        return part

    # The engine. A part's time is its own: without that of the parts inside it.
    TURN = 1, "loop, the rest"
    IDLE = 2, "idle"
    POLL = 3, "socket poll"
    RECEIVE = 4, "frames read"
    SUBMIT = 5, "requests taken in"
    ENGINE = 6, "engine, the rest"
    MASKS = 7, "masks"
    SCHEDULE = 8, "schedule"
    RUNNER = 9, "runner, the rest"
    INPUTS = 10, "inputs"
    MODEL = 11, "model: the rest"
    EMBED = 12, "model: embedding"
    NORM = 13, "model: norms"
    QKV = 14, "model: linear qkv"
    PROJ = 15, "model: linear proj"
    FC = 16, "model: linear fc"
    OUT = 17, "model: linear out"
    LINEAR = 18, "model: other linears"
    KV_WRITE = 19, "model: kv write"
    ATTENTION = 20, "model: attention"
    PROMPT_ATTENTION = 21, "model: attention of prompts"
    HEAD = 22, "head"
    SAMPLING = 23, "sampling"
    LOGPROBS = 24, "logprobs"
    GPU_WAIT = 25, "waiting for the GPU"
    COLLECT = 26, "collect, stop rules"
    FRAME = 27, "frame, put together"
    ENCODE = 28, "frame encoding"
    SEND = 29, "socket write"
    DRAFTS = 30, "drafts"

    # The api
    DECODE = 40, "frame decoding"
    ROUTE = 41, "routing to requests"
    READERS = 42, "turn, the rest"
    STREAM = 43, "streams, the rest"
    TEXT = 44, "text (detokenise, stops)"
    CHOICES = 45, "choices and timers"
    SSE = 46, "SSE encoding"
    WRITE = 47, "socket write"
    HTTP = 48, "HTTP bytes in"


LABELS = {int(part): part.label for part in Part}
API_PARTS = tuple(part for part in Part if part >= Part.DECODE)


def short_label(part: int) -> str:
    """For a bar of a chart, in which what is inside a part is drawn, too."""
    return LABELS[part].removesuffix(", the rest").removesuffix(": the rest")
