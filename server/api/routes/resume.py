"""GET /v1/completions/{stream}/stream: a client goes on reading a stream, behind the last event that it has.

An unknown, foreign and expired stream are answered alike: nobody learns which of them it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.http.request_log import KEY_NAME, record_of
from server.api.kept.kept_response import ResumeResponse, stream_not_found
from server.api.kept.kept_runs import KeptRuns
from server.api.kept.resumable_stream import ResumableStream
from server.api.metrics.metrics import Metrics
from server.api.reply.responses import STREAM_HEADERS
from server.api.routes.get_route import get_route
from server.errors import RequestError

_HEADER = "Last-Event-ID"
_EVENT_ID = re.compile(r"([0-9a-f]{32}):(0|[1-9][0-9]{0,15})")


def resume_router(kept: KeptRuns, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @get_route(router, "/v1/completions/{stream_id}/stream")
    async def resume(stream_id: str, request: Request) -> Response:
        start = first_wanted(stream_id, request.headers.getlist(_HEADER))
        stream = kept.find_stream(stream_id, request.scope.get(KEY_NAME, ""))
        if stream is None:
            raise stream_not_found()
        record = record_of(request.scope)
        if _is_over(stream, start):
            record.status = 204
            return Response(status_code=204)
        if request.method == "HEAD":
            return _head()
        record.is_resumed = True
        metrics.on_resume()
        return ResumeResponse(stream, start)

    return router


def _head() -> Response:
    response = Response()
    response.raw_headers = list(STREAM_HEADERS)  # no length: it is not known
    return response


def first_wanted(stream_id: str, values: Sequence[str]) -> int:
    """The number of the first event that a client lacks; `values` are those of its Last-Event-ID lines."""
    if not values:
        return 0
    event_id = _EVENT_ID.fullmatch(values[0].strip(" \t")) if len(values) == 1 else None
    if event_id is None:
        raise _invalid(f"{_HEADER} must be an event's id as the stream sent it, or be left out.")
    if event_id[1] != stream_id:
        raise _invalid(f"{_HEADER} names an event of another stream.")
    return int(event_id[2]) + 1


def _is_over(stream: ResumableStream, start: int) -> bool:
    """Whether the client has all there ever will be. Raises RequestError."""
    if start > stream.ring.next:
        raise _invalid(f"{_HEADER} names an event that the stream has not sent yet.")
    if start < stream.ring.first:
        raise stream_not_found()
    return stream.is_complete and start == stream.ring.next


def _invalid(message: str) -> RequestError:
    return RequestError(message, param=_HEADER)
