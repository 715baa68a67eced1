"""A real server, and the requests that all of these tests send."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import Server


@pytest.fixture(scope="package")
def server(tiny_model_dir: Path) -> Iterator[Server]:
    running = Server(tiny_model_dir)
    try:
        yield running.wait_ready()
    finally:
        running.clean_up()
