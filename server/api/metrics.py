"""What this api process counts, and the page of /metrics under vLLM's names."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from server.api.engine_client import EngineClient

# fmt: off
_TTFT_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0, 160.0,
)
_INTER_TOKEN_BUCKETS_S = (  # those below 0.01 are ours: a superset keeps vLLM's panels valid
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
    0.4, 0.5, 0.75, 1.0, 2.5, 5.0,
)
_LATENCY_BUCKETS_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0,
)
# fmt: on
_FINISH_REASONS = ("stop", "length", "abort")
_LABELS = ("model_name", "engine")
_ENGINE_INDEX = "0"


class _Histogram:
    """A tenth of the cost of prometheus_client's own, which searches its buckets one by one."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def family(self, name: str, text: str, labels: tuple[str, ...]) -> HistogramMetricFamily:
        bounds = [*map(str, self._bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        family = HistogramMetricFamily(name, text, labels=_LABELS)
        family.add_metric(labels, buckets, self._sum)
        return family


class Metrics(Collector):
    """Counts of this process, and the engine's own as it last reported them."""

    def __init__(self, model_name: str, engine: EngineClient) -> None:
        self._labels = (model_name, _ENGINE_INDEX)
        self._engine = engine
        self._finished = dict.fromkeys(_FINISH_REASONS, 0)
        self.ttft = _Histogram(_TTFT_BUCKETS_S)
        self.inter_token = _Histogram(_INTER_TOKEN_BUCKETS_S)
        self.latency = _Histogram(_LATENCY_BUCKETS_S)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def on_finish(self, reason: str) -> None:
        self._finished[reason] += 1

    def page(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._engine_families()
        finished = CounterMetricFamily(
            "vllm:request_success",
            "Sequences that ended, by how.",
            labels=(*_LABELS, "finished_reason"),
        )
        for reason, count in self._finished.items():
            finished.add_metric((*self._labels, reason), count)
        yield finished
        for histogram, name, text in (
            (self.ttft, "time_to_first_token", "From the request's arrival to its first token."),
            (self.inter_token, "inter_token_latency", "Between two tokens of a sequence."),
            (self.latency, "e2e_request_latency", "From the request's arrival to its last token."),
        ):
            yield histogram.family(f"vllm:{name}_seconds", text, self._labels)

    def _engine_families(self) -> Iterator[Metric]:
        info, stats = self._engine.info, self._engine.stats
        if info is None or stats is None:
            return
        yield self._gauge("num_requests_running", "Sequences in the batch.", stats.num_running)
        yield self._gauge("num_requests_waiting", "Sequences in the queue.", stats.num_waiting)
        usage = stats.num_used_blocks / info.num_blocks
        yield self._gauge("kv_cache_usage_perc", "Used KV blocks; 1 is all.", usage)
        config = GaugeMetricFamily(
            "vllm:cache_config_info",
            "The KV cache.",
            labels=(*_LABELS, "block_size", "num_gpu_blocks", "cache_dtype"),
        )
        config.add_metric(
            (*self._labels, str(info.block_size), str(info.num_blocks), info.dtype), 1
        )
        yield config
        for name, text, value in (
            ("prompt_tokens", "Prompt tokens, computed or cached.", stats.num_prompt_tokens),
            ("generation_tokens", "Tokens generated.", stats.num_generated_tokens),
            ("num_preemptions", "Sequences preempted for lack of blocks.", stats.num_preemptions),
            ("prefix_cache_queries", "Prompt tokens looked up.", stats.num_cache_queries),
            ("prefix_cache_hits", "Prompt tokens found.", stats.num_cache_hits),
        ):
            family = CounterMetricFamily(f"vllm:{name}", text, labels=_LABELS)
            family.add_metric(self._labels, value)
            yield family

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=_LABELS)
        family.add_metric(self._labels, value)
        return family


class SequenceTimer:
    """One sequence's times, counted once it has ended."""

    def __init__(self, metrics: Metrics, arrived_at: float) -> None:
        self._metrics = metrics
        self._arrived_at = arrived_at
        self._last_token_at: float | None = None
        self._is_open = True

    def on_tokens(self, num_tokens: int, now: float) -> None:
        """Tokens of one step share the time since the step before."""
        if num_tokens == 0:
            return
        if self._last_token_at is None:
            self._metrics.ttft.observe(now - self._arrived_at)
            num_tokens -= 1
            self._last_token_at = now
        if num_tokens:
            gap_s = (now - self._last_token_at) / num_tokens
            self._metrics.inter_token.observe(gap_s, num_tokens)
            self._last_token_at = now

    def on_end(self, reason: str, now: float) -> None:
        self._metrics.on_finish(reason)
        self._metrics.latency.observe(now - self._arrived_at)
        self._is_open = False

    def on_abort(self) -> None:
        """The client or the engine went away. Nothing to count for a sequence that has ended."""
        if self._is_open:
            self._metrics.on_finish("abort")
            self._is_open = False
