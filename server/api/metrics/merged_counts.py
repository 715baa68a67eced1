"""The counts of several api processes as one page: what each of them counts for itself is added up; what the
engine tells all of them is taken once, from whoever has heard most. Knows no process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from prometheus_client.core import Metric

_Labels = tuple[tuple[str, str], ...]
_Key = tuple[str, _Labels]  # of a sample

# Told by the engine, or the same in all for another reason. A process that started later has heard less.
_TOLD = frozenset(
    (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prompt_tokens",
        "vllm:generation_tokens",
        "vllm:num_preemptions",
        "vllm:prefix_cache_queries",
        "vllm:prefix_cache_hits",
        "vllm:iteration_tokens_total",
        "vllm:cache_config_info",
        "continuo:build_info",
        "continuo:not_finite_weight_tensors",
        "continuo:engine_deaths",
        "continuo:engine_restarts",
        "continuo:replayed_tokens",
        "continuo:engine_progress_age_seconds",
        "continuo:memory_bytes",
        "continuo:memory_limit_bytes",
        "continuo:estimated_wait_seconds",
        "continuo:estimated_wait_limit_seconds",
        "continuo:open_sequences_limit",
    )
)
_SHARED_QUEUE = "open_requests"  # its limit is that of all together
_COUNTING = ("counter", "histogram")


class Counts(msgspec.Struct, frozen=True, array_like=True):
    """A family and its samples."""

    name: str
    text: str
    kind: str
    samples: dict[_Key, float]

    @property
    def is_told(self) -> bool:
        return self.name in _TOLD

    @property
    def only_grows(self) -> bool:
        return self.kind in _COUNTING


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Counts])


def counts_of(families: Iterable[Metric]) -> list[Counts]:
    return [
        Counts(
            family.name,
            family.documentation,
            family.type,
            {
                (sample.name, tuple(sample.labels.items())): float(sample.value)
                for sample in family.samples
            },
        )
        for family in families
    ]


def packed(counts: list[Counts]) -> bytes:
    return _encoder.encode(counts)


def unpacked(data: bytes) -> list[Counts]:
    """Raises msgspec.MsgspecError."""
    return _decoder.decode(data)


def growing(counts: Iterable[Counts], *, own: bool) -> list[Counts]:
    """Without what says how things stand now; `own`: nor what the engine told."""
    return [each for each in counts if each.only_grows and not (own and each.is_told)]


def merged(pages: Iterable[Iterable[Counts]]) -> list[Counts]:
    """Of several processes, or of one and of those in whose place it is."""
    found: dict[str, Counts] = {}
    for page in pages:
        for each in page:
            if (before := found.get(each.name)) is None:
                found[each.name] = msgspec.structs.replace(each, samples=dict(each.samples))
            else:
                _add(before, each)
    return list(found.values())


def _add(to: Counts, more: Counts) -> None:
    for key, value in more.samples.items():
        before = to.samples.get(key)
        if before is None:
            to.samples[key] = value
        elif to.is_told or _is_shared_limit(key):
            to.samples[key] = max(before, value)
        else:
            to.samples[key] = before + value


def _is_shared_limit(key: _Key) -> bool:
    name, labels = key
    return name == "continuo:queue_limit_bytes" and ("queue", _SHARED_QUEUE) in labels


class MergedPage:
    """What prometheus_client writes as text."""

    def __init__(self, counts: Iterable[Counts]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        for each in self._counts:
            metric = Metric(each.name, each.text, each.kind)
            for (name, labels), value in each.samples.items():
                metric.add_sample(name, dict(labels), value)
            yield metric
