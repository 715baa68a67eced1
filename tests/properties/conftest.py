"""A real server with the tiny model in fp32, small enough in KV blocks that prompts share and preempt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.properties.asking import Asker
from tests.serving import Server


@pytest.fixture(scope="package")
def server(tiny_model_dir: Path) -> Iterator[Server]:
    server = Server(
        tiny_model_dir, "--dtype", "float32", "--max-model-len", "256", "--kv-cache-gib", "0.0005"
    )
    try:
        yield server.wait_ready()
    finally:
        server.clean_up()


@pytest.fixture(scope="package")
def ask(server: Server) -> Asker:
    return Asker(server.client)
