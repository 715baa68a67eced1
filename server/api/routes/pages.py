"""The small routes: `GET /`, /version, /metrics, and a sentence where chat would be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from server import __version__
from server.api.routes.get_route import get_route
from server.errors import RequestError

_LINKS = ("/docs", "/openapi.json", "/v1/models", "/health", "/ready", "/version", "/metrics")
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PAGE = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Continuo</title>
<h1>Continuo {__version__}</h1>
<p>Text is completed at <code>POST /v1/completions</code>, as with any OpenAI client;
<a href="/docs">/docs</a> has every parameter, to try.</p>
<ul>{"".join(f'<li><a href="{link}">{link}</a></li>' for link in _LINKS)}</ul>
</html>
"""


def pages_router(page: Callable[[], bytes | Awaitable[bytes]]) -> APIRouter:
    """`page`: that of /metrics."""
    router = APIRouter()

    @get_route(router, "/")
    async def index() -> Response:
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": "default-src 'none'"})

    @get_route(router, "/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @get_route(router, "/metrics")
    async def metrics_page() -> Response:
        content = page()
        if not isinstance(content, bytes):
            content = await content
        return Response(content, headers={"Content-Type": _METRICS_TYPE})

    @router.post("/v1/chat/completions")
    async def chat() -> Response:
        raise RequestError(
            "Chat is not served: these models complete text. Use POST /v1/completions.", status=404
        )

    return router
