"""The engine's end against raw sockets: what a peer can do wrong ends that peer alone."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator

import msgspec
import pytest

from server.ipc.frames import Abort, StepOutput, Submit, ToApi, ToEngine, Welcome
from server.ipc.server import EngineServer, Event
from server.ipc.wire import MAX_FRAME_BYTES, FrameReader, with_header
from server.sequence import (
    Death,
    FirstOutput,
    PromptLogprobs,
    SequenceFailure,
    SequenceOutput,
    TokenLogprobs,
)
from tests.ipc.conftest import INFO, STATS, sequence


class Peer:
    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(5)
        self.sock.connect(path)
        self._reader = FrameReader()
        self._frames: list[ToApi] = []

    def send(self, frame: ToEngine) -> None:
        self.sock.sendall(with_header(msgspec.msgpack.encode(frame)))

    def receive(self) -> ToApi:
        while not self._frames:
            data = self.sock.recv(1 << 16)
            assert data, "the server hung up"
            payloads = self._reader.feed(data)
            self._frames += [msgspec.msgpack.decode(each, type=ToApi) for each in payloads]
        return self._frames.pop(0)

    def is_hung_up(self) -> bool:
        try:
            while self.sock.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        return True


@pytest.fixture
def server(socket_path: str) -> Iterator[EngineServer]:
    server = EngineServer(socket_path, INFO, max_buffered_bytes=1 << 20)
    yield server
    server.close()


@pytest.fixture
def connect(server: EngineServer, socket_path: str) -> Iterator[Callable[[], Peer]]:
    peers: list[Peer] = []

    def new() -> Peer:
        peers.append(Peer(socket_path))
        server.poll(5)
        return peers[-1]

    yield new
    for peer in peers:
        peer.sock.close()


def poll_until(server: EngineServer, num_events: int) -> list[Event]:
    events: list[Event] = []
    for _ in range(1000):
        if len(events) >= num_events:
            return events
        events += server.poll(5)
    raise AssertionError("the events did not come")


def test_the_socket_is_private_and_removed_at_the_end(
    server: EngineServer, socket_path: str
) -> None:
    assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o600
    server.close()
    assert not os.path.exists(socket_path)


def test_a_socket_left_by_a_killed_engine_is_replaced(socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(socket_path)
    EngineServer(socket_path, INFO).close()


def test_frames_go_both_ways_unchanged(server: EngineServer, connect: Callable[[], Peer]) -> None:
    peer = connect()
    assert peer.receive() == Welcome(INFO)
    submit, abort = Submit([sequence(1), sequence(2)]), Abort([1])
    peer.send(submit)
    peer.send(abort)
    assert poll_until(server, 2) == [(0, submit), (0, abort)]
    logprobs = TokenLogprobs(-0.1, 1, [7, 9], [-0.1, float("-inf")])
    output = SequenceOutput(1, [7], [logprobs], "stop", 7, FirstOutput(16, 0.25))
    chunk = PromptLogprobs(1, 3, 0, b"\0\0\x80\xbf", b"\1\0\0\0", b"", b"")
    step = StepOutput([output], STATS, [chunk], [SequenceFailure(2, "internal")])
    server.send(0, step)
    assert peer.receive() == step


def test_each_connection_learns_its_number_and_how_engines_died(socket_path: str) -> None:
    deaths = [Death(1, True, "SIGSEGV", [(0, 7), (1, 2**40)]), Death(2, False, "SIGKILL", [])]
    server = EngineServer(socket_path, INFO, engine=3, deaths=deaths)
    peers: list[Peer] = []
    for owner in range(3):
        peers.append(Peer(socket_path))
        server.poll(5)
        assert peers[-1].receive() == Welcome(INFO, 3, owner, deaths)
        if owner == 1:
            server.disconnect(0)
    server.close()
    for peer in peers:
        peer.sock.close()


def test_owners_are_never_reused(server: EngineServer, connect: Callable[[], Peer]) -> None:
    first = connect()
    connect()
    assert server.owners == (0, 1)
    first.sock.close()
    assert poll_until(server, 1) == [(0, None)]
    connect()
    assert server.owners == (1, 2)
    server.send(0, StepOutput([], STATS))  # to one that is gone: nothing happens


@pytest.mark.parametrize(
    "data",
    [
        with_header(b"garbage"),
        with_header(b""),
        with_header(msgspec.msgpack.encode(["submit", [{"seq_id": "one"}]])),
        with_header(msgspec.msgpack.encode(["welcome", {}])),
        with_header(msgspec.msgpack.encode(["unknown"])),
        with_header(b"\x92\xa6submit" + b"\x91" * 100_000),
        with_header(b"\x92\xa5abort\xdd\xff\xff\xff\xff"),
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
    ],
)
def test_a_bad_frame_ends_its_connection_only(
    server: EngineServer, connect: Callable[[], Peer], data: bytes
) -> None:
    good, bad = connect(), connect()
    bad.sock.sendall(data)
    assert poll_until(server, 1) == [(1, None)]
    assert bad.is_hung_up()
    good.send(Abort([5]))
    assert poll_until(server, 1) == [(0, Abort([5]))]


def test_a_truncated_frame_holds_up_nobody(
    server: EngineServer, connect: Callable[[], Peer]
) -> None:
    good, half_open = connect(), connect()
    half_open.sock.sendall(with_header(b"12345678")[:-1])
    good.send(Abort([5]))
    assert poll_until(server, 1) == [(0, Abort([5]))]
    half_open.sock.close()
    assert poll_until(server, 1) == [(1, None)]


def test_a_frame_may_arrive_in_pieces(server: EngineServer, connect: Callable[[], Peer]) -> None:
    peer = connect()
    data = with_header(msgspec.msgpack.encode(Abort([5])))
    for i in range(len(data) - 1):
        peer.sock.sendall(data[i : i + 1])
        assert server.poll(0) == []
    peer.sock.sendall(data[-1:])
    assert poll_until(server, 1) == [(0, Abort([5]))]


def test_a_peer_that_does_not_read_is_disconnected(
    server: EngineServer, connect: Callable[[], Peer]
) -> None:
    reading, _stalled = connect(), connect()
    assert isinstance(reading.receive(), Welcome)
    step = StepOutput([SequenceOutput(i, [i], None, None, None, None) for i in range(500)], STATS)
    for _ in range(1000):
        if 1 not in server.owners:
            break
        for owner in server.owners:
            server.send(owner, step)
        assert reading.receive() == step
    assert (1, None) in server.poll(0)
    assert server.owners == (0,)


def test_what_did_not_fit_into_the_socket_is_sent_later(
    server: EngineServer, connect: Callable[[], Peer]
) -> None:
    peer = connect()
    step = StepOutput([SequenceOutput(i, [i], None, None, None, None) for i in range(500)], STATS)
    for _ in range(60):  # beyond a Unix socket's buffer, below the limit
        server.send(0, step)
    assert peer.receive() == Welcome(INFO)
    for _ in range(60):
        server.poll(0)
        assert peer.receive() == step


def test_an_output_too_large_for_one_frame_arrives_in_several(
    server: EngineServer, connect: Callable[[], Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.ipc.server.MAX_FRAME_BYTES", 2000)
    peer = connect()
    outputs = [SequenceOutput(i, [i], None, None, None, None) for i in range(500)]
    server.send(0, StepOutput(outputs, STATS))
    assert peer.receive() == Welcome(INFO)
    received: list[SequenceOutput] = []
    while len(received) < 500:
        frame = peer.receive()
        assert isinstance(frame, StepOutput)
        received += frame.outputs
    assert received == outputs


def test_what_waits_for_all_together_is_bounded_and_who_has_most_goes(
    server: EngineServer, connect: Callable[[], Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither reads; the second one is sent twice as much."""
    monkeypatch.setattr(server, "_max_buffered_bytes", 200_000)
    connect(), connect()
    step = StepOutput([SequenceOutput(i, [i], None, None, None, None) for i in range(500)], STATS)
    for _ in range(1000):
        if len(server.owners) < 2:
            break
        for owner in (0, 1, 1):
            server.send(owner, step)
        assert server.num_unsent_bytes <= 200_000
    assert server.owners == (0,)


def test_a_frame_that_has_not_come_whole_is_counted(
    server: EngineServer, connect: Callable[[], Peer]
) -> None:
    peer = connect()
    data = with_header(msgspec.msgpack.encode(Abort([5] * 100)))
    peer.sock.sendall(data[:-1])
    assert server.poll(1) == []
    assert server.num_received_bytes == len(data) - 1
    peer.sock.sendall(data[-1:])
    assert poll_until(server, 1) == [(0, Abort([5] * 100))]
    assert server.num_received_bytes == 0
