"""One log line for each completions request, and for each time that a stream is resumed, whatever its end.
Never a prompt, an output or a key.

Whoever knows something of a request puts it into the record that travels in its ASGI scope.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.http.http_protocol import is_too_slow
from server.api.http.request_id import REQUEST_ID
from server.faults import log_fault

RECORD = "continuo.record"  # in the ASGI scope
KEY_NAME = "continuo.key_name"  # in the ASGI scope: whose key it was

_PATH = "/v1/completions"
_STREAM_PATH = re.compile(r"/v1/completions/[^/]+/stream")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class CompletionRecord:
    """What is known of a request so far; times in ms from its arrival."""

    request_id: str
    arrived_at: float = field(default_factory=time.monotonic)
    key_name: str = ""
    response_id: str = ""
    model: str = ""
    status: int = 0  # 0: the client left before there was one
    code: str | None = None  # of the error
    is_stream: bool = False
    n: int = 0
    num_prompts: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_completion_tokens: int = 0
    queue_ms: float | None = None  # of the first sequence that ran
    ttft_ms: float | None = None  # until the first token of any choice
    total_ms: float = 0.0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    is_client_gone: bool = False
    is_replayed: bool = False  # the reply to an earlier request with the same Idempotency-Key
    is_resumed: bool = False  # a stream that an earlier request began
    num_events: int = 0  # of a stream that is resumed, written to this connection

    def fields(self) -> dict[str, Any]:
        """Under the names of the log line; only what applies."""
        shown: dict[str, Any] = {
            "request_id": self.request_id,
            "key": self.key_name,
            "status": self.status,
            "code": self.code,
            "total_ms": round(self.total_ms, 1),
            "client_gone": self.is_client_gone,
        }
        if self.is_replayed:
            shown["replayed"] = True
        if self.is_resumed:
            shown |= {"resumed": True, "events": self.num_events}
        shown["response_id"] = self.response_id
        if self.model:  # it got as far as the engine by itself: all below is counted once
            shown |= {
                "model": self.model,
                "stream": self.is_stream,
                "n": self.n,
                "prompts": self.num_prompts,
                "prompt_tokens": self.num_prompt_tokens,
                "cached_tokens": self.num_cached_tokens,
                "completion_tokens": self.num_completion_tokens,
                "queue_ms": _rounded(self.queue_ms),
                "ttft_ms": _rounded(self.ttft_ms),
                "finish": dict(self.finish_reasons),
            }
        return {name: value for name, value in shown.items() if value is not None and value != ""}


class RequestLogMiddleware:
    """Writes the lines. Also the last one to see a fault of ours: logs where it arose, not what it says."""

    def __init__(self, app: ASGIApp, *, is_on: bool) -> None:
        self._app = app
        self._is_on = is_on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = CompletionRecord(scope[REQUEST_ID])
        scope[RECORD] = record
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # the client has its 500 already, from the error handlers
            record.status = 500
            log_fault("a request failed", error)
        finally:
            if self._is_on and _has_line(scope):
                record.key_name = scope.get(KEY_NAME, "")
                record.code = "slow_reader" if is_too_slow(scope) else record.code
                record.total_ms = (time.monotonic() - record.arrived_at) * 1000
                _write(record)


def _has_line(scope: Scope) -> bool:
    if scope["method"] == "POST":
        return bool(scope["path"] == _PATH)
    return scope["method"] == "GET" and _STREAM_PATH.fullmatch(scope["path"]) is not None


def record_of(scope: Scope) -> CompletionRecord:
    """A record that nobody reads where no middleware has put one."""
    record = scope.get(RECORD)
    return record if isinstance(record, CompletionRecord) else CompletionRecord("")


def note_error(scope: Scope, status: int, code: str | None) -> None:
    """How the request was refused."""
    record = record_of(scope)
    record.status, record.code = status, code


def _write(record: CompletionRecord) -> None:
    fields = record.fields()
    text = " ".join([f"{name}={_shown(value)}" for name, value in fields.items()])
    _log.info("completion %s", text, extra={"fields": fields})


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join([f"{reason}:{count}" for reason, count in value.items()]) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 1)
