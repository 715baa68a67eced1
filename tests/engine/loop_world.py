"""The loop over a real Unix socket, driven turn by turn, and an api's end of it."""

from __future__ import annotations

import socket

import msgspec

from server.board import Board
from server.engine.loop import EngineLoop
from server.ipc.frames import Abort, EngineInfo, StepOutput, Submit, ToApi, Welcome
from server.ipc.server import EngineServer, Event
from server.ipc.wire import FrameReader, with_header
from server.sequence import SequenceFailure, SequenceOutput
from tests.engine.rig import Rig, Size

INFO = EngineInfo(64, 8, 8, 4, 64, "fake", "none", "fp_fake")


class Client:
    """An api's end, blocking."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(path)
        self.sock.settimeout(5)
        self._reader = FrameReader()
        self._decoder: msgspec.msgpack.Decoder[ToApi] = msgspec.msgpack.Decoder(ToApi)

    def send(self, frame: Submit | Abort) -> None:
        self.sock.sendall(with_header(msgspec.msgpack.encode(frame)))

    def receive(self) -> list[ToApi]:
        """What has arrived; empty once the engine has ended the connection."""
        data = self.sock.recv(1 << 20)
        return [self._decoder.decode(payload) for payload in self._reader.feed(data)]


class QuickServer(EngineServer):
    """What was sent is there, so an idle turn need not wait for it."""

    def poll(self, timeout_s: float) -> list[Event]:
        return super().poll(0.0)


class World:
    def __init__(self, path: str, max_steps_in_flight: int = 1, board: Board | None = None) -> None:
        self.path = path
        self.now_s = 0.0
        self.rig = Rig(Size().with_depth(max_steps_in_flight), board=board)
        self.server = QuickServer(path, INFO)
        self.loop = EngineLoop(self.rig.engine, self.server, lambda: self.now_s, board)
        self.clients: list[Client] = []

    def connect(self) -> Client:
        client = Client(self.path)
        self.clients.append(client)
        self.loop.turn()
        assert isinstance(client.receive()[0], Welcome)
        return client

    def turns(self, num_turns: int) -> None:
        for _ in range(num_turns):
            self.loop.turn()

    def close(self) -> None:
        for client in self.clients:
            client.sock.close()
        self.server.close()


def outputs(frames: list[ToApi]) -> list[SequenceOutput]:
    return [o for frame in frames if isinstance(frame, StepOutput) for o in frame.outputs]


def tokens(frames: list[ToApi], seq_id: int) -> list[int]:
    return [t for o in outputs(frames) if o.seq_id == seq_id for t in o.token_ids]


def failures(frames: list[ToApi]) -> list[SequenceFailure]:
    return [f for frame in frames if isinstance(frame, StepOutput) for f in frame.failures]
