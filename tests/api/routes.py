"""The routes of the app, as its router knows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from server.api.app import Doors, create_app
from server.api.engine_client import EngineClient
from tests.api.conftest import MODEL, make_tokenizer


def methods_by_path() -> dict[str, set[str]]:
    app = create_app(make_tokenizer(), MODEL, EngineClient("unused"), doors=Doors())
    while not isinstance(app, FastAPI):  # peel off the middlewares, which have no routes
        app = app._app  # type: ignore[attr-defined]
    found: dict[str, set[str]] = {}
    for route in _flat(app.routes):
        found.setdefault(route.path, set()).update(route.methods)
    return found


def _flat(routes: Iterable[BaseRoute]) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        else:  # a router that was included; anything else would fail here, and be noticed
            yield from _flat(route.original_router.routes)  # type: ignore[attr-defined]
