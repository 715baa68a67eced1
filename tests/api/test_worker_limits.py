"""Limits of keys and counts, over several api processes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.api.conftest import wait_until
from tests.api.prometheus_page import Labels, read_page
from tests.api.worker_rig import BODY, RESUMABLE, Workers, begun, workers

_KEYS = {  # name: scopes and limits
    "any": "infer,metrics",
    "few": "infer concurrent=3",
    "slow": "infer requests_per_s=4",
    "short": "infer tokens_per_min=600",
}


def auth(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer sk-{name}"}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    digests = {name: hashlib.sha256(f"sk-{name}".encode()).hexdigest() for name in _KEYS}
    file.write_text("".join(f"{name} {digests[name]} {rest}\n" for name, rest in _KEYS.items()))
    file.chmod(0o600)
    with workers(api_key_file=str(file)) as running:
        yield running


@pytest.fixture
def clients(two: Workers) -> Iterator[list[httpx.Client]]:
    with two.one_of_each(headers=auth("any")) as found:
        yield found


def test_open_requests_are_counted_over_all_workers(
    two: Workers, clients: list[httpx.Client]
) -> None:
    with ThreadPoolExecutor(4) as pool, two.client(headers=auth("few")) as third:
        with two.engines.paused():
            first = [
                pool.submit(client.post, "/v1/completions", json=BODY, headers=auth("few"))
                for client in clients
            ]
            wait_until(lambda: two.engines.num_running == 2)
            more = pool.submit(third.post, "/v1/completions", json=BODY)
            wait_until(lambda: two.engines.num_running == 3)
            for _ in range(4):  # at whichever worker
                with two.client(headers=auth("few")) as fourth:
                    refused = fourth.post("/v1/completions", json=BODY)
                assert refused.status_code == 429
        assert [each.result(20).status_code for each in (*first, more)] == [200] * 3
    with two.client(headers=auth("few")) as after:
        assert after.post("/v1/completions", json=BODY).status_code == 200


def test_requests_a_second_are_counted_over_all_workers(clients: list[httpx.Client]) -> None:
    started, statuses = time.monotonic(), []
    short = {**BODY, "max_tokens": 1}  # quicker than 4 a second on any machine
    for n in range(16):
        got = clients[n % 2].post("/v1/completions", json=short, headers=auth("slow"))
        statuses.append(got.status_code)
        took_s = time.monotonic() - started
        if n < 4:  # each sees what the other took; meanwhile some comes back
            left = int(got.headers["x-ratelimit-remaining-requests"])
            assert left <= 3 - n + 4 * took_s
        assert got.headers["x-ratelimit-limit-requests"] == "4"
    assert statuses[:4] == [200] * 4
    assert 429 in statuses
    assert statuses.count(200) <= 4 + 4 * took_s


def test_tokens_a_minute_are_counted_and_given_back_over_all_workers(
    clients: list[httpx.Client],
) -> None:
    """A request is charged 201 tokens at most and uses 27: the rest comes back to whoever asks next."""
    body = {**BODY, "max_tokens": 200, "stop_token_ids": [2]}
    for n in range(8):
        got = clients[n % 2].post("/v1/completions", json=body, headers=auth("short"))
        assert got.status_code == 200, got.text
        used = got.json()["usage"]["total_tokens"]
        assert used < 30
    left = int(got.headers["x-ratelimit-remaining-tokens"])
    assert 300 < left < 600


def test_a_dead_workers_open_requests_count_no_more(two: Workers) -> None:
    with (
        two.one_of_each(headers=auth("any")) as clients,
        two.engines.slow(0.2),
        ThreadPoolExecutor(1) as pool,
    ):
        lost = pool.submit(clients[1].post, "/v1/completions", json=BODY, headers=auth("few"))
        wait_until(lambda: two.engines.num_running == 1)
        two.kill(1)
        assert isinstance(lost.exception(20), httpx.TransportError)
    with two.engines.slow(0.05), ThreadPoolExecutor(3) as pool:
        fresh = [two.client(headers=auth("few")) for _ in range(3)]
        done = [pool.submit(client.post, "/v1/completions", json=BODY) for client in fresh]
        assert [each.result(20).status_code for each in done] == [200] * 3
        for client in fresh:
            client.close()
    two.start(1)
    two.wait_ready(1)


def test_a_resumed_streams_key_is_checked_where_it_is_kept(clients: list[httpx.Client]) -> None:
    stream_id, text = begun(clients[0])
    path = f"/v1/completions/{stream_id}/stream"
    for client in clients:
        assert client.get(path).text == text
        assert client.get(path, headers=auth("few")).status_code == 404
        assert client.get(path, headers=auth("wrong")).status_code == 401
        assert client.get(path, headers={"Authorization": ""}).status_code == 401


def test_a_key_of_another_is_another_key(two: Workers, clients: list[httpx.Client]) -> None:
    """The same Idempotency-Key with two API keys is two requests, wherever they arrive."""
    for n in range(4):
        key = {"Idempotency-Key": f"mine-{n}"}
        replies = [
            client.post("/v1/completions", json=BODY, headers={**key, **auth(name)})
            for name in ("any", "short")
            for client in clients
        ]
        assert [each.status_code for each in replies] == [200] * 4
        assert len({each.json()["id"] for each in replies}) == 2
        nobody = {**key, "Authorization": "Bearer x"}
        for client in clients:
            assert client.post("/v1/completions", json=BODY, headers=nobody).status_code == 401


def test_the_page_is_the_sum_whichever_worker_is_asked(
    two: Workers, clients: list[httpx.Client]
) -> None:
    def value(client: httpx.Client, name: str) -> float:
        return read_page(client.get("/metrics").text)[name].total("_count")

    name = "vllm:request_params_n"
    before = value(clients[0], name)
    for client in clients:
        for _ in range(3):
            assert client.post("/v1/completions", json=RESUMABLE).status_code == 200
    assert [value(client, name) - before for client in clients] == [6, 6]


def test_no_counter_goes_back_when_a_worker_dies(two: Workers) -> None:
    with two.one_of_each(headers=auth("any")) as clients:
        for client in clients:
            begun(client)
        before = _counters(clients[0])
        two.kill(1)
    with two.client(headers=auth("any")) as client:
        _check_not_less(_counters(client), before)
        two.start(1)
        two.wait_ready(1)
        _check_not_less(_counters(client), before)
    with two.one_of_each(headers=auth("any")) as clients:
        for client in clients:
            _check_not_less(_counters(client), before)
            assert client.get("/health").status_code == 200


def _counters(client: httpx.Client) -> dict[tuple[str, Labels], float]:
    """Of what the workers count; not what the engines tell, of which there are two here."""
    page = read_page(client.get("/metrics").text)
    found: dict[tuple[str, Labels], float] = {}
    for name in (
        "continuo:http_responses_total",
        "vllm:request_params_n",
        "vllm:request_success_total",
        "vllm:e2e_request_latency_seconds",
    ):
        found |= page[name].samples
    return found


def _check_not_less(
    now: dict[tuple[str, Labels], float], before: dict[tuple[str, Labels], float]
) -> None:
    assert now.keys() >= before.keys()
    assert all(now[key] >= value for key, value in before.items())
