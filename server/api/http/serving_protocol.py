"""The HTTP protocol that is served: uvicorn's, with its own reading of requests, by our limits of bytes and
time, and our words where uvicorn would use its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from server.api.http.arrivals import (
    ARRIVAL,
    REQUEST_BYTES,
    SMALL_HEAD_BYTES,
    Arrival,
    Releasing,
    release,
)
from server.api.http.connections import Connection, Connections
from server.api.http.deadline import Deadline
from server.api.http.gentle_transport import GentleTransport
from server.api.http.heads import Framing, check_headers, target_authority
from server.api.http.http_protocol import StreamingHttpProtocol
from server.api.http.refusals import (
    LARGE_HEADERS,
    NOT_HTTP,
    TOO_MANY_BYTES,
    TOO_MANY_CONNECTIONS,
    TOO_MUCH_PIPELINED,
    TOO_SLOW,
    Refusal,
    Refused,
    refusal_bytes,
)
from server.api.http.request_id import REQUEST_ID, request_id_of
from server.api.http.request_reader import RequestReader
from server.faults import log_fault


class ServingHttpProtocol(StreamingHttpProtocol):
    def __init__(
        self,
        *args: Any,
        connections: Connections,
        behind: Connection | None = None,
        **kwargs: Any,
    ) -> None:
        """`behind`: who had this connection's place until it is made."""
        super().__init__(*args, **kwargs)
        self.app = Releasing(self.app)
        self._behind = behind
        self._all = connections
        self._limits = connections.limits
        self._reader = RequestReader(self, self._limits)
        self._deadline = Deadline(self.loop, self._on_overdue, lambda: self.flow.read_paused)
        self._gentle: GentleTransport = None  # type: ignore[assignment]
        self._framing: Framing | None = None  # of the head that has just come whole
        self._is_unfinished = False  # bytes have come of a request that has not come whole
        self._arrival: Arrival | None = None  # of the request whose head came last
        self._num_unfinished = 0  # as the sum over all connections has them
        self._waiting_bytes: deque[int] = deque()  # of the requests in the pipeline, in its order
        self._may_keep_alive = True  # behind the request that is being received
        self._is_deaf = False  # whatever comes is passed over
        self._deferred: bytes | None = None  # a refusal, for when all before it is answered
        self._is_counted_refusing = False

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._gentle = GentleTransport(transport, self.loop, self._limits)
        if self._behind is not None:
            self._all.leave(self._behind)
        if self._all.admit(self, self.loop.time()):
            self._deadline.set(self._limits.silent_s)
            return
        self._is_deaf = True
        self._is_counted_refusing = self._all.may_explain()
        if self._is_counted_refusing:
            self._refuse(TOO_MANY_CONNECTIONS)
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        self._gentle.cancel()
        self._count_unfinished(0)
        self._waiting_bytes.clear()
        self._all.leave(self)
        for cycle, _ in self.pipeline:  # which nobody will be asked to answer
            release(cycle.scope)
        if self._is_counted_refusing:
            self._all.has_explained()
        self._unset_keepalive_if_required()  # uvicorn keeps it where there was a reset
        super().connection_lost(exc)

    @property
    def num_unsent_bytes(self) -> int:
        return self.flow.connection.num_unsent_bytes

    def evict(self) -> None:
        """A new connection needs its place; nobody is served on this one."""
        self._is_deaf = True
        self._deadline.cancel()
        self.transport.abort()

    def shutdown(self) -> None:
        self._may_keep_alive = False
        super().shutdown()

    def _on_overdue(self) -> None:
        if not self._reader.is_between:
            self._refuse(TOO_SLOW)
        elif not (self._is_answering() or self.transport.is_closing()):
            self._all.refused["silence"] += 1
            self._is_deaf = True
            self.transport.close()

    # Bytes

    def data_received(self, data: bytes) -> None:
        if self._is_deaf or self._gentle.has_ended:
            self._pass_over(len(data))
            return
        if self._reader.is_between:
            data = data.lstrip(b"\r\n")  # RFC 9112, section 2.2; they begin nothing
            if not data:
                return
            self._unset_keepalive_if_required()
            self._all.on_bytes(self)
        try:
            at = 0
            while at < len(data) and not self._is_deaf:
                at = self._take(data, at)
        except Refused as refused:
            self._refuse(refused.refusal)
        except httptools.HttpParserError as error:
            cause = error.__context__
            if cause is not None and not isinstance(cause, httptools.HttpParserError):
                log_fault("the head of a request could not be taken", cause)
            self._refuse(NOT_HTTP)
        else:
            if not self._reader.is_between:
                self._note_unfinished()

    def _take(self, data: bytes, at: int) -> int:
        reader = self._reader
        if reader.is_between:
            while at < len(data) and data[at] in b"\r\n":
                at += 1
            if at == len(data):
                return at
            if len(self.pipeline) >= self._limits.max_waiting_requests:
                self._stop_behind(self.pipeline[0][0])
                return len(data)
            self.parser = httptools.HttpRequestParser(self)
        return reader.take(data, at)

    def _stop_behind(self, cycle: RequestResponseCycle) -> None:
        """The connection ends with its response; the client may send the rest again."""
        self._all.refused["pipeline"] += 1
        cycle.keep_alive = False
        self._is_deaf = True
        self._be_gentle()

    def _pass_over(self, num_bytes: int) -> None:
        """Somebody still sends, and must have the time to read our answers nevertheless."""
        self._be_gentle()
        if not self._gentle.pass_over(num_bytes):
            self.transport.abort()

    def _be_gentle(self) -> None:
        for cycle in self._cycles:
            cycle.transport = cast(asyncio.Transport, self._gentle)

    def _note_unfinished(self) -> None:
        """The slow path: a request that comes in one piece never gets here."""
        if not self._is_unfinished:
            self._is_unfinished = True
            self._deadline.set(self._limits.receive_s)
            if not self._is_answering():
                self._all.on_unfinished(self, self.loop.time())
        if self._reader.has_head:  # its response may end before its body has come
            self.cycle.transport = cast(asyncio.Transport, self._gentle)
        self._count_unfinished(self._reader.num_bytes)
        if self._all.num_request_bytes > self._limits.max_request_bytes:
            self._refuse(TOO_MANY_BYTES)

    def _arrival_of(self, framing: Framing) -> Arrival:
        """A small request without a body, the first on its connection, belongs to what a connection costs: a
        probe is answered whatever else arrives."""
        num_head_bytes = self._reader.num_head_bytes
        has_body = framing.is_chunked or framing.length > 0
        is_first = self.cycle is None or self.cycle.response_complete
        if is_first and not has_body and num_head_bytes <= SMALL_HEAD_BYTES:
            return Arrival(self._all.arrivals, 0)
        return Arrival(self._all.arrivals, REQUEST_BYTES + num_head_bytes)

    def _check_room(self, num_bytes: int) -> None:
        """For so many of the request that is being received. Raises Refused."""
        others = self._all.num_request_bytes - self._num_unfinished
        if others + num_bytes > self._limits.max_request_bytes:
            raise Refused(TOO_MANY_BYTES)

    def _count_unfinished(self, num_bytes: int) -> None:
        self._all.num_unfinished_bytes += num_bytes - self._num_unfinished
        self._num_unfinished = num_bytes

    # Requests

    def on_head_bytes(self, data: bytes) -> Framing | None:
        self._framing = None
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # passed over, as RFC 9110 (7.8) lets a server do
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, Refused):
                raise error.__context__ from None
            raise
        return self._framing

    def on_headers_complete(self) -> None:
        """Called by llhttp; what is raised here comes out of its feed_data."""
        is_1_1 = self._reader.check_head()
        if len(self.headers) > self._limits.max_headers:
            raise Refused(LARGE_HEADERS)
        framing = check_headers(self.headers, is_1_1=is_1_1)
        authority = target_authority(self.url)
        if authority is not None:
            self.headers[:] = [each for each in self.headers if each[0] != b"host"]
            self.headers.insert(0, (b"host", authority))
        self._arrival = self._arrival_of(framing)
        self._check_room(self._arrival.num_bytes)
        if not is_1_1:
            self.expect_100_continue = False
        super().on_headers_complete()  # starts a task, which runs later
        extensions = cast(dict[str, Any], self.scope["extensions"])
        extensions[ARRIVAL] = self._arrival
        # The router's patterns end with `$`, which overlooks a last line break: it would serve /metrics%0A as
        # /metrics, though to whoever guards or logs by path it is another.
        self.scope["path"] = self.scope["path"].replace("\n", "%0A")
        # Who wanted a WebSocket gets a reply that is none, and a connection that closes.
        self._may_keep_alive = self.cycle.keep_alive and not self.parser.should_upgrade()
        # until the body has come: nothing is served behind half a request
        self.cycle.keep_alive = False
        if self._is_waiting(self.cycle):
            # uvicorn would stop reading, and not see that the client leaves; what waits is bounded here
            self.flow.resume_reading()
            self._waiting_bytes.appendleft(self._reader.num_head_bytes)
        if framing.length > self._limits.max_body_bytes:
            self._all.refused["body"] += 1  # by its route, in a moment
        self._framing = framing

    def on_body(self, body: bytes) -> None:
        assert self._arrival is not None
        self._arrival.num_bytes += len(body)
        self._check_room(self._arrival.num_bytes)
        if not self._is_waiting(self.cycle):
            super().on_body(body)
            return
        self.cycle.body += body
        self._waiting_bytes[0] += len(body)
        if sum(self._waiting_bytes) > self._limits.max_waiting_bytes:
            raise Refused(TOO_MUCH_PIPELINED)

    def on_message_complete(self) -> None:
        """Called by llhttp, which knows nothing of bodies here."""

    def on_request_end(self) -> None:
        if self._is_unfinished:
            self._end_unfinished()
            self.cycle.transport = self.transport
        self._deadline.clear()
        assert self._arrival is not None
        self._arrival.arrive()
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._may_keep_alive
        if not self._may_keep_alive:
            self._is_deaf = True
        super().on_message_complete()

    def _end_unfinished(self) -> None:
        self._is_unfinished = False
        self._count_unfinished(0)
        self._all.on_finished(self)

    def _is_waiting(self, cycle: RequestResponseCycle) -> bool:
        return bool(self.pipeline) and self.pipeline[0][0] is cycle

    # Responses

    def on_response_complete(self) -> None:
        if self._deferred is not None and not self.pipeline:
            self.server_state.total_requests += 1
            self._end_with(self._deferred)
            return
        if self._gentle.has_ended:  # uvicorn would begin the next one, for nobody
            self.server_state.total_requests += 1
            if not self.transport.is_closing():
                self.flow.resume_reading()  # to pass over what still comes
            return
        super().on_response_complete()
        if len(self._waiting_bytes) > len(self.pipeline):
            self._waiting_bytes.pop()
        if self._is_answering():
            return
        if self._reader.is_between:
            self._all.on_idle(self)
        else:  # the next one has begun: it has its own deadline
            self._unset_keepalive_if_required()
            self._all.on_unfinished(self, self.loop.time())

    def _is_answering(self) -> bool:
        """A request other than the one that is being received has no whole answer yet."""
        received = self.cycle if self._reader.has_head else None
        return any(not cycle.response_complete and cycle is not received for cycle in self._cycles)

    def _refuse(self, refusal: Refusal) -> None:
        """The last that is said on this connection, behind the answers to what came before it."""
        self._all.refused[refusal.reason] += 1
        self._is_deaf = True
        self._deadline.cancel()
        self._end_unfinished()
        cycle = self.cycle if self._reader.has_head else None
        if cycle is not None:
            if cycle.response_started:
                return  # it goes on, and the connection ends with it
            self._drop(cycle)
        answer = self._refusal_bytes(refusal)
        if self._is_answering():
            self._deferred = answer
        else:
            self._end_with(answer)

    def _drop(self, cycle: RequestResponseCycle) -> None:
        """Its application is told that the client is gone, and writes nothing any more."""
        cycle.disconnected = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        if self._is_waiting(cycle):
            self.pipeline.popleft()
            self._waiting_bytes.popleft()

    def _refusal_bytes(self, refusal: Refusal) -> bytes:
        headers = self.headers or ()
        request_id = request_id_of(headers)
        if self._reader.has_head:  # the application has named it already
            request_id = self.scope.get(REQUEST_ID, request_id.decode()).encode()  # type: ignore[attr-defined]
        is_head = bool(headers) and self.parser.get_method() == b"HEAD"
        return refusal_bytes(refusal, request_id, is_head=is_head)

    def _end_with(self, answer: bytes) -> None:
        self._deferred = None
        if not self.transport.is_closing():
            self.transport.write(answer)
            self._gentle.close()
