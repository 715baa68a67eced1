"""The reference client, sync and async, plain and streamed, its errors and its retries: unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion

from tests.api.conftest import MODEL, wait_until
from tests.api.fake_engine import FakeEngine


@pytest.fixture
def client(base_url: str, engine: FakeEngine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


REQUESTS: list[dict[str, Any]] = [
    {"prompt": "Hi"},
    {"prompt": ["Hi", "Ho"], "n": 2, "max_tokens": 3, "temperature": 1, "top_p": 1},
    {"prompt": [72, 105], "stop": ["f"], "seed": 5, "user": "somebody"},
    {"prompt": [[72], [105]], "logprobs": 2, "echo": True, "max_tokens": 2},
    {"prompt": "Hi", "logit_bias": {"50": -100}, "presence_penalty": 1, "frequency_penalty": -1},
    {"prompt": "Hi", "best_of": 1, "suffix": None, "max_tokens": 1},
    {
        "prompt": "Hi",
        "extra_body": {
            "top_k": 5,
            "min_p": 0,
            "repetition_penalty": 1,
            "min_tokens": 2,
            "ignore_eos": True,
            "stop_token_ids": [100],
            "structured_outputs": None,
            "bad_words": ["b"],
            "return_token_ids": True,
            "cache_salt": "x",
            "priority": 1,
            "request_id": "mine",
        },
    },
    {"prompt": "Hi", "extra_body": {"structured_outputs": {"choice": ["a", "b"]}}},
    {"prompt": "Hi", "extra_body": {"response_format": {"type": "json_object"}}},
]


def joined(chunks: list[Completion]) -> dict[int, tuple[str, str | None]]:
    """Text and finish reason by choice."""
    found: dict[int, tuple[str, str | None]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            text, _ = found.get(choice.index, ("", None))
            found[choice.index] = (text + choice.text, choice.finish_reason)
    return found


@pytest.mark.parametrize("fields", REQUESTS)
def test_sync_plain_and_streamed(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    reply = client.completions.create(model=MODEL, **fields)
    with client.completions.create(model=MODEL, stream=True, **fields) as stream:
        chunks = list(stream)
    assert joined(chunks) == joined([reply])
    assert reply.system_fingerprint == chunks[0].system_fingerprint == "fp_fake"
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("fields", REQUESTS)
def test_async_plain_and_streamed(
    base_url: str, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none") as client:
            reply = await client.completions.create(model=MODEL, **fields)
            stream = await client.completions.create(model=MODEL, stream=True, **fields)
            assert joined([chunk async for chunk in stream]) == joined([reply])

    asyncio.run(main())


def test_plain(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model=MODEL, prompt="Hi", max_tokens=4, logprobs=2, n=2, extra_body={"top_k": 5}
    )
    assert [choice.text for choice in reply.choices] == ["abcd", "abcd"]
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.tokens == list("abcd")
    assert reply.usage is not None
    assert reply.usage.total_tokens == 10
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 0


def test_usage_of_a_stream(client: openai.OpenAI) -> None:
    with client.completions.create(
        model=MODEL,
        prompt="Hi",
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


def test_many_at_once(base_url: str, engine: FakeEngine) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none") as client:

            async def one(i: int) -> str:
                stream = await client.completions.create(
                    model=MODEL, prompt="Hi", max_tokens=1 + i % 20, stream=True
                )
                return joined([chunk async for chunk in stream])[0][0]

            texts = await asyncio.gather(*map(one, range(40)))
            assert texts == ["abcdefghijklmnopqrst"[: 1 + i % 20] for i in range(40)]

    asyncio.run(main())


def test_errors_are_those_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model=MODEL, prompt="a" * 300)
    assert bad.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model=MODEL, prompt="a", suffix="b", stream=True)
    assert (bad.value.param, bad.value.type) == ("suffix", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="other", prompt="a")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="/v1/completions"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a"}])


def test_errors_of_the_async_client(base_url: str, engine: FakeEngine) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none") as client:
            with pytest.raises(openai.BadRequestError) as bad:
                await client.completions.create(model=MODEL, prompt="a", n=129)
            assert bad.value.param == "n"

    asyncio.run(main())


class _Counted(httpx.Client):
    """Knows how often the client above it tried; something may happen behind the first reply."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        hooks = {"request": [self._on_request], "response": [self._on_response]}
        super().__init__(event_hooks=hooks)
        self.num_tries = 0
        self._then = then

    def _on_request(self, _: httpx.Request) -> None:
        self.num_tries += 1

    def _on_response(self, _: httpx.Response) -> None:
        if self.num_tries == 1:
            self._then()


def retrying(base_url: str, http_client: _Counted) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", http_client=http_client)


def test_a_client_tries_again_until_the_engine_is_back(
    base_url: str, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one has to that comes while no engine is back in time."""
    monkeypatch.setattr("server.api.engine_client.ENGINE_WAIT_S", 0.02)
    counted = _Counted(engine.start)
    engine.kill()
    with httpx.Client(base_url=base_url) as plain:
        wait_until(lambda: plain.get("/ready").status_code == 503)
        response = plain.post("/v1/completions", json={"prompt": "a"})
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    with retrying(base_url, counted) as client:
        reply = client.completions.create(model=MODEL, prompt="Hi", max_tokens=1)
    assert reply.choices[0].text == "a"
    assert counted.num_tries in (2, 3)


def test_a_client_does_not_repeat_what_cannot_succeed(
    base_url: str, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = _Counted()
    with retrying(base_url, counted) as client:
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model=MODEL, prompt="")
        assert counted.num_tries == 1
        monkeypatch.setattr("server.api.routes.completions.parse_completion", lambda _: 1 / 0)
        with pytest.raises(openai.InternalServerError):
            client.completions.create(model=MODEL, prompt="Hi")
        assert counted.num_tries == 2


def test_an_error_inside_a_stream_is_raised(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = lambda _: [97]
    engine.failures = {0: "internal"}
    stream = client.completions.create(model=MODEL, prompt="a", stream=True)
    assert next(stream).choices[0].text == "a"
    with pytest.raises(openai.APIError, match="failed to compute this request"):
        next(stream)
    stream.close()


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
