"""The engine's end of its connections, in the place of EngineServer. Real frames, no socket."""

from __future__ import annotations

import msgspec

from server.ipc.frames import Abort, EngineInfo, StepOutput, Submit, ToApi, ToEngine, Welcome
from server.ipc.wire import FrameReader, with_header
from server.sequence import Death, SequenceKey
from tests.simulation.pipe import Connection

Event = tuple[int, "ToEngine | None"]


class SimServer:
    """Checks I10 on the way: nothing of a sequence follows its abort."""

    def __init__(self, info: EngineInfo, life: int, deaths: list[Death]) -> None:
        self._welcome = Welcome(info, life, 0, deaths)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(ToEngine).decode
        self._connections: dict[int, Connection] = {}
        self._readers: dict[int, FrameReader] = {}
        self.owner_of: dict[Connection, int] = {}
        self._aborted: set[SequenceKey] = set()
        self.events: list[Event] = []
        self.timeout_s = 0.0  # of the last poll
        self.is_to_die_sending = False  # in the middle of the next frame

    @property
    def owners(self) -> tuple[int, ...]:
        return tuple(self._connections)

    def accept(self, connection: Connection) -> None:
        owner = len(self.owner_of)
        self.owner_of[connection] = owner
        self._connections[owner] = connection
        self._readers[owner] = FrameReader()
        welcome = msgspec.structs.replace(self._welcome, owner=owner)
        connection.to_api.send(with_header(self._encode(welcome)))

    def receive(self, connection: Connection, data: bytes | None) -> None:
        owner = self.owner_of[connection]
        if owner not in self._connections:
            return
        if data is None:
            del self._connections[owner]
            self.events.append((owner, None))
            return
        for payload in self._readers[owner].feed(data):
            self.events.append((owner, self._decode(payload)))

    def poll(self, timeout_s: float) -> list[Event]:
        self.timeout_s = timeout_s
        events, self.events = self.events, []
        for owner, frame in events:
            if isinstance(frame, Submit):
                for request in frame.sequences:
                    self._aborted.discard((owner, request.seq_id))
            elif isinstance(frame, Abort):
                self._aborted.update((owner, seq_id) for seq_id in frame.seq_ids)
        return events

    def send(self, owner: int, frame: ToApi) -> None:
        connection = self._connections.get(owner)
        if connection is None:
            return
        assert isinstance(frame, StepOutput)
        if self._aborted:
            for output in frame.outputs:
                assert (owner, output.seq_id) not in self._aborted, "I10: an output after the abort"
        data = with_header(self._encode(frame))
        if self.is_to_die_sending:
            connection.to_api.send_part(data)
            raise Killed
        connection.to_api.send(data, can_swap=not frame.prompt_logprobs)

    def disconnect(self, owner: int) -> None:
        connection = self._connections.pop(owner, None)
        if connection is not None:
            connection.drop()
            self.events.append((owner, None))

    def close(self) -> None:
        for connection in self._connections.values():
            connection.drop()
        self._connections = {}

    def drop_one(self, index: int) -> None:
        """A connection breaks that nobody has closed."""
        connections = list(self._connections.values())
        if connections:
            connections[index % len(connections)].drop()


class Killed(Exception):
    """The process ends here, by a signal from outside."""
