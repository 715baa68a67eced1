"""The page of /metrics: rules kept, every name there, each moving under real traffic and a real engine's
death. What follows from single numbers is asked of a scripted engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api.engine_client import EngineClient
from server.api.metrics.metrics import Metrics
from server.errors import EngineGoneError
from tests.api.conftest import wait_until
from tests.api.fake_engine import FakeEngine
from tests.api.prometheus_page import Family, read_page
from tests.serving import Server
from tests.waiting import stopped, wait_for

_COUNTERS = {
    "prompt_tokens",
    "generation_tokens",
    "request_success",
    "num_preemptions",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "spec_decode_num_draft_tokens",
    "spec_decode_num_accepted_tokens",
    "admission_rejections",
}
_LATENCY = ".3 .5 .8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480"
_INTER_TOKEN = ".0001 .0002 .0005 .001 .002 .005 .01 .025 .05 .075 .1 .15 .2 .3 .4 .5 .75 1 2.5 5"
_TOKENS = "1 2 5 10 20 50 100 200"  # up to the servers' max_model_len, 256
_HISTOGRAMS = {
    "time_to_first_token_seconds": ".001 .005 .01 .02 .04 .06 .08 .1 .25 .5 .75 1 2.5 5 7.5 10 20 40 "
    "80 160",
    "inter_token_latency_seconds": _INTER_TOKEN,
    "request_time_per_output_token_seconds": _INTER_TOKEN,
    "e2e_request_latency_seconds": _LATENCY,
    "request_queue_time_seconds": _LATENCY,
    "request_prefill_time_seconds": _LATENCY,
    "request_decode_time_seconds": _LATENCY,
    "request_prompt_tokens": _TOKENS,
    "request_generation_tokens": _TOKENS,
    "request_params_n": "1 2 5 10 20",
    "request_params_max_tokens": _TOKENS,
    "iteration_tokens_total": "1 8 16 32 64 128 256 512 1024 2048 4096 8192 16384",
}
_GAUGES = {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"}
_OURS = {
    **dict.fromkeys(
        (
            "engine_deaths",
            "engine_restarts",
            "http_responses",
            "parks",
            "quarantined_requests",
            "refused_requests",
            "replay_mismatches",
            "replayed_tokens",
            "resumed_streams",
            "sequence_failures",
            "slow_readers_closed",
        ),
        "counter",
    ),
    **dict.fromkeys(
        (
            "build_info",
            "not_finite_weight_tensors",
            "connections",
            "engine_progress_age_seconds",
            "estimated_wait_limit_seconds",
            "estimated_wait_seconds",
            "idempotency_entries",
            "idempotency_entries_limit",
            "kept_streams",
            "max_connections",
            "memory_bytes",
            "memory_limit_bytes",
            "open_sequences",
            "open_sequences_limit",
            "parked_streams",
            "queue_bytes",
            "queue_limit_bytes",
            "tasks",
            "waiting_prompt_tokens",
            "waiting_prompt_tokens_limit",
            "waiting_sequences",
            "waiting_sequences_limit",
            "waiting_tokens",
        ),
        "gauge",
    ),
}
Page = dict[str, Family]


def page_of(client: httpx.Client) -> Page:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return read_page(response.text)


def moved(before: Page, after: Page, name: str, suffix: str = "", **labels: str) -> float:
    return after[name].total(suffix, **labels) - before[name].total(suffix, **labels)


def _never_falls(before: Page, after: Page) -> bool:
    return all(
        value <= after[name].samples[key]
        for name, family in before.items()
        if family.kind != "gauge"
        for key, value in family.samples.items()
    )


@pytest.fixture(scope="module")
def server(tiny_model_dir: Path) -> Iterator[Server]:
    """Its KV cache holds one full sequence, so that two preempt each other."""
    flags = ("--max-model-len", "256", "--dtype", "float32", "--kv-cache-gib", "0.0005")
    server = Server(tiny_model_dir, *flags)
    try:
        yield server.wait_ready()
    finally:
        server.clean_up()


def _ask(server: Server, **fields: Any) -> httpx.Response:
    body = {"prompt": list(range(100)), "max_tokens": 8, "ignore_eos": True, **fields}
    return server.client.post("/v1/completions", json=body)


def test_every_name_moves_with_real_traffic(server: Server) -> None:
    before = page_of(server.client)
    _ask(server)
    _ask(server)  # finds the prompt in the cache
    _ask(server, prompt="a", max_tokens=200, n=4, stream=True)  # they preempt each other
    _ask(server, allowed_token_ids=[97], stop_token_ids=[97])
    _ask(server, allowed_token_ids=[98], max_tokens=40)  # repeats itself: drafts are drawn
    busiest = _watch_a_crowd(server)  # then hangs up
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0, "the abort is through")
    after = page_of(server.client)

    for name in _GAUGES:
        assert busiest[name] > 0, name
        assert after[f"vllm:{name}"].total() == 0
    for name in _COUNTERS - {"admission_rejections"}:
        assert moved(before, after, f"vllm:{name}_total") > 0, name
    for name in _HISTOGRAMS:
        assert moved(before, after, f"vllm:{name}", "_count") > 0, name
    for name in _HISTOGRAMS.keys() - {"request_queue_time_seconds"}:
        assert moved(before, after, f"vllm:{name}", "_sum") > 0, name
    for reason, count in {"length": 7, "stop": 1, "abort": 12, "error": 0}.items():
        finished = moved(before, after, "vllm:request_success_total", finished_reason=reason)
        assert finished == count, reason
    assert moved(before, after, "continuo:http_responses_total", status="200") >= 5
    assert _never_falls(before, after)


def _watch_a_crowd(server: Server) -> dict[str, float]:
    """The greatest values of gauges while more sequences are open than the batch has rows. The engine stands
    still while they are looked at and until it is left: no sequence comes to its end."""
    body = {"prompt": "a", "max_tokens": 250, "n": 12, "stream": True, "ignore_eos": True}
    greatest = dict.fromkeys(_GAUGES, 0.0)

    def leave_if_all_are_seen() -> bool:
        with stopped(engine):
            page = page_of(server.client)
            for name in _GAUGES:
                greatest[name] = max(greatest[name], page[f"vllm:{name}"].total())
            if not all(greatest.values()):
                return False
            stream.close()
            wait_for(lambda: not server.metric("continuo:open_sequences"), "the api has noticed")
            return True

    engine = server.await_pid("engine 0")
    with (
        httpx.Client(base_url=server.address, timeout=20) as client,
        client.stream("POST", "/v1/completions", json=body) as stream,
    ):
        lines = stream.iter_lines()  # kept: dropping it would hang up
        next(lines)
        wait_for(leave_if_all_are_seen, "each gauge is above zero")
    return greatest


def test_the_engines_death_takes_no_counter_back(server: Server) -> None:
    _ask(server)
    before = page_of(server.client)
    server.client.get("/v1/completions")  # 405
    _ask(server, max_tokens=1000)  # 400
    server.kill("engine 0")
    wait_for(lambda: not server.is_answering(), "the loss is noticed")
    lost = page_of(server.client)
    assert _never_falls(before, lost)
    assert _ask(server).status_code == 200  # it has waited for the next engine
    after = page_of(server.client)
    assert _never_falls(lost, after)
    assert moved(before, after, "continuo:engine_restarts_total") == 1
    assert moved(before, after, "continuo:engine_deaths_total", cause="SIGKILL") == 1
    assert moved(before, after, "vllm:admission_rejections_total") == 0
    assert moved(before, after, "vllm:generation_tokens_total") == 8
    assert moved(before, after, "vllm:prompt_tokens_total") == 100
    for status in ("400", "405"):
        assert moved(before, after, "continuo:http_responses_total", status=status) >= 1


def test_names_types_and_buckets(client: httpx.Client) -> None:
    wait_until(lambda: "vllm:cache_config_info" in page_of(client))
    page = page_of(client)
    kinds = {f"vllm:{name}_total": "counter" for name in _COUNTERS}
    kinds |= {f"vllm:{name}": "gauge" for name in _GAUGES | {"cache_config_info"}}
    kinds |= {f"vllm:{name}": "histogram" for name in _HISTOGRAMS}
    found = {name: family.kind for name, family in page.items() if name.startswith("vllm:")}
    assert found == kinds
    ours = {name: family.kind for name, family in page.items() if name.startswith("continuo:")}
    assert ours == {
        f"continuo:{name}_total" if kind == "counter" else f"continuo:{name}": kind
        for name, kind in _OURS.items()
    }
    for name, bounds in _HISTOGRAMS.items():
        buckets = [dict(labels).get("le") for _, labels in page[f"vllm:{name}"].samples]
        expected = [*(str(float(bound)) for bound in bounds.split()), "+Inf"]
        assert [bound for bound in buckets if bound] == expected, name


def test_the_cache_and_the_build_are_told_in_labels(client: httpx.Client) -> None:
    wait_until(lambda: "vllm:cache_config_info" in page_of(client))
    page = page_of(client)
    ((_, cache),) = page["vllm:cache_config_info"].samples
    assert (
        dict(cache).items()
        >= {
            "block_size": "16",
            "num_gpu_blocks": "100",
            "cache_dtype": "float32",
            "gpu_memory_utilization": "0.9",
            "enable_prefix_caching": "True",
        }.items()
    )
    ((_, build),) = page["continuo:build_info"].samples
    assert dict(build)["system_fingerprint"] == "fp_fake"
    assert dict(build)["quantization"] == "none"


def test_a_sequence_is_counted_as_often_as_it_says(
    client: httpx.Client, engine: FakeEngine
) -> None:
    before = page_of(client)
    client.post("/v1/completions", json={"prompt": ["Hi", "abc"], "n": 2, "max_tokens": 5})
    after = page_of(client)
    for name, count, total in (
        ("request_params_n", 2, 4),  # once a prompt
        ("request_params_max_tokens", 4, 20),
        ("request_prompt_tokens", 4, 10),
        ("request_generation_tokens", 4, 20),
    ):
        assert moved(before, after, f"vllm:{name}", "_count") == count, name
        assert moved(before, after, f"vllm:{name}", "_sum") == total, name
    for name, count in (
        ("time_to_first_token", 4),
        ("request_queue_time", 4),
        ("request_prefill_time", 4),
        ("inter_token_latency", 16),
        ("request_time_per_output_token", 4),
        ("request_decode_time", 4),
        ("e2e_request_latency", 4),
    ):
        assert moved(before, after, f"vllm:{name}_seconds", "_count") == count, name
    # a sequence's gaps add up to its decode time
    gaps = moved(before, after, "vllm:inter_token_latency_seconds", "_sum")
    assert gaps == pytest.approx(moved(before, after, "vllm:request_decode_time_seconds", "_sum"))


def test_with_best_of_n_is_the_clients_and_all_candidates_count(
    client: httpx.Client, engine: FakeEngine
) -> None:
    before = page_of(client)
    client.post("/v1/completions", json={"prompt": "Hi", "best_of": 3, "max_tokens": 5})
    after = page_of(client)
    assert moved(before, after, "vllm:request_params_n", "_sum") == 1
    assert moved(before, after, "vllm:request_generation_tokens", "_count") == 3


def test_an_engine_that_goes_while_a_request_is_read_counts_as_a_rejection(
    client: httpx.Client, engine_client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def submit(*_: object) -> None:
        raise EngineGoneError("The engine went away.")

    before = page_of(client)
    monkeypatch.setattr(engine_client, "submit", submit)
    assert client.post("/v1/completions", json={"prompt": "Hi"}).status_code == 503
    rejections = "vllm:admission_rejections_total"
    assert moved(before, page_of(client), rejections, reason="engine_gone") == 1


def test_what_others_count_is_on_the_page() -> None:
    metrics = Metrics("m", EngineClient("nowhere"))
    metrics.watch_streams(lambda: 3)
    metrics.watch_progress(lambda: 1.5)
    metrics.on_resume()
    metrics.on_rejection("draining")
    page = read_page(metrics.page().decode())
    assert page["continuo:kept_streams"].total() == 3
    assert page["continuo:engine_progress_age_seconds"].total() == 1.5
    assert page["continuo:resumed_streams_total"].total() == 1
    assert page["vllm:admission_rejections_total"].total(reason="draining") == 1
    reasons = {
        dict(labels)["reason"] for _, labels in page["vllm:admission_rejections_total"].samples
    }
    assert reasons == {
        *("engine_gone", "draining", "quarantined"),
        *("overloaded", "rate_limited", "queue_timeout"),
    }


def test_queues_have_a_limit_and_open_sequences_are_seen(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.script = lambda _: [97]  # then it hangs
    with client.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True}) as stream:
        lines = stream.iter_lines()  # kept: dropping it would hang up
        next(lines)
        page = page_of(client)
        assert page["continuo:open_sequences"].total() == 1
    used, limits = page["continuo:queue_bytes"], page["continuo:queue_limit_bytes"]
    names = [dict(labels)["queue"] for _, labels in used.samples]
    assert names and names == [dict(labels)["queue"] for _, labels in limits.samples]
    assert all(used.total(queue=name) <= limits.total(queue=name) for name in names)


def test_a_request_has_tasks_as_long_as_it_is_open(
    client: httpx.Client, engine: FakeEngine
) -> None:
    def num_tasks() -> float:
        return page_of(client)["continuo:tasks"].total()

    before = num_tasks()
    engine.script = lambda _: [97]  # then it hangs
    with client.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True}) as stream:
        lines = stream.iter_lines()  # kept: dropping it would hang up
        next(lines)
        assert num_tasks() > before
    wait_until(lambda: num_tasks() == before)
