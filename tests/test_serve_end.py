"""How `continuo serve` ends: by a signal, by a killed process, or before it has begun."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving import ROOT, Server
from tests.waiting import is_alive, wait_for


@pytest.fixture
def server(tiny_model_dir: Path) -> Iterator[Server]:
    running = Server(tiny_model_dir)
    try:
        yield running
    finally:
        running.clean_up()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_and_leaves_nothing(
    server: Server, number: signal.Signals
) -> None:
    server.wait_ready()
    pids = server.all_pids()
    assert len(pids) >= 3
    assert server.end(number) == 0
    assert not any(is_alive(pid) for pid in pids)
    assert os.listdir(server.temporary_dir.name) == []
    with pytest.raises(httpx.ConnectError):
        server.client.get("/health")
    assert "Traceback" not in server.stderr


def test_a_signal_during_the_start_ends_it_too(server: Server) -> None:
    wait_for(lambda: server.pid_of("engine 0"), "the engine has been spawned")
    pids = server.all_pids()
    assert server.end() == 0
    assert not any(is_alive(pid) for pid in pids)


def test_nothing_outlives_a_killed_supervisor(server: Server) -> None:
    server.wait_ready()
    pids = server.all_pids()
    server.process.kill()
    wait_for(lambda: not any(is_alive(pid) for pid in pids), "everything is gone", timeout_s=3)


def refused(*flags: str) -> str:
    """What `continuo serve` says when it cannot start: exactly one sentence on stderr, status 2."""
    result = subprocess.run(
        [sys.executable, "-m", "server", "serve", "--port", "0", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def test_a_busy_port_says_which_flag_to_use(tiny_model_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        sentence = refused("--model", str(tiny_model_dir), "--port", port)
    assert port in sentence
    assert "--port" in sentence


def test_a_missing_model_directory_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refused("--model", str(tmp_path / "nowhere"))


def test_too_little_memory_says_what_to_do(tiny_model_dir: Path) -> None:
    sentence = refused("--model", str(tiny_model_dir), "--kv-cache-gib", "1000000")
    assert "--kv-cache-gib" in sentence


@pytest.mark.parametrize("fault", ["truncated", "no config", "no tokenizer", "wrong shape"])
def test_a_broken_checkpoint_is_one_sentence(
    tiny_model_dir: Path, tmp_path: Path, fault: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_dir, broken)
    weights, config = broken / "model.safetensors", broken / "config.json"
    if fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "no config":
        config.unlink()
    elif fault == "no tokenizer":
        (broken / "tokenizer.json").unlink()
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), "n_positions": 77}))
    assert str(broken) in refused("--model", str(broken))
