"""The small routes, and the metrics page: it parses, has vLLM's names, and moves."""

from __future__ import annotations

import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server import __version__
from server.api.engine_client import EngineClient
from tests.api.conftest import MODEL, wait_until
from tests.api.fake_engine import FakeEngine

NAMES = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:num_preemptions_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket",
}
Samples = dict[tuple[str, str], float]


def read_metrics(client: httpx.Client) -> Samples:
    """By name and the label that tells samples of one name apart."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    samples: Samples = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            assert sample.labels["model_name"] == MODEL
            assert sample.labels["engine"] == "0"
            label = sample.labels.get("finished_reason") or sample.labels.get("le", "")
            samples[sample.name, label] = sample.value
    return samples


def test_the_metrics_have_vllms_names_and_move(client: httpx.Client, engine: FakeEngine) -> None:
    wait_until(lambda: {name for name, _ in read_metrics(client)} >= NAMES)
    before = read_metrics(client)
    client.post("/v1/completions", json={"prompt": "Hi", "n": 2, "max_tokens": 5})
    client.post("/v1/completions", json={"prompt": "Hi", "stop": "c", "stream": True})
    after = read_metrics(client)
    moved = {key: after[key] - before[key] for key in after}
    assert moved["vllm:generation_tokens_total", ""] >= 13
    assert moved["vllm:request_success_total", "length"] == 2
    assert moved["vllm:request_success_total", "stop"] == 1
    assert moved["vllm:request_success_total", "abort"] == 0
    assert moved["vllm:time_to_first_token_seconds_count", ""] == 3
    assert moved["vllm:inter_token_latency_seconds_count", ""] == 10  # 13 tokens, 3 of them first
    assert moved["vllm:e2e_request_latency_seconds_bucket", "+Inf"] == 3
    assert moved["vllm:e2e_request_latency_seconds_sum", ""] > 0


def test_histograms_have_the_buckets_of_the_dashboards(client: httpx.Client) -> None:
    metrics = read_metrics(client)
    for name, bounds in (
        ("time_to_first_token", ("0.001", "0.5", "160.0", "+Inf")),
        ("inter_token_latency", ("0.0001", "0.025", "5.0", "+Inf")),
        ("e2e_request_latency", ("0.3", "2.5", "480.0", "+Inf")),
    ):
        for bound in bounds:
            assert (f"vllm:{name}_seconds_bucket", bound) in metrics


def test_an_abandoned_request_counts_as_an_abort(client: httpx.Client, engine: FakeEngine) -> None:
    key = ("vllm:request_success_total", "abort")
    before = read_metrics(client)[key]
    engine.script = lambda _: []
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json={"prompt": "a"}, timeout=0.2)
    wait_until(lambda: read_metrics(client)[key] == before + 1)


def test_models(client: httpx.Client) -> None:
    reply = client.get("/v1/models").json()
    assert reply["object"] == "list"
    card = reply["data"][0]
    assert (card["id"], card["object"], card["max_model_len"]) == (MODEL, "model", 256)
    assert client.get(f"/v1/models/{MODEL}").json() == card


def test_health_version_and_the_page(client: httpx.Client) -> None:
    assert client.get("/health").status_code == client.get("/ready").status_code == 200
    assert client.get("/version").json() == {"version": __version__}
    assert "/v1/completions" in client.get("/").text


def test_silence_of_the_engine_is_not_ready_and_long_after_not_healthy(
    client: httpx.Client, engine_client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after_silence(seconds: float) -> tuple[int, int]:
        """/health first: a 503 of /ready then says that the engine has not spoken in between."""
        monkeypatch.setattr(engine_client, "heard_at", time.monotonic() - seconds)
        return client.get("/health").status_code, client.get("/ready").status_code

    assert after_silence(1) == (200, 200)
    wait_until(lambda: after_silence(4) == (200, 503))
    wait_until(lambda: after_silence(61) == (503, 503))
