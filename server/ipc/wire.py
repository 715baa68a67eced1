"""Length-prefixed frames as bytes: u32 big-endian length, then that many bytes of msgpack.

Sans-io: both ends feed it what a socket gave. Knows no schema.
"""

from __future__ import annotations

from server.errors import ContinuoError

HEADER_BYTES = 4
# 1,024 sequences with full logit_bias, or the prompt logprobs of 64 full contexts of 1,024 tokens
# with 20 alternatives each, stay below a third of it.
MAX_FRAME_BYTES = 64 << 20


class FrameError(ContinuoError):
    """The peer does not speak this protocol: its connection ends, nothing else."""


def with_header(payload: bytes) -> bytes:
    """A frame ready for the socket. Raises FrameError above MAX_FRAME_BYTES."""
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameError(f"A frame of {len(payload)} bytes exceeds {MAX_FRAME_BYTES}.")
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


class FrameReader:
    """Cuts a byte stream into payloads; keeps at most one incomplete frame."""

    max_bytes = HEADER_BYTES + MAX_FRAME_BYTES  # that are kept

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def num_bytes(self) -> int:
        """That are kept."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads completed by `data`. Raises FrameError on a length above MAX_FRAME_BYTES."""
        buffer = self._buffer
        buffer += data
        payloads: list[bytes] = []
        start = 0
        while len(buffer) - start >= HEADER_BYTES:
            length = int.from_bytes(buffer[start : start + HEADER_BYTES], "big")
            if length > MAX_FRAME_BYTES:
                raise FrameError(f"The peer announced a frame of {length} bytes.")
            end = start + HEADER_BYTES + length
            if len(buffer) < end:
                break
            payloads.append(bytes(buffer[start + HEADER_BYTES : end]))
            start = end
        del buffer[:start]
        return payloads
