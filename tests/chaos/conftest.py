"""What the chaos tests share: how long they are, their seed, and servers under 16 clients."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.serving import Server

# KV blocks for some 14,000 tokens: 16 requests have more at times, and preempt each other.
FLAGS = (
    "--max-num-seqs", "16", "--max-model-len", "6144", "--kv-cache-gib", "0.014",
    "--stall-seconds", "2", "--drain-seconds", "30", "--no-log-requests",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="200 kills, 10,000 cuts")
    parser.addoption("--seed", type=int, default=0, help="of what is random in the chaos tests")


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--long"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.config.getoption("--seed"))


@pytest.fixture
def start(tiny_model_dir: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server; further flags and `module=` as of Server."""
    running: list[Server] = []

    def start(*flags: str, **options: str) -> Server:
        running.append(Server(tiny_model_dir, *FLAGS, *flags, **options))
        return running[-1]

    try:
        yield start
    finally:
        for server in running:
            server.clean_up()
