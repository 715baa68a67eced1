"""How much of a request is taken in, how long one may take to arrive, how many connections there are."""

from __future__ import annotations

import resource
from dataclasses import dataclass

_MIB = 1 << 20
_WANTED_CONNECTIONS = 8192


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Fixed numbers: whoever needs others has a proxy in front that has its own."""

    max_line_bytes: int = 8 << 10  # of the request line
    max_header_bytes: int = 16 << 10  # of all headers together
    max_headers: int = 100
    # 1,024 prompts of 500 token ids each, or one text of a thousand pages:
    max_body_bytes: int = 4 * _MIB
    # A chunk costs us about a microsecond: 1,024 of any size, and one for each so many bytes.
    max_tiny_chunks: int = 1024
    min_chunk_bytes: int = 64
    max_chunk_extra_bytes: int = 16 << 10  # extensions and trailers of a body, together
    max_waiting_requests: int = 16  # behind the one that is being answered, on one connection
    max_waiting_bytes: int = 1 * _MIB  # of them
    # Of requests of all connections: those that arrive, and those that are answered. A body that is read
    # takes several times its bytes for a moment; bodies of over 64 KiB are read one at a time.
    max_request_bytes: int = 256 * _MIB
    receive_s: float = 10.0  # from a request's first byte to its last
    silent_s: float = 10.0  # from the connection to its first byte
    linger_s: float = 0.5  # for a client that still sends to read why it was refused
    max_linger_bytes: int = 4 * _MIB  # that are passed over meanwhile: a whole body
    evictable_s: float = (
        1.0  # a request that takes longer to arrive gives way when all places are taken
    )
    max_connections: int = _WANTED_CONNECTIONS
    max_refusing: int = (
        64  # connections over the limit that are told so at one time; others are cut
    )


def connection_limit() -> int:
    """Half of this process's descriptors; the other half is for everything else and for a burst."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _WANTED_CONNECTIONS
    return max(8, min(_WANTED_CONNECTIONS, soft // 2))


def raise_descriptor_limit() -> None:
    """As far as the connections need it and the system lets us; a usual soft limit of 1,024 is for
    programs that call select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * _WANTED_CONNECTIONS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
