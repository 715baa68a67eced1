"""The page of /metrics over all workers, whichever is asked."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import msgspec
from prometheus_client import generate_latest

from server.api.metrics.merged_counts import (
    Counts,
    MergedPage,
    counts_of,
    growing,
    merged,
    packed,
    unpacked,
)
from server.api.metrics.metrics import Metrics
from server.api.workers.last_page import LastPages
from server.api.workers.peer_door import COUNTS_PATH
from server.api.workers.upstream import Upstream, UpstreamLost
from server.api.workers.worker import Worker

_ANSWER_S = 1.0
_REQUEST_LINE = b"GET %b HTTP/1.1" % COUNTS_PATH.encode()


class AllCounts:
    """A worker that does not answer is shown with the counters that it had when they were last seen; how
    things stand with it is not known."""

    def __init__(self, worker: Worker, metrics: Metrics) -> None:
        self._worker = worker
        self._metrics = metrics
        self._pages = LastPages(worker.counts_fd, worker.num_workers)
        self._before = growing(self._last(worker.index), own=True)  # of those in whose place we are

    def own(self) -> bytes:
        """For another worker."""
        page = packed(merged((counts_of(self._metrics.collect()), self._before)))
        self._pages.write(self._worker.index, page)
        return page

    async def page(self) -> bytes:
        """The text format of Prometheus."""
        own = unpacked(self.own())
        others = [i for i in range(self._worker.num_workers) if i != self._worker.index]
        pages = await asyncio.gather(*map(self._of, others))
        return generate_latest(MergedPage(merged((own, *pages))))

    async def _of(self, index: int) -> list[Counts]:
        try:
            page = await asyncio.wait_for(self._ask(index), _ANSWER_S)
            return unpacked(page)
        except (UpstreamLost, asyncio.TimeoutError, msgspec.MsgspecError):
            return growing(self._last(index), own=False)

    async def _ask(self, index: int) -> bytes:
        upstream = await Upstream.connect(self._worker.socket_path(index), 0.0)
        try:
            upstream.send(_REQUEST_LINE, [(b"host", b"worker")])
            await upstream.head()
            page = bytearray()
            while part := await upstream.part():
                page += part
            return bytes(page)
        finally:
            upstream.close()

    def _last(self, index: int) -> list[Counts]:
        with suppress(msgspec.MsgspecError):
            return unpacked(self._pages.read(index))
        return []
