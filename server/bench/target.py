"""Where the server is: a URL taken apart, and the bytes of a request to it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from server.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Target:
    host: str
    port: int
    tls: ssl.SSLContext | None
    path: str  # before the route: "" or "/some/prefix", without a last slash and without /v1
    authority: str  # as in the Host header
    api_key: str = ""

    def get(self, route: str) -> bytes:
        return f"GET {self.path}{route} HTTP/1.1\r\n{self._headers()}\r\n".encode()

    def post(self, route: str, body: bytes) -> bytes:
        head = (
            f"POST {self.path}{route} HTTP/1.1\r\n{self._headers()}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def _headers(self) -> str:
        key = f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        return f"Host: {self.authority}\r\nUser-Agent: continuo-bench\r\nAccept: */*\r\n{key}"


def parse_url(url: str, api_key: str = "") -> Target:
    """Raises ConfigError for what is not `http(s)://host[:port][/prefix][/v1]`."""
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")  # what a look-up would stumble over
    except ValueError as error:
        raise ConfigError(f"--url {url!r} is not a URL.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise ConfigError(f"--url {url!r} is not like http://host:port.")
    if not (url + api_key).isascii() or any(char in url + api_key for char in "\r\n\t "):
        raise ConfigError("--url and --api-key take printable ASCII characters only.")
    if parts.username is not None:
        raise ConfigError("--url takes no user name or password; a key goes to --api-key.")
    is_tls = parts.scheme == "https"
    return Target(
        parts.hostname,
        port or (443 if is_tls else 80),
        ssl.create_default_context() if is_tls else None,
        _prefix(parts),
        parts.netloc,
        api_key,
    )


def _prefix(parts: SplitResult) -> str:
    return parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
