"""What requests hold that have come whole: from their last byte until the application is through with them,
also where their client has left meanwhile. Knows no connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

ARRIVAL = "continuo.arrival"  # among the extensions of an ASGI scope
SMALL_HEAD_BYTES = 2048
REQUEST_BYTES = 4096  # beside its head and body: the objects of a request without a run


class Arrivals:
    """Of all connections."""

    def __init__(self) -> None:
        self.num_bytes = 0


class Arrival:
    """One request's. It is counted from `arrive` to `release`, in whatever order they come."""

    __slots__ = ("_all", "_is_counted", "_is_over", "num_bytes")

    def __init__(self, arrivals: Arrivals, num_bytes: int) -> None:
        """`num_bytes`: without its body, which is added as it comes."""
        self.num_bytes = num_bytes
        self._all = arrivals
        self._is_counted = self._is_over = False

    def arrive(self) -> None:
        """It has come whole."""
        if not self._is_over:
            self._is_counted = True
            self._all.num_bytes += self.num_bytes

    def release(self) -> None:
        self._is_over = True
        if self._is_counted:
            self._is_counted = False
            self._all.num_bytes -= self.num_bytes


class Releasing:
    """An application, behind which its requests are released."""

    __slots__ = ("_app",)

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        finally:
            release(scope)


def release(scope: Mapping[str, Any]) -> None:
    arrival = scope.get("extensions", {}).get(ARRIVAL)
    if isinstance(arrival, Arrival):
        arrival.release()
