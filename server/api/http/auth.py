"""Who may come in: every route but /health and /ready needs a key of the right scope, also routes that do not
exist. Knows no route's meaning and no file format.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.http.errors import send_error
from server.api.http.request_log import KEY_NAME, note_error
from server.api_keys import ApiKey, KeyFile

_OPEN_PATHS = ("/health", "/ready")  # an orchestrator's probes carry no key
_INFER_PATHS = ("/tokenize", "/detokenize", "/tokenizer_info")
_NO_KEY = "An API key is needed: send it as Authorization: Bearer KEY."
_WRONG_KEY = "This API key is not valid."
_REALM = b'realm="continuo"'


class AuthMiddleware:
    """Pure ASGI, in front of the router."""

    def __init__(self, app: ASGIApp, keys: KeyFile) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in _OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing comes in unseen, whatever uvicorn is told to take
            raise RuntimeError("only HTTP is served")
        takes_basic = _is_page(scope)
        secret = _secret(scope["headers"], takes_basic)
        key = self._keys.find(secret) if secret else None
        needed = needed_scope(scope["path"])
        if key is None:
            note_error(scope, 401, "invalid_api_key")
            challenges = [b"Bearer " + _REALM]
            if takes_basic:  # lets a browser ask for the key
                challenges.append(b"Basic " + _REALM)
            headers = [(b"www-authenticate", challenge) for challenge in challenges]
            message = _NO_KEY if secret is None else _WRONG_KEY
            await send_error(send, 401, message, code="invalid_api_key", headers=headers)
            return
        scope[KEY_NAME] = key.name
        if needed is not None and needed not in key.scopes:  # RFC 6750, section 3.1
            note_error(scope, 403, "insufficient_scope")
            challenge = b'Bearer error="insufficient_scope", scope="%s"' % needed.encode()
            message = f"This API key is not meant for this: it lacks the scope {needed}."
            headers = [(b"www-authenticate", challenge)]
            await send_error(send, 403, message, code="insufficient_scope", headers=headers)
            return
        await self._app(scope, receive, send)


def key_of(headers: Iterable[tuple[bytes, bytes]], keys: KeyFile) -> ApiKey | None:
    """Whose key came with a request for inference."""
    secret = _secret(headers, takes_basic=False)
    return keys.find(secret) if secret else None


def needed_scope(path: str) -> str | None:
    """None: any key will do."""
    if path == "/metrics":
        return "metrics"
    if path.startswith("/v1/") or path in _INFER_PATHS:
        return "infer"
    return None


def _is_page(scope: Scope) -> bool:
    """What a browser opens by itself. Only here a browser's own kind of password is taken: it sends that
    along with requests that other sites make, which must not be able to run the model."""
    path = scope["path"]
    return scope["method"] in ("GET", "HEAD") and (
        path in ("/", "/docs", "/openapi.json") or path.startswith("/docs/")
    )


def _secret(headers: Iterable[tuple[bytes, bytes]], takes_basic: bool) -> bytes | None:
    """The key that was sent; None where none was sent in a way that counts here, b"" for what is no key."""
    values = [value for name, value in headers if name == b"authorization"]
    if not values:
        return None
    kind, _, rest = values[0].partition(b" ")
    if len(values) > 1:
        return b""
    if kind.lower() == b"bearer":
        return rest.strip()
    if kind.lower() == b"basic" and takes_basic:
        return _basic_password(rest.strip())
    return None


def _basic_password(encoded: bytes) -> bytes:
    """The name beside it can be anything: a key has its own."""
    try:
        return base64.b64decode(encoded, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""
