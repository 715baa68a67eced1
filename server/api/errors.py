"""Every error that a client can see: one shape, sentences of ours, never `str(exc)` of a library."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from server.errors import EngineGoneError, RequestError

_RETRY_AFTER_S = 1  # an engine is back within seconds
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


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(RequestError, _request_error)
    app.add_exception_handler(EngineGoneError, _engine_gone)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _fault)


def _response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")


async def _request_error(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestError)
    return _response(
        exc.status, error_json(exc.status, exc.message, param=exc.param, code=exc.code)
    )


async def _engine_gone(_: Request, exc: Exception) -> Response:
    return _response(503, error_of(exc), {"Retry-After": str(_RETRY_AFTER_S)})


async def _http_exception(_: Request, exc: Exception) -> Response:
    """What the router says by itself: 404 and 405."""
    assert isinstance(exc, HTTPException)
    message = _SENTENCES.get(exc.status_code, "The request cannot be served.")
    return _response(exc.status_code, error_json(exc.status_code, message), exc.headers)


async def _fault(_: Request, exc: Exception) -> Response:
    """starlette raises it again, and uvicorn logs it with its traceback and closes the connection."""
    # the same request would fail again: clients must not repeat it
    return _response(500, error_of(exc), {"x-should-retry": "false", "Connection": "close"})
