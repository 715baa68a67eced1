"""What a stream says when it breaks after its first byte, and what the log calls it."""

from __future__ import annotations

from server.api.http.errors import error_json, error_of
from server.api.reply.sse import error_event
from server.errors import EngineGoneError, RequestError
from server.faults import log_fault


def broken_stream_event(error: Exception) -> bytes:
    """The last event. A fault of ours goes into the log."""
    return error_event(_error_json(error))


def error_code(error: Exception) -> str:
    """For the log line, where the status is that of the stream's beginning."""
    if isinstance(error, EngineGoneError):
        return "engine_gone"
    code = error.code if isinstance(error, RequestError) else None
    return code or "internal"


def _error_json(error: Exception) -> bytes:
    if isinstance(error, RequestError):
        return error_json(error.status, error.message, param=error.param, code=error.code)
    if not isinstance(error, EngineGoneError):
        log_fault("a stream failed", error)
    return error_of(error)
