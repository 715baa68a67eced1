"""The small routes."""

from __future__ import annotations

import time

import httpx
import pytest

from server import __version__
from server.api.engine_client import EngineClient
from tests.api.conftest import MODEL, wait_until


def test_models(client: httpx.Client) -> None:
    reply = client.get("/v1/models").json()
    assert reply["object"] == "list"
    card = reply["data"][0]
    assert (card["id"], card["object"], card["max_model_len"]) == (MODEL, "model", 256)
    assert client.get(f"/v1/models/{MODEL}").json() == card


def test_health_version_and_the_page(client: httpx.Client) -> None:
    assert client.get("/health").status_code == client.get("/ready").status_code == 200
    assert client.get("/version").json() == {"version": __version__}
    assert "/v1/completions" in client.get("/").text


def test_silence_of_the_engine_is_not_ready_and_long_after_not_healthy(
    client: httpx.Client, engine_client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after_silence(seconds: float) -> tuple[int, int]:
        """/health first: a 503 of /ready then says that the engine has not spoken in between."""
        monkeypatch.setattr(engine_client, "heard_at", time.monotonic() - seconds)
        return client.get("/health").status_code, client.get("/ready").status_code

    assert after_silence(1) == (200, 200)
    wait_until(lambda: after_silence(4) == (200, 503))
    wait_until(lambda: after_silence(61) == (503, 503))
