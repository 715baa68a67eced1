"""`continuo bench` as a whole against a small real server: its figures are the server's own log."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pty
import signal
import statistics
import subprocess
import sys
import threading
import time
from itertools import islice, pairwise, takewhile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from server.bench import plot
from server.bench.arrivals import poisson_arrivals
from server.bench.config import BenchConfig, Load
from server.bench.load import Generator, LoadRun
from server.bench.progress import Progress
from server.bench.record import Record
from server.bench.requests import Requests, ServerFacts
from server.cli import main
from tests.bench.tiny_server import Seen, TinyServer, begin, reply, send, stream, token
from tests.serving import ROOT

SLACK_MS = 250  # between a write here and its reading there, on a machine that does other things


def bench(server: TinyServer, tmp_path: Path, *flags: str, status: int = 0) -> list[dict[str, Any]]:
    """The loads of the JSON file."""
    path = tmp_path / "result.json"
    assert main(["bench", "--url", server.url, "--json", str(path), *flags]) == status
    loads: list[dict[str, Any]] = json.loads(path.read_text())["loads"]
    return loads


def test_closed_loop_says_what_the_server_did(tmp_path: Path) -> None:
    flags = ("--concurrency", "4", "--num-requests", "12", "--output-tokens", "20")
    with TinyServer(first_s=0.03, gap_s=0.01) as server:
        (load,) = bench(server, tmp_path, *flags)
    seen = server.measured()
    assert len(seen) == load["completed"] == 12
    assert load["output_tokens"] == 240
    assert load["tokens_counted_by"] == "usage"
    first_ms = [1e3 * (each.wrote_s[0] - each.at_s) for each in seen]
    assert min(first_ms) <= load["ttft_ms"]["p50"] <= max(first_ms) + SLACK_MS
    gaps_ms = [1e3 * (b - a) for each in seen for a, b in pairwise(each.wrote_s)]
    assert load["itl_ms"]["count"] == len(gaps_ms)
    assert load["itl_ms"]["mean"] == pytest.approx(statistics.fmean(gaps_ms), abs=15)
    spans_ms = [1e3 * (each.wrote_s[-1] - each.at_s) for each in seen]
    assert np.mean(spans_ms) <= load["e2e_ms"]["mean"] <= np.mean(spans_ms) + SLACK_MS


def test_closed_loop_keeps_so_many_in_flight(tmp_path: Path) -> None:
    in_flight = most = 0

    async def answer(server: TinyServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.2)  # time for all to come, on a machine that does other things
        in_flight -= 1
        await stream(server, seen, writer)

    with TinyServer(answer) as server:
        bench(server, tmp_path, "--concurrency", "7", "--num-requests", "30")
    assert most == 7


def test_open_loop_does_not_wait_for_a_slow_server(tmp_path: Path) -> None:
    with TinyServer(first_s=0.8) as server:
        flags = ("--rate", "100", "--num-requests", "40", "--output-tokens", "1", "--warm-up", "0")
        (load,) = bench(server, tmp_path, *flags)
    seen = server.measured(warm_up=0)
    assert len(seen) == 40
    *_, last_s = islice(poisson_arrivals(100, Random("0 0")), 40)
    assert seen[-1].at_s - seen[0].at_s > last_s / 2  # as scheduled, not all at once
    # all had come before the first was answered, as far as the machine let them
    assert sum(each.at_s < seen[0].wrote_s[0] for each in seen) > 20
    assert load["ttft_ms"]["p50"] >= 800
    assert load["lag_ms"]["count"] == 40


def test_a_duration_ends_a_load(tmp_path: Path) -> None:
    with TinyServer(gap_s=0.002) as server:
        closed = bench(server, tmp_path, "--concurrency", "2", "--duration", "0.3")
        opened = bench(server, tmp_path, "--rate", "50", "--duration", "0.3", "--seed", "5")
    assert closed[0]["completed"] >= 2
    assert closed[0]["duration_s"] >= 0.25
    due = list(takewhile(lambda time_s: time_s <= 0.3, poisson_arrivals(50, Random("5 0"))))
    assert opened[0]["completed"] == len(due) > 5


def test_a_sweep_and_all_its_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png = tmp_path / "sweep.png"
    flags = (
        "--concurrency",
        "1,3",
        "--num-requests",
        "6",
        "--output-tokens",
        "4",
        "--png",
        str(png),
    )
    with TinyServer(gap_s=0.002) as server:
        loads = bench(server, tmp_path, *flags, "--goodput", "ttft:5000,e2e:0.001")
    assert [load["load"] for load in loads] == [1, 3]
    assert loads[0]["goodput"]["share"] == 0
    assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    shown = capsys.readouterr()
    assert "gap between events, p99, ms" in shown.out
    assert "goodput, share" in shown.out
    assert shown.err == ""  # no bar where no terminal is
    prompts = [each.body["prompt"] for each in server.measured()]
    assert len(set(prompts)) == 12


def test_one_load_is_drawn_as_its_spreads(tmp_path: Path) -> None:
    png = tmp_path / "one.png"
    with TinyServer() as server:
        bench(server, tmp_path, "--num-requests", "3", "--output-tokens", "2", "--png", str(png))
    assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_file_says_how_it_came_about(tmp_path: Path) -> None:
    flags = ("--num-requests", "2", "--api-key", "hidden", "--no-ignore-eos", "--extra", '{"n": 1}')
    with TinyServer() as server:
        assert main(["bench", "--url", server.url, *flags]) == 2  # n is not for extra
        bench(server, tmp_path, *flags[:-2], "--extra", '{"top_k": 5}')
    text = (tmp_path / "result.json").read_text()
    document = json.loads(text)
    assert "hidden" not in text
    assert server.seen[0].headers.count("Authorization: Bearer hidden") == 1
    assert document.keys() == {
        "format", "time", "command", "settings", "server", "generator", "loads"
    }  # fmt: skip
    assert document["server"] == {
        "model": "tiny", "max_model_len": None, "tokens_per_word": 2.0, "counts_tokens": True
    }  # fmt: skip
    assert "--num-requests 2 --no-ignore-eos --extra '{\"top_k\": 5}'" in document["command"]
    assert {"continuo", "python", "uvloop", "cpu", "cores"} <= document["generator"].keys()
    (load,) = document["loads"]
    assert load["ttft_ms"].keys() == {"count", "mean", "p50", "p90", "p99", "max"}


def test_a_key_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    with TinyServer() as server:
        bench(server, tmp_path, "--num-requests", "1", "--api-key", f"@{tmp_path / 'key'}")
    assert "Bearer from-file" in server.seen[0].headers


def test_refusals_are_counted_by_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def answer(server: TinyServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
        place = len(server.seen) % 4
        if place in (0, 1) and len(server.seen) > 3:
            status = (429, 503)[place]
            reply(writer, status, {"error": {"message": f"sentence {status}"}})
        else:
            await stream(server, seen, writer)

    with TinyServer(answer) as server:
        (load,) = bench(server, tmp_path, "--num-requests", "20", "--output-tokens", "2")
    assert load["failures"] == {"HTTP 429": 5, "HTTP 503": 5}
    assert load["completed"] == 10
    shown = capsys.readouterr().out
    assert "5 failed: HTTP 429 (sentence 429)" in shown
    assert "10 of 20" in shown


def test_a_load_of_failures_only_is_status_1(tmp_path: Path) -> None:
    async def answer(server: TinyServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if len(server.seen) == 1:
            await stream(server, seen, writer)
        else:
            reply(writer, 503, {})

    png = tmp_path / "empty.png"
    with TinyServer(answer) as server:
        (load,) = bench(server, tmp_path, "--num-requests", "3", "--png", str(png), status=1)
    assert load["ttft_ms"] is None
    assert png.exists()


def test_a_server_that_counts_no_tokens(tmp_path: Path) -> None:
    async def answer(server: TinyServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if "stream_options" in seen.body:
            reply(writer, 400, {"error": {"message": "no stream_options"}})
            return
        begin(writer)
        send(writer, token() + token() + token(finish="stop") + b"data: [DONE]\n\n")
        send(writer, b"")

    with TinyServer(answer) as server:
        (load,) = bench(server, tmp_path, "--num-requests", "2")
    assert load["tokens_counted_by"] == "events"
    assert load["output_tokens"] == 6
    assert any("events with text" in warning for warning in load["warnings"])


@pytest.mark.parametrize("mode", [{"rate": "500"}, {"concurrency": "3"}])
def test_a_fault_of_the_generator_is_not_a_servers(mode: dict[str, str]) -> None:
    config = BenchConfig(num_requests=20, **mode)  # type: ignore[arg-type]

    async def send(body: bytes, record: Record) -> None:
        raise ZeroDivisionError

    async def run() -> None:
        requests = Requests(config, ServerFacts("m", None, 1.0, True))
        generator = Generator(config, requests, send, asyncio.Event())
        (load,) = config.loads()
        await generator.run(load, 0, LoadRun(load))

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())


def sentence(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["bench", *flags]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    return line


def answer_with(status: int, message: str = "") -> Any:
    async def answer(server: TinyServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
        reply(writer, status, {"error": {"message": message}})

    return answer


def test_mistakes_are_sentences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not like http://" in sentence(capsys, "--url", "localhost:8000")
    assert "--url" in sentence(capsys, "--url", "http://host:port")
    assert "--url" in sentence(capsys, "--url", "http://a:b@host")
    assert "--url" in sentence(capsys, "--url", f"http://{'a' * 64}.org")
    assert "--api-key" in sentence(capsys, "--api-key", "a\r\nb: c")
    assert "--api-key" in sentence(capsys, "--api-key", f"@{tmp_path}/none")
    assert "--json" in sentence(capsys, "--json", f"{tmp_path}/none/a.json")
    with TinyServer(models=("a", "b")) as server:
        assert "'a', 'b'" in sentence(capsys, "--url", server.url, "--model", "c")
        url = server.url
    assert "connection refused" in sentence(capsys, "--url", url)
    with TinyServer() as server:
        seldom = ("--rate", "0.001", "--duration", "0.1")
        assert "--duration" in sentence(capsys, "--url", server.url, *seldom)
    with TinyServer(models=()) as server:
        assert "--model" in sentence(capsys, "--url", server.url)
    with TinyServer(answer_with(401, "no key")) as server:
        assert "HTTP 401: no key" in sentence(capsys, "--url", server.url)
    with TinyServer(answer_with(404)) as server:
        assert "--endpoint chat" in sentence(capsys, "--url", server.url)
    with TinyServer(answer_with(400, "ignore_eos?")) as server:
        assert "--no-ignore-eos" in sentence(capsys, "--url", server.url)
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)
    assert "continuo[bench]" in sentence(capsys, "--png", "a.png")


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    shown = capsys.readouterr().out
    for name in BenchConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in shown


@pytest.mark.parametrize("mode", [("--concurrency", "2"), ("--rate", "20")])
def test_ctrl_c_tells_what_was_measured(mode: tuple[str, str]) -> None:
    with TinyServer(gap_s=0.05) as server:
        command = [
            sys.executable,
            "-m",
            "server",
            "bench",
            "--url",
            server.url,
            "--output-tokens",
            "5",
        ]
        process = subprocess.Popen(
            [*command, *mode, "--num-requests", "100000"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while len(server.seen) < 12 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert err == ""
    assert "time to first token, p50, ms" in out
    assert "interrupted, and left out" in out


def test_ctrl_c_before_anything_was_measured() -> None:
    with TinyServer(first_s=30) as server:
        threading.Thread(target=_interrupt_when_seen, args=(server,)).start()
        assert main(["bench", "--url", server.url]) == 130


def _interrupt_when_seen(server: TinyServer) -> None:
    while not server.seen:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


def test_the_bar_on_a_terminal() -> None:
    master, slave = pty.openpty()
    run = LoadRun(Load("concurrency", 2), started_s=time.perf_counter())
    run.records = [
        Record(0, 2, 2, 1.0, 2.0, [1.5, 2.0]),
        Record(0, 2, 2, 1.0, 1.0, [], failure="interrupted"),
    ]

    async def follow(progress: Progress) -> None:
        following = asyncio.ensure_future(progress.follow(run))
        await asyncio.sleep(0.5)
        following.cancel()
        await asyncio.wait({following})

    with os.fdopen(slave, "w") as terminal:
        asyncio.run(follow(Progress(terminal, BenchConfig(num_requests=4))))
    shown = _all_of(master).decode()
    assert "2 in flight  [######" in shown
    assert "25%  1 done, 1 in flight, 0 failed" in shown
    assert shown.endswith("\r\x1b[K")


def _all_of(master: int) -> bytes:
    """The kernel hands on what was written when it likes, so one read may not bring it all."""
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed, and nothing is left
        while part := os.read(master, 10_000):
            shown += part
    os.close(master)
    return shown


def test_no_bar_where_no_terminal_is() -> None:
    stream_ = io.StringIO()
    asyncio.run(Progress(stream_, BenchConfig()).follow(LoadRun(Load("rate", 1))))
    assert stream_.getvalue() == ""
