"""The reference client, sync and async, plain and streamed, unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest

from tests.api.conftest import MODEL
from tests.api.fake_engine import FakeEngine


@pytest.fixture
def client(base_url: str, engine: FakeEngine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_plain(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model=MODEL, prompt="Hi", max_tokens=4, logprobs=2, n=2, extra_body={"top_k": 5}
    )
    assert [choice.text for choice in reply.choices] == ["abcd", "abcd"]
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.tokens == list("abcd")
    assert reply.usage is not None
    assert reply.usage.total_tokens == 10
    assert reply.system_fingerprint == "fp_fake"


def test_streamed(client: openai.OpenAI) -> None:
    with client.completions.create(
        model=MODEL,
        prompt="Hi",
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "abcd"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


def test_async_plain_and_streamed(base_url: str, engine: FakeEngine) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none") as client:
            reply = await client.completions.create(model=MODEL, prompt=[1, 2], max_tokens=3)
            assert reply.choices[0].text == "abc"
            stream = await client.completions.create(
                model=MODEL, prompt=["a", "b"], max_tokens=3, stream=True, stop="c"
            )
            texts = ["", ""]
            async for chunk in stream:
                for choice in chunk.choices:
                    texts[choice.index] += choice.text
            assert texts == ["ab", "ab"]

    asyncio.run(main())


def test_errors_are_those_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model=MODEL, prompt="a" * 300)
    assert bad.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="other", prompt="a")
    assert unknown.value.code == "model_not_found"


def test_an_error_inside_a_stream_is_raised(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script = lambda _: [97]
    stream = client.completions.create(model=MODEL, prompt="a", stream=True)
    assert next(stream).choices[0].text == "a"
    engine.kill()
    try:
        with pytest.raises(openai.APIError, match="engine is not available"):
            next(stream)
    finally:
        stream.close()
        engine.start()


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
