"""Prometheus families with the labels that every sample of vLLM's carries. Knows no source of values."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from server.api.histogram import Histogram

_LABELS = ("model_name", "engine")


class Families:
    """Makes them for one model and engine. A counter's name comes without its `_total`."""

    def __init__(self, model_name: str, engine: str) -> None:
        self._labels = (model_name, engine)

    def gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=_LABELS)
        family.add_metric(self._labels, value)
        return family

    def counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=_LABELS)
        family.add_metric(self._labels, value)
        return family

    def gauges(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        """One for each value of `label`."""
        family = GaugeMetricFamily(name, text, labels=(*_LABELS, label))
        for key, value in values.items():
            family.add_metric((*self._labels, key), value)
        return family

    def counters(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        """One for each value of `label`."""
        family = CounterMetricFamily(name, text, labels=(*_LABELS, label))
        for key, value in values.items():
            family.add_metric((*self._labels, key), value)
        return family

    def info(self, name: str, text: str, facts: Mapping[str, str]) -> Metric:
        """Facts as labels of a gauge that is always 1."""
        family = GaugeMetricFamily(name, text, labels=(*_LABELS, *facts))
        family.add_metric((*self._labels, *facts.values()), 1)
        return family

    def histogram(
        self, name: str, text: str, histogram: Histogram, max_bound: float = float("inf")
    ) -> Metric:
        """With the buckets up to `max_bound`; what lies above counts in the infinite one."""
        family = HistogramMetricFamily(name, text, labels=_LABELS)
        family.add_metric(self._labels, histogram.buckets(max_bound), histogram.sum)
        return family
