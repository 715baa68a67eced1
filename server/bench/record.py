"""What is known of one request afterwards. Times are seconds of one clock (time.perf_counter)."""

from __future__ import annotations

from dataclasses import dataclass, field

INTERRUPTED = "interrupted"  # by whoever ran the benchmark: not the server's failure
TIMER_GRAIN_S = 0.001  # event loops' timers count milliseconds


@dataclass(slots=True)
class Record:
    due_s: float  # when it was to be sent, whatever the generator managed
    max_tokens: int
    prompt_tokens_wanted: int
    sent_s: float = 0.0
    end_s: float = 0.0  # when its last byte was read
    text_s: list[float] = field(default_factory=list)  # when each event with text was read
    prompt_tokens: int | None = None  # these three as the server reports them
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    failure: str = ""  # a short name; empty: it went well
    message: str = ""  # what the server said about it

    @property
    def start_s(self) -> float:
        """From where latency counts: from when the request was due, so that a generator (or a server
        that held it up) cannot hide waiting. Only the grain of a timer is forgiven."""
        return self.due_s if self.lag_s > TIMER_GRAIN_S else self.sent_s

    @property
    def lag_s(self) -> float:
        return max(0.0, self.sent_s - self.due_s)

    @property
    def is_ok(self) -> bool:
        return not self.failure

    @property
    def num_tokens(self) -> int:
        """Generated tokens: the server's own count where it gives one, else events with text."""
        return len(self.text_s) if self.completion_tokens is None else self.completion_tokens

    @property
    def ttft_s(self) -> float | None:
        return self.text_s[0] - self.start_s if self.text_s else None

    @property
    def e2e_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first."""
        if self.num_tokens < 2 or len(self.text_s) < 2:
            return None
        return (self.text_s[-1] - self.text_s[0]) / (self.num_tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        return [b - a for a, b in zip(self.text_s, self.text_s[1:], strict=False)]
