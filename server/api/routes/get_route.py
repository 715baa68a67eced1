"""Routes that are read: where GET is answered, so is HEAD (uvicorn leaves out the body)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def get_route(router: APIRouter, path: str) -> Callable[[Endpoint], Endpoint]:
    return router.api_route(path, methods=["GET", "HEAD"], response_model=None)
