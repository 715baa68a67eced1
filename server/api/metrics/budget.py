"""The memory budget on the page of /metrics, and as the table that an api process prints at its start. Knows
no owner of any bytes: whoever has some says how many, and how many at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from prometheus_client.core import Metric

from server.api.engine_client import EngineClient
from server.api.metrics.metric_families import Families
from server.budget import Part, table


class Queue(NamedTuple):
    """Somewhere where bytes wait."""

    name: str
    num_bytes: Callable[[], int]
    max_bytes: int
    note: str = ""  # for the table


class Budget:
    """This process's queues, and the parts that the engine tells of."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._queues: list[Queue] = []

    def watch(self, queue: Queue) -> None:
        """It is on the page, and in the table, from now on."""
        self._queues.append(queue)

    def lines(self) -> list[str]:
        """The table of this process."""
        return table(Part(queue.name, queue.max_bytes, queue.note) for queue in self._queues)

    def families(self, make: Families) -> Iterator[Metric]:
        used = {queue.name: queue.num_bytes() for queue in self._queues}
        yield make.gauges("continuo:queue_bytes", "Bytes held by the api.", "queue", used)
        limits = {queue.name: queue.max_bytes for queue in self._queues}
        text = "Most that the api may hold."
        yield make.gauges("continuo:queue_limit_bytes", text, "queue", limits)
        engine = self._engine
        limits = {} if engine.info is None else engine.info.memory_limits
        text = "Bytes held by the engine, twice a second; none without one."
        yield make.gauges("continuo:memory_bytes", text, "part", engine.memory)
        text = "Most that the engine may hold."
        yield make.gauges("continuo:memory_limit_bytes", text, "part", limits)
