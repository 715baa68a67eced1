"""`continuo bench` against `continuo serve`: what the one counts is what the other says it made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.cli import main
from tests.serving import Server


@pytest.fixture(scope="module")
def server(tiny_model_dir: Path) -> Iterator[Server]:
    running = Server(tiny_model_dir)
    try:
        yield running.wait_ready()
    finally:
        running.clean_up()


@pytest.mark.parametrize(
    "flags",
    [
        ("--concurrency", "4", "--prompts", "token-ids", "--max-token-id", "290"),
        ("--rate", "40", "--prompt-tokens", "sharegpt", "--temperature", "1"),
    ],
)
def test_it_counts_what_the_server_made(
    server: Server, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    path = tmp_path / "result.json"
    before = server.metric("vllm:generation_tokens_total")
    arguments = ["bench", "--url", server.address, "--json", str(path), "--output-tokens", "12"]
    assert main([*arguments, "--num-requests", "10", *flags]) == 0
    (load,) = json.loads(path.read_text())["loads"]
    assert (load["completed"], load["failures"]) == (10, {})
    assert (load["output_tokens"], load["tokens_counted_by"]) == (120, "usage")
    probe_and_warm_up = 1 + 2 * 12
    made = server.metric("vllm:generation_tokens_total") - before
    assert made == load["output_tokens"] + probe_and_warm_up


def test_prompts_are_about_as_long_as_asked(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    arguments = ["bench", "--url", server.address, "--json", str(path), "--output-tokens", "2"]
    assert main([*arguments, "--num-requests", "8", "--prompt-tokens", "300"]) == 0
    (load,) = json.loads(path.read_text())["loads"]
    assert load["prompt_tokens"] / 8 == pytest.approx(300, rel=0.15)
