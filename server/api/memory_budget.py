"""Everything in an api process that holds bytes for clients, each with its bound: what /metrics shows and
the start-up table adds up.

What is not listed cannot grow: it is bounded by a number (1,024 waiters for an engine, 1,024 quarantined
requests, a counter for each name), or belongs to a request and is counted with it.
"""

from __future__ import annotations

from server.api.admission.open_requests import OpenRequests
from server.api.engine_client import EngineClient
from server.api.http.arrivals import REQUEST_BYTES
from server.api.http.connections import Connections
from server.api.http.slow_readers import SlowReaders
from server.api.kept.idempotency import Idempotency
from server.api.kept.kept_runs import KeptRuns
from server.api.metrics.budget import Queue
from server.api.metrics.metrics import Metrics
from server.api.request.long_work import bodies, texts
from server.api.workers.upstream import MAX_UNREAD_BYTES, unread
from server.budget import SEQUENCE_BYTES

# Measured: 13 KB of an idle one that has been answered once; one that is being answered needs more.
CONNECTION_BYTES = 24 << 10
# Measured: 2.2 KB of objects for a stream, 2.6 KB for a reply, 1 KB for the entry of an Idempotency-Key.
KEPT_BYTES = 4096


def watch_door(metrics: Metrics, connections: Connections, slow_readers: SlowReaders) -> None:
    """What comes from clients, and what they do not take."""
    limits = connections.limits
    for queue in (
        Queue(
            "connections",
            lambda: connections.num_open * CONNECTION_BYTES,
            limits.max_connections * CONNECTION_BYTES,
            f"{limits.max_connections:,}, {CONNECTION_BYTES >> 10} KiB each",
        ),
        Queue(
            "requests",
            lambda: connections.num_request_bytes,
            limits.max_request_bytes,
            "heads and bodies, until they are answered",
        ),
        Queue(
            "long_bodies",
            lambda: bodies.num_bytes,
            bodies.max_bytes,
            "as they are parsed, one at a time",
        ),
        Queue(
            "long_texts",
            lambda: texts.num_bytes,
            texts.max_bytes,
            "as they are tokenized, one at a time",
        ),
        Queue(
            "unsent_replies",
            lambda: slow_readers.num_bytes,
            slow_readers.max_bytes,
            "looked at once a second: above it who has most is cut",
        ),
    ):
        metrics.budget.watch(queue)


def watch_engine(metrics: Metrics, engine: EngineClient, requests: OpenRequests) -> None:
    """What waits on the way to the engine and back."""
    unread = engine.unread
    for queue in (
        Queue(
            "open_requests",
            lambda: requests.num_bytes,
            requests.max_bytes,
            "ids, parameters and replies, by estimate: above it requests are refused",
        ),
        Queue(
            "unread_outputs",
            lambda: unread.num_bytes,
            unread.max_bytes,
            "above it slow readers' streams leave the engine",
        ),
        Queue(
            "engine_frames",
            lambda: engine.num_unsent_bytes,
            engine.max_unsent_bytes,
            "to the engine: 4 MiB and the frame that passes them",
        ),
        Queue(
            "engine_frame",
            lambda: engine.num_received_bytes,
            engine.max_received_bytes,
            "from the engine: the one that has not come whole",
        ),
    ):
        metrics.budget.watch(queue)


def watch_kept(metrics: Metrics, kept: KeptRuns) -> None:
    """What outlives its connection."""
    note = "streams and replies that can be read again: above it they go, or wait"
    metrics.budget.watch(Queue("kept_runs", lambda: kept.num_bytes, kept.max_bytes, note))


def watch_handed_over(metrics: Metrics, connections: Connections) -> None:
    """Where there are several workers: what one reads of another's replies."""
    limit = connections.limits.max_connections * MAX_UNREAD_BYTES
    note = f"replies of other workers, {MAX_UNREAD_BYTES >> 10} KiB each"
    metrics.budget.watch(Queue("handed_over", lambda: unread.num_bytes, limit, note))


def watch_counts(
    metrics: Metrics,
    idempotency: Idempotency,
    connections: Connections,
    kept: KeptRuns,
    requests: OpenRequests,
) -> None:
    """What is bounded because each of it belongs to something above."""
    max_requests = connections.limits.max_request_bytes // REQUEST_BYTES
    max_entries = max_requests + kept.max_bytes // KEPT_BYTES
    max_sequences = requests.max_bytes // SEQUENCE_BYTES
    for name, text, value in (
        (
            "idempotency_entries",
            "Each of a request that is prepared, or a kept run.",
            idempotency.__len__,
        ),
        ("idempotency_entries_limit", "Most that there may be.", lambda: max_entries),
        ("open_sequences_limit", "Most that may be open.", lambda: max_sequences),
    ):
        metrics.watch_gauge(name, text, value)
