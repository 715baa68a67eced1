"""Requests as bytes, and the keys that they carry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEY, METRICS_KEY = b"Hostile-infer-key-0123456789", b"Hostile-metrics-key-0123456789"
COMPLETIONS = b"/v1/completions"
# Harmless and quick, for cases whose point is elsewhere:
BODY: dict[str, Any] = {"prompt": [72, 105], "max_tokens": 2}
CANARY = "canaryprompt"  # in prompts of ours: no log line may have it


def write_key_file(path: Path, more: Mapping[bytes, str]) -> None:
    """`more`: keys beside ours, each with its limits."""
    path.touch(0o600)
    lines = [
        f"{name} {hashlib.sha256(key).hexdigest()} {scope} {limits}\n"
        for name, key, scope, limits in (
            ("infer", KEY, "infer", ""),
            ("metrics", METRICS_KEY, "metrics", ""),
            *((f"more-{i}", key, "infer", words) for i, (key, words) in enumerate(more.items())),
        )
    ]
    path.write_text("".join(lines))


def head(
    *lines: bytes,
    method: bytes = b"POST",
    target: bytes = COMPLETIONS,
    key: bytes | None = KEY,
    host: bytes | None = b"localhost",
) -> bytes:
    """Up to and with the blank line. `lines`: further header lines."""
    first = [method + b" " + target + b" HTTP/1.1"]
    if host is not None:
        first.append(b"Host: " + host)
    if key is not None:
        first.append(b"Authorization: Bearer " + key)
    return b"\r\n".join([*first, *lines, b"", b""])


def post(
    body: bytes | dict[str, Any] | None = None,
    *lines: bytes,
    target: bytes = COMPLETIONS,
    content_type: bytes | None = b"application/json",
    **about: Any,
) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(BODY if body is None else body).encode()
    kind = [] if content_type is None else [b"Content-Type: " + content_type]
    length = b"Content-Length: %d" % len(data)
    return head(*lines, *kind, length, target=target, **about) + data


def chunked(*chunks: bytes, lines: tuple[bytes, ...] = ()) -> bytes:
    """`chunks` as they stand on the wire, without the last one."""
    kind = b"Content-Type: application/json"
    return head(*lines, kind, b"Transfer-Encoding: chunked") + b"".join([*chunks, b"0\r\n\r\n"])


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


def get(target: bytes, *lines: bytes, **about: Any) -> bytes:
    return head(*lines, method=b"GET", target=target, **about)
