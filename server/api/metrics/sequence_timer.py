"""One sequence's times, into the histograms of the metrics page; and the place that it was let in to, which
ends with it. Knows no text and no engine."""

from __future__ import annotations

from server.api.admission.ticket import Place
from server.api.metrics.metrics import Metrics
from server.sequence import FailureKind, FirstOutput

_REJECTIONS: dict[FailureKind, str] = {"expired": "queue_timeout", "queue_full": "overloaded"}


class SequenceTimer:
    """From its request's arrival to its end, which is counted once."""

    __slots__ = (
        "_arrived_at",
        "_first_token_at",
        "_inter_token",
        "_is_open",
        "_last_token_at",
        "_metrics",
        "_num_tokens",
        "_place",
    )

    def __init__(self, metrics: Metrics, arrived_at: float, place: Place | None = None) -> None:
        self._metrics = metrics
        self._inter_token = metrics.inter_token
        self._arrived_at = arrived_at
        self._first_token_at = 0.0
        self._last_token_at = 0.0
        self._num_tokens = 0
        self._is_open = True
        self._place = place

    def on_first(self, first: FirstOutput, now: float) -> None:
        """The prompt has been computed; to be called before its first token."""
        if self._place is not None:
            self._place.begin()
        self._metrics.queue_time.observe(first.queue_s)
        self._metrics.prefill_time.observe(max(0.0, now - self._arrived_at - first.queue_s))

    def on_tokens(self, num_tokens: int, now: float) -> None:
        """Tokens of one step share the time since the step before."""
        if num_tokens == 0:
            return
        if self._num_tokens == 0:
            self._metrics.ttft.observe(now - self._arrived_at)
            self._first_token_at = self._last_token_at = now
            self._num_tokens = 1
            num_tokens -= 1
        if num_tokens:
            self._inter_token.observe((now - self._last_token_at) / num_tokens, num_tokens)
            self._last_token_at = now
            self._num_tokens += num_tokens

    def on_left(self) -> None:
        """It is in no engine any more, though its reader may not know: it takes no row from anybody."""
        if self._place is not None:
            self._place.park()

    def on_back(self) -> None:
        """Its reader has caught up, and it goes on."""
        if self._place is not None:
            self._place.unpark()

    def on_end(self, reason: str, now: float) -> None:
        """To be called after its last tokens."""
        metrics, num_tokens = self._metrics, self._num_tokens
        metrics.on_finish(reason)
        metrics.latency.observe(now - self._arrived_at)
        metrics.num_generated.observe(num_tokens)
        if num_tokens:
            decode_s = self._last_token_at - self._first_token_at
            metrics.decode_time.observe(decode_s)
            if num_tokens > 1:
                metrics.token_time.observe(decode_s / (num_tokens - 1))
        self._is_open = False
        if self._place is not None:
            self._place.end(num_tokens, by_itself=True)

    def on_failure(self, kind: FailureKind) -> None:
        """It ended by a fault."""
        self._metrics.on_failure(kind)
        reason = _REJECTIONS.get(kind)
        if reason is not None and self._place is not None and self._place.refuse():
            self._metrics.on_rejection(reason)
        self._end_early("error")

    def on_abort(self) -> None:
        """The client or the engine went away. Nothing to count for a sequence that has ended."""
        self._end_early("abort")

    def _end_early(self, reason: str) -> None:
        if self._is_open:
            self._metrics.on_finish(reason)
            self._is_open = False
            if self._place is not None:
                self._place.end(self._num_tokens)
