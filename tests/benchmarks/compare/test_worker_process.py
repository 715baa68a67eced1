"""A worker's other end, with workers that answer, fail, die and hang: each is ended, and told."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.compare.worker import measure, serve
from benchmarks.compare.worker_process import PeerError, WorkerProcess

_READY = "import sys, time, os\nprint('{\"ready\": true}', flush=True)\n"
_ECHO = _READY + "for line in sys.stdin: print(line.strip(), flush=True)\n"


def start(code: str, folder: Path, load_s: float = 30) -> WorkerProcess:
    return WorkerProcess([sys.executable, "-c", code], folder / "log", load_s)


def state_of(worker: WorkerProcess) -> str:
    """T: stopped."""
    pid = worker._process.pid
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until_stopped(worker: WorkerProcess) -> None:
    while state_of(worker) != "T":
        time.sleep(0.001)


def test_a_worker_answers_and_is_stopped_in_between(tmp_path: Path) -> None:
    worker = start(_ECHO, tmp_path)
    wait_until_stopped(worker)
    for number in (1, 2):
        assert worker.ask({"n": number}, 30) == {"n": number}
        wait_until_stopped(worker)
    pid = worker._process.pid
    worker.end()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ('print(\'{"missing": "no such form"}\')', "no such form"),
        ("raise SystemExit(3)", "ended with status 3"),
    ],
)
def test_one_that_cannot_load_says_why(tmp_path: Path, code: str, said: str) -> None:
    with pytest.raises(PeerError, match=said):
        start(code, tmp_path)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (_READY + 'sys.stdin.readline(); print(\'{"failed": "boom"}\', flush=True)', "boom"),
        (_READY + "sys.stdin.readline(); os._exit(7)", "ended with status 7"),
        (_READY + "sys.stdin.readline(); time.sleep(600)", "did not answer within 1 s"),
    ],
)
def test_one_that_fails_dies_or_hangs_is_ended(tmp_path: Path, code: str, said: str) -> None:
    worker = start(code, tmp_path)
    with pytest.raises(PeerError, match=said):
        worker.ask({}, 1)
    assert worker._process.poll() is not None


def test_an_engine_that_is_unknown_is_a_reason_and_not_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.compare.worker", "none", "model", "form", "2", "8"]
    with pytest.raises(PeerError, match="no such engine: none"):
        WorkerProcess(command, tmp_path / "log", 60)


def test_a_worker_has_an_answer_for_every_job() -> None:
    """An engine that raises has failed at that job; whatever it raises is one short line."""

    def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        if num_tokens == 9:
            raise ValueError("too\nmany " + "x" * 300)
        return [prompt[:1] * num_tokens for prompt in prompts]

    job = {"prompts": [[1, 2], [3, 4]], "first_prompts": [[5], [6]]}
    jobs = [json.dumps({**job, "num_tokens": num_tokens}) for num_tokens in (2, 9, 1)]
    replies = io.StringIO()
    serve(lambda job: measure(generate, job), jobs, replies)
    first, failed, last = map(json.loads, replies.getvalue().splitlines())
    assert first["outputs"] == [[1, 1], [3, 3]] and last["outputs"] == [[1], [3]]
    assert first["first_s"] >= 0 and first["seconds"] >= 0
    assert failed["failed"].startswith("ValueError: too many xxx") and len(failed["failed"]) == 160
