"""Sends a kept plain reply, to the first who asked or to one who asks again. Who leaves ends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.http.request_log import record_of
from server.api.kept.kept_reply import KeptReply

REPLAYED = (b"idempotent-replayed", b"true")
_PART_BYTES = 1 << 16  # a slow reader has so much waiting for it beside the body that all share


class ReplyResponse(Response):
    def __init__(self, begin: Callable[[], Awaitable[KeptReply]], *, is_replayed: bool) -> None:
        """`begin` is called only when the response is, so that a run always has an owner."""
        super().__init__()
        self._begin = begin
        self._is_replayed = is_replayed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept = await self._begin()
        record = record_of(scope)
        record.response_id = kept.response_id
        record.is_replayed = self._is_replayed
        run = None if self._is_replayed else kept.run
        gone = asyncio.create_task(_until_gone(receive))
        body = asyncio.create_task(kept.body())
        try:
            with kept.reading():
                await asyncio.wait({gone, body}, return_when=asyncio.FIRST_COMPLETED)
                if body.done():
                    await self._send(body.result(), send, gone.done)
                    record.status = 200
        finally:
            record.is_client_gone = gone.done()
            gone.cancel()
            body.cancel()
            if run is not None:
                run.note(record)

    async def _send(self, body: bytes, send: Send, is_gone: Callable[[], bool]) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if self._is_replayed:
            headers.append(REPLAYED)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for start in range(0, len(body) - _PART_BYTES, _PART_BYTES):
            if is_gone():
                return
            part = body[start : start + _PART_BYTES]
            await send({"type": "http.response.body", "body": part, "more_body": True})
        last = (len(body) - 1) // _PART_BYTES * _PART_BYTES
        await send({"type": "http.response.body", "body": body[last:]})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
