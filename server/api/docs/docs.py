"""/docs and /openapi.json. Swagger UI is the package fastapi-offline's copy: no other host is asked."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from server.api.routes.get_route import get_route

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Continuo: API</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="docs"></div>
<script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script></body></html>
"""
# validatorUrl: Swagger UI would ask a public service to check the document
_START = """SwaggerUIBundle({
  url: "openapi.json", dom_id: "#docs", deepLinking: true, tryItOutEnabled: true, validatorUrl: null,
});
"""
_SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_PAGE_HEADERS = {
    **_SAFE,
    # Swagger UI sets styles inline, and draws its icons from data: addresses
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}


def docs_router(document: dict[str, Any]) -> APIRouter:
    router = APIRouter()
    assets = _assets_dir()

    @get_route(router, "/docs")
    async def docs() -> Response:
        return HTMLResponse(_PAGE, headers=_PAGE_HEADERS)

    @get_route(router, "/docs/start.js")
    async def start() -> Response:
        return Response(_START, headers=_SAFE, media_type="text/javascript")

    @get_route(router, "/docs/swagger-ui-bundle.js")
    async def bundle() -> Response:
        return _asset(assets / "swagger-ui-bundle.js", "text/javascript")

    @get_route(router, "/docs/swagger-ui.css")
    async def styles() -> Response:
        return _asset(assets / "swagger-ui.css", "text/css")

    @get_route(router, "/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(document, headers=_SAFE)

    return router


def _asset(path: Path, media_type: str) -> Response:
    headers = {**_SAFE, "Cache-Control": "private, max-age=3600"}
    return FileResponse(path, headers=headers, media_type=media_type)


def _assets_dir() -> Path:
    """The package is not imported: only its files are of use."""
    spec = importlib.util.find_spec("fastapi_offline")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "static"
