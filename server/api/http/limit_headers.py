"""`x-ratelimit-...` on the replies to whoever has limits, under OpenAI's names. Knows no bucket.

A route that knows how a key stands puts a function into the scope; it is asked when the reply begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# in the ASGI scope; yields ("requests" or "tokens", limit, remaining, seconds until nothing of it is used)
STANDINGS = "continuo.standings"

NAMES = tuple(
    f"x-ratelimit-{kind}-{what}"
    for kind in ("limit", "remaining", "reset")
    for what in ("requests", "tokens")
)
_PATH = "/v1/completions"


class LimitHeaders:
    """Pure ASGI, behind the one that knows keys."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != _PATH:
            await self._app(scope, receive, send)
            return

        async def send_with_limits(message: Message) -> None:
            ask = scope.get(STANDINGS)
            if message["type"] == "http.response.start" and ask is not None:
                message = {**message, "headers": [*message["headers"], *_headers(ask)]}
            await send(message)

        await self._app(scope, receive, send_with_limits)


def _headers(
    ask: Callable[[], Iterable[tuple[str, int, int, float]]],
) -> Iterable[tuple[bytes, bytes]]:
    for what, limit, remaining, reset_s in ask():
        for kind, value in (
            ("limit", limit),
            ("remaining", remaining),
            ("reset", f"{reset_s:.3f}s"),
        ):
            yield f"x-ratelimit-{kind}-{what}".encode(), str(value).encode()
