"""What a server writes when all goes wrong: still no prompt, path, address, key or traceback."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from server.api_keys import make_key
from tests.clean_output import leaks_in
from tests.serving import Server
from tests.surface.exercise import BAD, CANARY, COMPLETIONS, GOOD, PAGES, RAW, STRUCTURED, exercise
from tests.waiting import wait_for


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nobodys_words_are_in_the_log(
    tiny_model_dir: Path, tmp_path: Path, log_format: str
) -> None:
    """Requests right and wrong, processes that die in the midst of them, keys right and wrong."""
    keys = tmp_path / "keys"
    keys.touch(0o600)
    key, line = make_key("ann", "infer,metrics")
    keys.write_text(line)
    server = Server(tiny_model_dir, "--log-format", log_format, "--api-key-file", str(keys))
    try:
        server.wait_ready()
        server.client.headers["Authorization"] = f"Bearer {CANARY}"
        assert {status for status, _ in exercise(server.client)} == {401}
        server.client.headers["Authorization"] = f"Bearer {key}"
        for page in PAGES:
            assert server.client.get(page).status_code == 200
        assert len(exercise(server.client)) == len(GOOD) + len(BAD) + len(RAW)
        _kill_amid_a_stream(server, "engine 0", signal.SIGABRT)
        keys.write_text(f"{CANARY} {CANARY}\n")  # the keys before stay in force
        wait_for(lambda: "line 1" in server.stderr or not _touch(server), "the file is read again")
        _kill_amid_a_stream(server, "engine 0", signal.SIGSEGV)
    finally:
        stderr = server.stderr
        server.clean_up()
    assert stderr.count("status=200") + stderr.count('"status": 200') >= len(GOOD)
    assert stderr.count("SIGABRT") == stderr.count("SIGSEGV") == 1, stderr
    assert CANARY not in stderr
    assert key not in stderr


def _touch(server: Server) -> bool:
    return server.client.get("/v1/models").status_code == 200


def _kill_amid_a_stream(server: Server, title: str, number: signal.Signals) -> None:
    pid = server.await_pid(title)
    long = {"max_tokens": 2000, "ignore_eos": True}
    for more in (long, {"max_tokens": 60, **STRUCTURED}):
        body = {"prompt": CANARY, "stream": True, **more}
        with server.client.stream("POST", COMPLETIONS, json=body) as got:
            lines = got.iter_lines()
            assert next(lines).startswith("data: ")
            if more is long:
                os.kill(pid, number)
            assert [line for line in lines if line][-1] == "data: [DONE]"


def test_an_engine_that_fails_says_where_not_what(tiny_model_dir: Path) -> None:
    """An exception in each start, with words of its own, until the supervisor gives up."""
    server = Server(tiny_model_dir, module="tests.surface.failing")
    try:
        assert server.process.wait(60) == 1
    finally:
        stderr = server.stderr
        server.clean_up()
    assert stderr.count("engine 0 failed: ValueError") == 10  # its own line, and the supervisor's
    assert "failed: ValueError in tests.surface.failing, line " in stderr
    assert CANARY not in stderr
    assert leaks_in(stderr, [str(tiny_model_dir)]) == []
