"""`continuo bench --profile` from the command to its files, and what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest

from server.cli import main
from tests.profiling.test_charts import check_trace_events


def descendants() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def _busy_and_idle_share(profile: dict[str, Any]) -> float:
    busy_s = sum(kind["num_steps"] * kind["mean_us"] for kind in profile["steps"]) / 1e6
    share: float = busy_s / profile["profiled"]["wall_s"] + profile["engine_idle_share"]
    return share


def test_a_real_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setenv("TMPDIR", str(private))
    before = descendants()
    prefix, result = tmp_path / "out", tmp_path / "result.json"
    load = ("--concurrency", "2", "--num-requests", "4", "--output-tokens", "48")
    command = ["bench", *load, "--json", str(result), "--profile", str(prefix)]
    serve = ("--max-num-seqs", "4", "--device", "cpu", "--prompt-lookup", "off")
    for _ in range(3):  # a stall of the client's is neither
        assert main([*command, "--", *serve]) == 0
        profile = json.loads(result.read_text())["profile"]
        if _busy_and_idle_share(profile) == pytest.approx(1, abs=0.1):
            break

    shown = capsys.readouterr().out
    for part in (
        "schedule",
        "inputs",
        "sampling",
        "frame encoding",
        "socket write",
        "SSE encoding",
    ):
        assert f"\n{part} " in shown
    document = json.loads(result.read_text())
    assert document["loads"][0]["completed"] == 8  # of both rounds without spans
    profile = document["profile"]
    assert set(profile["plain"]["cpu_s"]) == {"engine 0", "api 0", "load generator"}
    assert profile["plain"]["num_tokens"] == profile["profiled"]["num_tokens"] == 8 * 48
    assert all(cpu_s > 0 for cpu_s in profile["profiled"]["cpu_s"].values())
    steps = profile["steps"]
    # Each stream's first token comes from a step with its prompt, so a round has at least 2 x 47 others.
    assert sum(kind["num_steps"] for kind in steps) >= 2 * 2 * 47
    for kind in steps:
        parts_us = sum(part["mean_us"] for part in kind["parts"])
        assert parts_us + kind["recorder_us"] == pytest.approx(kind["mean_us"], rel=1e-6)
    # By the client's clock: the engine was busy or idle for all of it.
    assert _busy_and_idle_share(profile) == pytest.approx(1, abs=0.1)
    assert {"frame decoding", "SSE encoding", "socket write"} <= set(profile["api"]["parts"])

    trace = json.loads(Path(f"{prefix}.trace.json").read_text())["traceEvents"]
    check_trace_events(trace)
    processes = {event["args"]["name"] for event in trace if event["name"] == "process_name"}
    assert processes == {"engine 0", "api 0", "client"}
    assert {"X", "i"} <= {event["ph"] for event in trace}
    assert ElementTree.fromstring(Path(f"{prefix}.svg").read_text()).tag.endswith("svg")

    assert list(private.iterdir()) == []
    assert descendants() == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--profile", "--url", "http://127.0.0.1:8000"], "it excludes --url"),
        (["--profile", "--concurrency", "1,4"], "takes one load"),
        (["--profile", "no/such/folder/out"], "no such folder"),
        (["--profile", "--", "--port", "8001"], "--port is not for it"),
        (["--profile", "--", "--api-workers", "2"], "leave --api-workers at 1"),
        (["--profile", "--", "--host", "0.0.0.0"], "--host is not for it"),
        (["--profile", "--", "--model", "no-such-model"], "ended with status 2"),
        (["--", "--model", "m"], "the server that --profile starts"),
    ],
)
def test_what_it_refuses(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    if "no-such-model" in arguments:
        assert "There is no model directory no-such-model" in error
    assert os.listdir(tmp_path) == []


def test_an_unknown_flag_of_the_server_is_an_error_of_serve(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--profile", "--", "--nonsense"])
    assert "--nonsense" in capsys.readouterr().err


def test_without_it_nothing_of_profiling_is_loaded() -> None:
    """In the processes of a plain server: what they are told has no ring."""
    from server.config import EngineConfig, ServeConfig
    from server.serve import _children
    from server.startup import resolve_serve

    class Listener:
        def fileno(self) -> int:
            return 0

    config = resolve_serve(ServeConfig(engine=EngineConfig()))
    for spec in _children(config, Listener(), Path("/nowhere")):  # type: ignore[arg-type]
        assert "profile_fd" not in spec.told
