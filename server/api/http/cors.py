"""Leave for the web pages of given origins to call the API from a browser. No origins: no headers at all."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from server.api.http.errors import error_response
from server.api.http.limit_headers import NAMES

_EXPOSED = ("X-Request-Id", "Retry-After", "X-Should-Retry", "Idempotent-Replayed", *NAMES)


class Cors(CORSMiddleware):
    """starlette's own, but refusals have our shape. Cookies are of no use here, so any request header may be
    sent: none of them carries an authority that the page does not hold itself."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=_EXPOSED,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        refusal = error_response(400, "Pages of this origin may not make this request (CORS).")
        kept = [(name, value) for name, value in response.raw_headers if name not in _OF_BODY]
        refusal.raw_headers += kept
        return refusal


_OF_BODY = (b"content-length", b"content-type")
