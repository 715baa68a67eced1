"""The server that the clients talk to: real processes, the embedded model, with and without keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import ROOT, Server

MODEL_DIR = ROOT / "server" / "assets" / "model"
MODEL = "continuo-stories"
KEY = "sk-clients-of-the-tests"


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server(MODEL_DIR, "--served-model-name", MODEL)
    try:
        yield server.wait_ready()
    finally:
        server.clean_up()


@pytest.fixture(scope="session")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Needs KEY on every route but /health and /ready."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.touch(mode=0o600)
    file.write_text(f"clients {hashlib.sha256(KEY.encode()).hexdigest()} infer,metrics\n")
    server = Server(MODEL_DIR, "--served-model-name", MODEL, "--api-key-file", str(file))
    server.client.headers["Authorization"] = f"Bearer {KEY}"
    try:
        yield server.wait_ready()
    finally:
        server.clean_up()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a client runs, so that what it leaves behind goes with the test."""
    return tmp_path
