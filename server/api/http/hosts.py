"""Which hosts a request may be meant for. A page of another site that has its own name resolve to this
machine (DNS rebinding) makes a browser its way in, but cannot make it name another host.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.http.connections import Connections
from server.api.http.errors import send_error
from server.api.http.request_log import note_error

ANY = "*"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PROBES = ("/health", "/ready")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:@\[\]]*)(?::[0-9]*)?")
_MESSAGE = "This server does not answer for that host; --allowed-hosts says for which it does."


class AllowedHosts:
    """Names and addresses, without ports."""

    def __init__(self, names: Collection[str], *, opens_probes: bool) -> None:
        """`opens_probes`: /health and /ready answer for any host."""
        self._names = frozenset(_plain(name) for name in names)
        self._opens_probes = opens_probes

    def has(self, host: bytes, path: str) -> bool:
        match = _HOST.fullmatch(host.decode("latin-1").strip())
        is_named = match is not None and _plain(match[1]) in self._names
        return is_named or (self._opens_probes and path in _PROBES)


def allowed_hosts(given: Collection[str], bound: str, address: str) -> AllowedHosts | None:
    """None: any. `bound` is what the operator asked to listen on, `address` its number.

    Behind a loopback address only programs of this machine are served, so all they can call it is known. On
    other addresses an orchestrator's probes name one that nobody can list beforehand, a pod's; they learn
    no more than whether the server is up.
    """
    is_loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback
    if ANY in given or not (given or is_loopback):
        return None
    names = given or (*_LOOPBACK, bound, address)
    return AllowedHosts(names, opens_probes=not is_loopback)


def _plain(name: str) -> str:
    """One spelling of each."""
    name = name.strip().lower()
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.removesuffix(".")


class HostMiddleware:
    """Pure ASGI, in front of the keys."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts, connections: Connections) -> None:
        self._app = app
        self._hosts = hosts
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_allowed(scope):
            self._connections.refused["host"] += 1
            note_error(scope, 421, "host_not_allowed")
            await send_error(send, 421, _MESSAGE, code="host_not_allowed")
            return
        await self._app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:  # one, of HTTP/1.0 maybe none: browsers always send it
            if name == b"host":
                return self._hosts.has(value, scope["path"])
        return True
