"""`continuo health`, for a container's own check: does this user's server on this machine answer that it is?

A server notes in its private directory where it listens and whether that is TLS, so the check needs no flags.
Knows HTTP as far as a status line goes: HTTP/1.0 without a Host, which every allowlist lets pass.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import tempfile
from pathlib import Path

RUNTIME_DIR_PREFIX = "continuo-"
_FILE = "address.json"
_TIMEOUT_S = 2.0
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def note_address(runtime_dir: Path, address: str, port: int, *, has_tls: bool) -> None:
    """`address`: the numeric one that is listened on."""
    noted = {"address": _ANY.get(address, address), "port": port, "has_tls": has_tls}
    (runtime_dir / _FILE).write_text(json.dumps(noted))


def check_health() -> int:
    """0 where one does. What a server that was killed has left behind does not answer."""
    places = Path(tempfile.gettempdir()).glob(f"{RUNTIME_DIR_PREFIX}*/{_FILE}")
    is_healthy = any(_answers(place) for place in places if _is_ours(place))
    print("healthy" if is_healthy else "no server of this user answers that it is healthy")
    return 0 if is_healthy else 1


def _is_ours(place: Path) -> bool:
    return place.parent.lstat().st_uid == os.getuid()


def _answers(place: Path) -> bool:
    try:
        noted = json.loads(place.read_text())
        return _status(noted["address"], noted["port"], noted["has_tls"]) == b"200"
    except (OSError, ValueError, KeyError, TypeError):  # ssl.SSLError is an OSError
        return False


def _status(address: str, port: int, has_tls: bool) -> bytes:
    with socket.create_connection((address, port), timeout=_TIMEOUT_S) as plain:
        if not has_tls:
            return _ask(plain)
        with _trusting().wrap_socket(plain) as encrypted:
            return _ask(encrypted)


def _ask(connection: socket.socket) -> bytes:
    connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
    with connection.makefile("rb") as reply:
        return reply.readline(200).partition(b" ")[2][:3]


def _trusting() -> ssl.SSLContext:
    """Nothing is told and nothing secret is asked, and the certificate may be of another name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
