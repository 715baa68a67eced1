"""What this api process counts, and the page of /metrics under vLLM's names. Knows no text.

What vLLM calls a request is a sequence here: a prompt with n choices counts n times, its n once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from server import __version__
from server.api.engine_client import EngineClient
from server.api.histogram import (
    INTER_TOKEN_BUCKETS_S,
    LATENCY_BUCKETS_S,
    NUM_CHOICES_BUCKETS,
    TOKENS_BUCKETS,
    TTFT_BUCKETS_S,
    Histogram,
)
from server.api.http.connections import Connections
from server.api.metrics.budget import Budget
from server.api.metrics.metric_families import Families
from server.config import EngineConfig
from server.ipc.frames import EngineInfo
from server.sequence import FailureKind

_FINISH_REASONS = ("stop", "length", "abort", "error")
# of valid requests, by why; also "quarantined"
_REJECTIONS = ("engine_gone", "draining", "overloaded", "rate_limited", "queue_timeout")
_ENGINE_INDEX = "0"


class Metrics(Collector):
    """Counts of this process, and the engine's own as it last reported them."""

    def __init__(
        self, model_name: str, engine: EngineClient, config: EngineConfig | None = None
    ) -> None:
        self._families = Families(model_name, _ENGINE_INDEX)
        self._engine = engine
        self._config = config or EngineConfig()
        self.budget = Budget(engine)
        self._finished = dict.fromkeys(_FINISH_REASONS, 0)
        self._rejections = dict.fromkeys(_REJECTIONS, 0)
        self._failures: dict[str, int] = dict.fromkeys(get_args(FailureKind), 0)
        self._responses: Counter[str] = Counter()
        self._num_resumed = 0
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []
        self._connections = Connections()
        self._num_streams: Callable[[], int] = lambda: 0
        self._num_slow_readers: Callable[[], int] = lambda: 0
        self._progress_age_s: Callable[[], float] = engine.silence_s
        self.ttft = Histogram(TTFT_BUCKETS_S)
        self.inter_token = Histogram(INTER_TOKEN_BUCKETS_S)
        self.token_time = Histogram(INTER_TOKEN_BUCKETS_S)
        self.latency = Histogram(LATENCY_BUCKETS_S)
        self.queue_time = Histogram(LATENCY_BUCKETS_S)
        self.prefill_time = Histogram(LATENCY_BUCKETS_S)
        self.decode_time = Histogram(LATENCY_BUCKETS_S)
        self.num_generated = Histogram(TOKENS_BUCKETS)
        self._num_prompt = Histogram(TOKENS_BUCKETS)
        self._max_tokens = Histogram(TOKENS_BUCKETS)
        self._num_choices = Histogram(NUM_CHOICES_BUCKETS)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def watch_gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """One of ours: it is on the page from now on."""
        self._gauges.append((f"continuo:{name}", text, value))

    def watch_connections(self, connections: Connections) -> None:
        """Them, and what was refused on them."""
        self._connections = connections

    def watch_streams(self, num_streams: Callable[[], int]) -> None:
        """How many can be resumed."""
        self._num_streams = num_streams

    def watch_slow_readers(self, num_closed: Callable[[], int]) -> None:
        """Whose connections were cut."""
        self._num_slow_readers = num_closed

    def watch_progress(self, age_s: Callable[[], float]) -> None:
        """Seconds since the engine got on; until then since it was heard."""
        self._progress_age_s = age_s

    def on_submit(
        self, prompts: Sequence[Sequence[int]], *, n: int, num_sequences: int, max_tokens: int
    ) -> None:
        """`num_sequences` of each prompt begin; with best_of more than the client's `n`."""
        for prompt_ids in prompts:
            self._num_choices.observe(n)
            self._num_prompt.observe(len(prompt_ids), num_sequences)
            self._max_tokens.observe(max_tokens, num_sequences)

    def on_rejection(self, reason: str) -> None:
        self._rejections[reason] += 1

    def on_resume(self) -> None:
        """A reader was attached to a stream that had begun on another connection."""
        self._num_resumed += 1

    def on_response(self, status: int) -> None:
        """An HTTP response has begun."""
        self._responses[str(status)] += 1

    def on_finish(self, reason: str) -> None:
        self._finished[reason] += 1

    def on_failure(self, kind: FailureKind) -> None:
        self._failures[kind] += 1

    def page(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._engine_families()
        yield from self._request_families()
        yield from self._time_families()
        yield from self._own_families()
        yield from self._connection_families()
        yield from self._death_families()
        if self._engine.info is not None:
            yield from self._sized_families(self._engine.info)

    def _engine_families(self) -> Iterator[Metric]:
        make, info, counts = self._families, self._engine.info, self._engine.counts
        total = counts.total()
        usage = total.num_used_blocks / info.num_blocks if info else 0.0
        for name, text, value in (
            ("num_requests_running", "Sequences in the batch.", total.num_running),
            ("num_requests_waiting", "Sequences in the queue.", total.num_waiting),
            ("kv_cache_usage_perc", "Used KV blocks; 1 is all.", usage),
        ):
            yield make.gauge(f"vllm:{name}", text, value)
        for name, text, value in (
            ("prompt_tokens", "Prompt tokens, computed or cached.", total.num_prompt_tokens),
            ("generation_tokens", "Tokens generated.", total.num_generated_tokens),
            ("num_preemptions", "Sequences preempted for lack of blocks.", total.num_preemptions),
            ("prefix_cache_queries", "Prompt tokens looked up.", total.num_cache_queries),
            ("prefix_cache_hits", "Prompt tokens found.", total.num_cache_hits),
            ("spec_decode_num_draft_tokens", "Tokens drafted.", total.num_draft_tokens),
            ("spec_decode_num_accepted_tokens", "Of them drawn.", total.num_accepted_tokens),
        ):
            yield make.counter(f"vllm:{name}", text, value)
        text = "Tokens of a step, prompts' and generated ones."
        yield make.histogram("vllm:iteration_tokens_total", text, counts.step_tokens)

    def _request_families(self) -> Iterator[Metric]:
        make = self._families
        yield make.counters(
            "vllm:request_success",
            "Sequences that ended, by how.",
            "finished_reason",
            self._finished,
        )
        text = "Valid requests that were not admitted, by why."
        rejections = {**self._rejections, "quarantined": self._engine.num_refused}
        yield make.counters("vllm:admission_rejections", text, "reason", rejections)
        text = "The n of each prompt."
        yield make.histogram("vllm:request_params_n", text, self._num_choices)

    def _time_families(self) -> Iterator[Metric]:
        for name, text, histogram in (
            ("time_to_first_token", "From arrival to the first token.", self.ttft),
            ("inter_token_latency", "Between two tokens of a sequence.", self.inter_token),
            ("request_time_per_output_token", "Mean of those of a sequence.", self.token_time),
            ("e2e_request_latency", "From arrival to the last token.", self.latency),
            ("request_queue_time", "From submission to the first step.", self.queue_time),
            ("request_prefill_time", "From then on to the first token.", self.prefill_time),
            ("request_decode_time", "From the first token to the last.", self.decode_time),
        ):
            yield self._families.histogram(f"vllm:{name}_seconds", text, histogram)

    def _sized_families(self, info: EngineInfo) -> Iterator[Metric]:
        """What needs to know the engine's sizes: there from its first connection on."""
        for name, text, histogram in (
            ("request_prompt_tokens", "Prompt tokens of a sequence.", self._num_prompt),
            ("request_generation_tokens", "Tokens of an ended sequence.", self.num_generated),
            ("request_params_max_tokens", "The max_tokens of a sequence.", self._max_tokens),
        ):
            yield self._families.histogram(f"vllm:{name}", text, histogram, info.max_model_len)
        config = self._config
        cache = {
            "block_size": str(info.block_size),
            "num_gpu_blocks": str(info.num_blocks),
            "cache_dtype": info.dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype,
            "gpu_memory_utilization": str(config.gpu_memory_utilization),
            "enable_prefix_caching": "True",
        }
        yield self._families.info("vllm:cache_config_info", "The KV cache.", cache)
        build = {
            "version": __version__,
            "system_fingerprint": info.system_fingerprint,
            "device": info.device,
            "dtype": info.dtype,
            "quantization": config.quantization,
        }
        yield self._families.info("continuo:build_info", "What computes the answers.", build)
        text = "Tensors of the checkpoint that hold a NaN or an infinity."
        num_not_finite = info.num_not_finite_tensors
        yield self._families.gauge("continuo:not_finite_weight_tensors", text, num_not_finite)

    def _own_families(self) -> Iterator[Metric]:
        make = self._families
        for name, text, label, counts in (
            ("http_responses", "HTTP responses begun, by status.", "status", self._responses),
            ("sequence_failures", "Sequences that failed, by why.", "kind", self._failures),
        ):
            yield make.counters(f"continuo:{name}", text, label, counts)
        yield make.gauge("continuo:open_sequences", "Submitted, not ended.", self._engine.num_open)
        text = "Streams that can be resumed."
        yield make.gauge("continuo:kept_streams", text, self._num_streams())
        text = "Streams resumed on another connection."
        yield make.counter("continuo:resumed_streams", text, self._num_resumed)
        text = "Streams that wait outside the engine for their readers."
        yield make.gauge("continuo:parked_streams", text, self._engine.num_parked)
        for name, text, value in (
            ("parks", "Times that a stream had to leave the engine.", self._engine.num_parks),
            ("slow_readers_closed", "Connections cut: nothing taken.", self._num_slow_readers()),
        ):
            yield make.counter(f"continuo:{name}", text, value)
        for name, text, read in self._gauges:
            yield make.gauge(name, text, read())
        yield from self.budget.families(make)

    def _connection_families(self) -> Iterator[Metric]:
        make, connections = self._families, self._connections
        text = "Connections of clients."
        yield make.gauge("continuo:connections", text, connections.num_open)
        text = "Most that there may be."
        yield make.gauge("continuo:max_connections", text, connections.limits.max_connections)
        text = "Requests and connections refused before a route saw them, by why."
        yield make.counters("continuo:refused_requests", text, "reason", connections.refused)

    def _death_families(self) -> Iterator[Metric]:
        """Engines that ended, and what was done about it."""
        make, engine = self._families, self._engine
        text = "Engines that ended, by how."
        yield make.counters("continuo:engine_deaths", text, "cause", engine.deaths)
        for name, text, value in (
            ("engine_restarts", "Engines that followed the first.", engine.counts.num_restarts),
            ("replayed_tokens", "Rows computed again.", engine.counts.total().num_replayed_tokens),
            ("replay_mismatches", "Tokens drawn otherwise in a replay.", engine.num_mismatches),
            ("quarantined_requests", "Given up for killing engines.", engine.num_given_up),
        ):
            yield make.counter(f"continuo:{name}", text, value)
        text = "Since the engine got on last."
        yield make.gauge("continuo:engine_progress_age_seconds", text, self._progress_age_s())
