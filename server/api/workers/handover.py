"""Hands requests over to the api process whose they are: those that resume a stream, and those with an
Idempotency-Key. Everything else is served where it arrived.

Pure ASGI, in front of everything: the other process sees the request as it came, checks its host and key,
counts it and writes its log line; here its bytes pass through, no faster than the client takes them. That is
the same with and without TLS. (To hand over the connection itself would save the way through, but not with
TLS, whose state is no descriptor's, and not for what is pipelined behind.) What comes through a worker's own
door, peer_door.py, is not handed over again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.http.auth import key_of
from server.api.http.drain import Drain
from server.api.http.errors import send_error
from server.api.http.http_protocol import body_writer
from server.api.http.limits import HttpLimits
from server.api.http.request_log import note_error
from server.api.kept.idempotency import idempotency_value
from server.api.workers.peer_door import PeerApp
from server.api.workers.upstream import Headers, Upstream, UpstreamLost
from server.api.workers.worker import Worker
from server.api_keys import KeyFile
from server.errors import RequestError

_PATH = "/v1/completions"
_STREAM_PATH = re.compile(r"/v1/completions/([0-9a-f]{32})/stream")
_MAX_BODY_BYTES = HttpLimits().max_body_bytes
RESTART_S = 5.0  # a worker that was killed is back within two
_UNREACHABLE = "continuo.unreachable"  # in the ASGI scope
# of one hop: each connection has its own
_HOP_HEADERS = (b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"expect")
_OF_OUR_OWN = (b"transfer-encoding", b"date")  # uvicorn adds them


class Handover:
    def __init__(
        self,
        app: ASGIApp,
        worker: Worker,
        drain: Drain,
        keys: KeyFile | None,
        counts: Callable[[], bytes],
    ) -> None:
        """`app` is all of this worker's own, `counts` what others may ask it for."""
        self.for_peers = PeerApp(app, counts)
        self._app = app
        self._worker = worker
        self._drain = drain
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        owner = self._worker.index if scope["type"] != "http" else self._owner(scope)
        if owner == self._worker.index:
            await self._app(scope, receive, send)
            return
        self._drain.num_active += 1
        try:
            await self._hand_over(owner, scope, receive, send)
        finally:
            self._drain.num_active -= 1

    def _owner(self, scope: Scope) -> int:
        """Whose it is; this worker's where it will be refused, too."""
        path = scope["path"]
        if path == _PATH and scope["method"] == "POST":
            return self._owner_by_key(scope)
        match = _STREAM_PATH.fullmatch(path)
        return self._worker.index if match is None else self._worker.owner_of_stream(match[1])

    def _owner_by_key(self, scope: Scope) -> int:
        headers = scope["headers"]
        values = [value.decode("latin-1") for name, value in headers if name == b"idempotency-key"]
        try:
            value = idempotency_value(values)
        except RequestError:
            return self._worker.index
        if value is None:
            return self._worker.index
        key = None if self._keys is None else key_of(headers, self._keys)
        if key is None and self._keys is not None:
            return self._worker.index
        return self._worker.owner_of_key("" if key is None else key.name, value)

    async def _hand_over(self, owner: int, scope: Scope, receive: Receive, send: Send) -> None:
        # No other route reads a body; of those none is handed over, and none is waited for.
        has_body = scope["path"] == _PATH
        body, is_whole = await _received_body(scope, receive) if has_body else (b"", True)
        if not is_whole:  # the client has left, or sends too much: that is said here
            await self._app(scope, _replayed(body, receive), send)
            return
        gone = asyncio.create_task(_until_gone(receive))
        relay = asyncio.create_task(self._relay(owner, scope, body, send))
        try:
            await asyncio.wait({gone, relay}, return_when=asyncio.FIRST_COMPLETED)
            has_begun = relay.done() and relay.result()
            if not (gone.done() or has_begun):
                await self._app({**scope, _UNREACHABLE: True}, receive, send)
        finally:
            gone.cancel()
            relay.cancel()

    async def _relay(self, owner: int, scope: Scope, body: bytes, send: Send) -> bool:
        """False: nothing has been answered, and nothing will be."""
        is_head = scope["method"] == "HEAD"
        path = self._worker.socket_path(owner)
        wait_s = 0.0 if self._drain.is_on else RESTART_S
        try:
            upstream = await Upstream.connect(path, wait_s, is_head=is_head)
        except UpstreamLost:
            return False
        has_begun = False
        try:
            upstream.send(_request_line(scope), _request_headers(scope, body), body)
            head = await upstream.head()
            headers = [each for each in head.headers if each[0] not in _OF_OUR_OWN]
            await send({"type": "http.response.start", "status": head.status, "headers": headers})
            has_begun = True
            while part := await upstream.part():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except UpstreamLost:
            if has_begun:  # nobody may take it for the whole
                body_writer(scope).cut()
        finally:
            upstream.close()
        return has_begun


class UnreachableMiddleware:
    """Pure ASGI, among the guards: the answer to a request whose worker is not there, with all headers that
    answers have. It may have run there, and nothing is left of that: whoever repeats it has it run again."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope.get(_UNREACHABLE):
            await self._app(scope, receive, send)
            return
        note_error(scope, 503, "worker_restarting")
        message = (
            "The process that keeps this request is starting again; send it again in a moment."
        )
        headers = [(b"retry-after", b"1")]
        await send_error(send, 503, message, code="worker_restarting", headers=headers)


def _request_line(scope: Scope) -> bytes:
    target, query = scope["raw_path"], scope["query_string"]
    if query:
        target = b"%b?%b" % (target, query)
    version = b"1.0" if scope["http_version"] == "1.0" else b"1.1"
    return b"%b %b HTTP/%b" % (scope["method"].encode(), target, version)


def _request_headers(scope: Scope, body: bytes) -> Headers:
    headers = [header for header in scope["headers"] if header[0] not in _HOP_HEADERS]
    if body:  # the head never grows on its way: it came with a length, or with chunks
        headers.append((b"content-length", b"%d" % len(body)))
    return headers


async def _received_body(scope: Scope, receive: Receive) -> tuple[bytes, bool]:
    """And whether it is whole: it may be too large, or cut."""
    body = bytearray()
    lengths = [int(value) for name, value in scope["headers"] if name == b"content-length"]
    if lengths and lengths[0] > _MAX_BODY_BYTES:
        return b"", False
    while len(body) <= _MAX_BODY_BYTES and (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body), len(body) <= _MAX_BODY_BYTES
    return bytes(body), False


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What has been received, then what comes."""
    messages = [{"type": "http.request", "body": body, "more_body": True}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
