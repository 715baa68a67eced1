"""Every error that a client can see: one shape, sentences of ours, never `str(exc)` of a library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil

import msgspec
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Send

from server.api.http.request_log import note_error
from server.errors import EngineGoneError, RequestError

_RETRY_AFTER_S = 1  # an engine is back within seconds
# openai-python repeats 408, 409, 429 and all above 499 unless told not to. The same request would meet the
# same fault of ours again; other 4xx say so for clients that repeat everything.
_WORTH_A_RETRY = (408, 429)
_SENTENCES = {
    404: "There is no such route; GET / lists what there is.",
    405: "This route does not answer to that method.",
    500: "The server failed to process the request; this is a fault of ours.",
    503: "The engine is not available; try again in a moment.",
}


def error_json(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> bytes:
    """The error object of a response body or of a stream's last event."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return msgspec.json.encode({"error": error})


def error_of(exc: Exception) -> bytes:
    """What a stream says when it breaks after its first byte."""
    status = 503 if isinstance(exc, EngineGoneError) else 500
    return error_json(status, _SENTENCES[status])


def error_response(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """With `x-should-retry: false` where the same request would fail again."""
    body = error_json(status, message, param=param, code=code)
    is_final = status <= 500 and status not in _WORTH_A_RETRY
    retry = {"x-should-retry": "false"} if is_final else {}
    return Response(body, status, {**retry, **(headers or {})}, media_type="application/json")


async def send_error(
    send: Send,
    status: int,
    message: str,
    *,
    code: str | None = None,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """For what answers in front of the router."""
    response = error_response(status, message, code=code)
    raw_headers = [*response.raw_headers, *headers]
    await send({"type": "http.response.start", "status": status, "headers": raw_headers})
    await send({"type": "http.response.body", "body": response.body})


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(RequestError, _request_error)
    app.add_exception_handler(EngineGoneError, _engine_gone)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _fault)


async def _request_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestError)
    note_error(request.scope, exc.status, exc.code)
    return request_error_response(exc)


def request_error_response(exc: RequestError) -> Response:
    headers = {} if exc.retry_after_s is None else {"Retry-After": str(ceil(exc.retry_after_s))}
    return error_response(exc.status, exc.message, param=exc.param, code=exc.code, headers=headers)


async def _engine_gone(request: Request, _: Exception) -> Response:
    note_error(request.scope, 503, None)
    return error_response(503, _SENTENCES[503], headers={"Retry-After": str(_RETRY_AFTER_S)})


async def _http_exception(request: Request, exc: Exception) -> Response:
    """What the router says by itself: 404 and 405."""
    assert isinstance(exc, HTTPException)
    status = exc.status_code
    if status == 405 and request.method == "OPTIONS":
        return Response(status_code=204, headers=exc.headers)  # `Allow`: the answer to the question
    note_error(request.scope, status, None)
    message = _SENTENCES.get(status, "The request cannot be served.")
    return error_response(status, message, headers=exc.headers)


async def _fault(request: Request, _: Exception) -> Response:
    """starlette raises the exception again, for the log."""
    note_error(request.scope, 500, None)
    return error_response(500, _SENTENCES[500], headers={"Connection": "close"})
