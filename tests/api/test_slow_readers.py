"""Clients that do not read, over real sockets: they hold nothing of the engine and little of the server, lose
nothing if they read on, and are cut off if they take nothing for long."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator

import pytest

from server.api.http import slow_readers
from server.api.kept import resumable_stream
from server.api.reply import event_stream
from tests.api.conftest import wait_until
from tests.api.slow_rig import (
    KERNEL_BYTES,
    MAX_TOKENS,
    SlowRig,
    read_all,
    slow_rig,
    text_of,
    texts_of,
)
from tests.api.test_disconnect import reset

NEVER_S = 1e6


@pytest.fixture(scope="module")
def the_rig() -> Iterator[SlowRig]:
    with slow_rig() as rig:
        yield rig


@pytest.fixture
def rig(the_rig: SlowRig) -> Iterator[SlowRig]:
    the_rig.engine.tokens_per_step = 1
    yield the_rig
    wait_until(lambda: the_rig.value("continuo:open_sequences") == 0)
    assert the_rig.engine.num_running == 0
    assert the_rig.value("continuo:parked_streams") == 0
    assert the_rig.value("continuo:queue_bytes", queue="unread_outputs") == 0


@pytest.fixture
def is_cut_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_readers, "CUT_AFTER_S", 2.0)


@pytest.mark.parametrize("park_after_s", [0.05, NEVER_S])
def test_who_does_not_read_is_parked_and_reads_the_same_later(
    rig: SlowRig, monkeypatch: pytest.MonkeyPatch, park_after_s: float
) -> None:
    """By time, or by what waits."""
    monkeypatch.setattr(event_stream, "PARK_AFTER_S", park_after_s)
    num_parks = rig.value("continuo:parks_total")
    prompts = [f"number {index}" for index in range(4)]
    socks = [rig.ask(prompt=prompt, max_tokens=700, n=2) for prompt in prompts]
    rig.wait_parked(4)
    assert rig.engine.num_running == 0
    assert rig.value("continuo:queue_bytes", queue="unread_outputs") < 4 * (64 << 10)
    beside = rig.ask(prompt="beside", max_tokens=300)
    assert texts_of(read_all(beside)) == [text_of("beside", 300)]
    for sock, prompt in zip(socks, prompts, strict=True):
        texts = texts_of(read_all(sock), 2)
        assert texts == [text_of(prompt, 700, choice) for choice in range(2)]
    assert rig.value("continuo:parks_total") >= num_parks + 4


@pytest.mark.parametrize("hang_up", [socket.socket.close, reset])
def test_who_hangs_up_while_parked_leaves_nothing(
    rig: SlowRig, monkeypatch: pytest.MonkeyPatch, hang_up: object
) -> None:
    monkeypatch.setattr(event_stream, "PARK_AFTER_S", 0.05)
    socks = [rig.ask(max_tokens=MAX_TOKENS, n=3) for _ in range(4)]
    rig.wait_parked(4)
    num_submitted = len(rig.engine.submitted)
    for sock in socks:
        hang_up(sock)  # type: ignore[operator]
    wait_until(lambda: rig.value("continuo:open_sequences") == 0)
    assert len(rig.engine.submitted) == num_submitted  # they did not come back for that


def test_an_engine_that_dies_meanwhile_is_not_asked_for_them(
    rig: SlowRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "PARK_AFTER_S", 0.05)
    sock = rig.ask(max_tokens=MAX_TOKENS)
    rig.wait_parked(1)
    rig.engine.submitted.clear()
    rig.engine.kill()
    rig.engine.start()
    assert texts_of(read_all(rig.ask(prompt="beside", max_tokens=9))) == [text_of("beside", 9)]
    assert len(rig.engine.submitted) == 1
    assert texts_of(read_all(sock)) == [text_of("Hi", MAX_TOKENS)]


def test_who_takes_nothing_for_long_is_cut_off(
    rig: SlowRig,
    monkeypatch: pytest.MonkeyPatch,
    is_cut_soon: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "server.api.http.request_log")
    monkeypatch.setattr(event_stream, "PARK_AFTER_S", 0.05)
    num_closed = rig.value("continuo:slow_readers_closed_total")
    sock = rig.ask(max_tokens=MAX_TOKENS)
    rig.wait_parked(1)
    wait_until(lambda: rig.value("continuo:slow_readers_closed_total") == num_closed + 1)
    wait_until(lambda: rig.value("continuo:open_sequences") == 0)
    with pytest.raises(ConnectionResetError):
        read_all(sock)
    wait_until(lambda: any("code=slow_reader" in line for line in caplog.messages))
    sock.close()


def test_who_takes_a_little_now_and_then_is_not(
    rig: SlowRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "PARK_AFTER_S", 0.05)
    monkeypatch.setattr(slow_readers, "CUT_AFTER_S", 5.0)
    sock = rig.ask(max_tokens=MAX_TOKENS)
    received = b""
    for _ in range(8):  # as much of its kernel's buffer as makes that ask for more
        received += sock.recv(KERNEL_BYTES, socket.MSG_WAITALL)
        time.sleep(slow_readers.CUT_AFTER_S / 5)
    assert texts_of(received + read_all(sock)) == [text_of("Hi", MAX_TOKENS)]


@pytest.mark.parametrize("headers", ["", "Idempotency-Key: %d\r\n"])
def test_a_plain_reply_that_nobody_takes_is_cut_off(
    rig: SlowRig, is_cut_soon: None, headers: str
) -> None:
    """Its sequences have ended long before."""
    num_closed = rig.value("continuo:slow_readers_closed_total")
    headers = headers % time.monotonic_ns() if headers else ""
    rig.engine.tokens_per_step = 50
    fields = {"stream": False, "max_tokens": MAX_TOKENS, "logprobs": 3}
    slow, sock = (rig.ask(headers, **fields) for _ in range(2))  # type: ignore[arg-type]
    wait_until(lambda: rig.value("continuo:slow_readers_closed_total") == num_closed + 2)
    for each in (slow, sock):
        with pytest.raises(ConnectionResetError):
            read_all(each)
        each.close()
    whole = read_all(rig.ask(headers, **fields))  # type: ignore[arg-type]
    assert whole.startswith(b"HTTP/1.1 200 OK")


def test_so_is_the_end_of_one_that_is_closed_already(rig: SlowRig, is_cut_soon: None) -> None:
    """Less than what would pause its writer: nobody waits for it any more."""
    num_closed = rig.value("continuo:slow_readers_closed_total")
    rig.engine.tokens_per_step = 50
    sock = rig.ask(stream=False, max_tokens=1_000, n=80)  # 96 KiB, of which the kernel takes some
    wait_until(lambda: rig.value("continuo:slow_readers_closed_total") == num_closed + 1)
    sock.close()


def test_a_resumable_stream_waits_outside_the_engine_while_its_ring_is_full(
    rig: SlowRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable_stream, "RING_BYTES", 50_000)
    prompts = [f"number {index}" for index in range(2)]
    options = {"resumable": True}
    socks = [rig.ask(prompt=p, max_tokens=MAX_TOKENS, stream_options=options) for p in prompts]
    rig.wait_parked(2)
    assert rig.engine.num_running == 0
    for sock, prompt in zip(socks, prompts, strict=True):
        assert texts_of(read_all(sock)) == [text_of(prompt, MAX_TOKENS)]


def test_a_resumable_stream_goes_on_without_the_reader_that_was_cut_off(
    rig: SlowRig, monkeypatch: pytest.MonkeyPatch, is_cut_soon: None
) -> None:
    monkeypatch.setattr(resumable_stream, "RING_BYTES", 400_000)
    monkeypatch.setattr(resumable_stream, "PARK_AFTER_S", 0.2)
    num_closed = rig.value("continuo:slow_readers_closed_total")
    headers = "Idempotency-Key: cut\r\n"
    sock = rig.ask(headers, max_tokens=1000)
    wait_until(lambda: rig.value("continuo:slow_readers_closed_total") == num_closed + 1)
    assert texts_of(read_all(rig.ask(headers, max_tokens=1000))) == [text_of("Hi", 1000)]
    sock.close()
