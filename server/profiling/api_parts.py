"""What is timed in an api process, from the engine's frame to the socket. Imports no torch."""

from __future__ import annotations

from typing import Any

from server.api.engine_client import EngineClient
from server.api.generation import Turn
from server.api.http.http_protocol import BodyWriter
from server.api.http.serving_protocol import ServingHttpProtocol
from server.api.reply.choice_stream import ChoiceStream
from server.api.reply.event_maker import EventMaker
from server.api.reply.event_stream import EventStream
from server.api.reply.run import Run
from server.api.reply.sse import EventWriter
from server.ipc import client
from server.profiling.parts import Part
from server.profiling.recorder import Patch, offer
from server.profiling.ring import SpanRing

_RECEIVED = "_profiled_data_received"


def offer_profile(fd: int) -> None:
    """To be called before the engine is connected to."""
    protocol = vars(client)["_Protocol"]
    _look_up_each_time(protocol, "data_received", _RECEIVED)
    offer(SpanRing(fd), api_patches(protocol))


def api_patches(protocol: Any) -> list[Patch]:
    """`protocol`: that of the connection to the engine."""
    return [
        Patch(protocol, _RECEIVED, Part.DECODE),
        Patch(EngineClient, "_on_output", Part.ROUTE),
        Patch(EngineClient, "_pump", Part.ROUTE),
        Patch(Turn, "_run", Part.READERS),
        Patch(EventStream, "_read", Part.STREAM),
        Patch(EventMaker, "take", Part.STREAM),
        Patch(Run, "take", Part.CHOICES),
        Patch(ChoiceStream, "push", Part.TEXT),
        Patch(EventWriter, "event", Part.SSE),
        Patch(EventWriter, "usage_event", Part.SSE),
        Patch(BodyWriter, "write", Part.WRITE),
        Patch(ServingHttpProtocol, "data_received", Part.HTTP),
    ]


def _look_up_each_time(protocol: Any, name: str, through: str) -> None:
    """uvloop keeps the bound method of a connection, and the engine's stays for the process's life: a call
    more for each frame, also while no spans are taken."""
    setattr(protocol, through, vars(protocol)[name])

    def data_received(self: Any, data: bytes) -> None:
        self._profiled_data_received(data)

    setattr(protocol, name, data_received)
