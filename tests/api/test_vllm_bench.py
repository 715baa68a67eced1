"""`vllm bench serve` against the server: it asks as it does, and a strict reader counts what it would."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.conftest import EOS, MODEL, word
from tests.api.fake_engine import FakeEngine
from tests.api.vllm_bench_parser import BenchError, Counted, count, request_body

CHUNK = b'data: {"choices": [{"index": 0, "text": "a"}], "usage": null}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}\n\n'
DONE = b"data: [DONE]\n\n"


def bench(client: httpx.Client, prompt: Any, output_len: int, **sampling: Any) -> Counted:
    body = request_body(MODEL, prompt, output_len, **sampling)
    with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        return count(response.iter_raw())


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"ignore_eos": True},
        {"temperature": 0.0},
        {"top_k": 20, "top_p": 0.95, "min_p": 0.05, "temperature": 0.7},
    ],
)
def test_every_chunk_with_a_choice_is_a_token(
    client: httpx.Client, sampling: dict[str, Any]
) -> None:
    assert bench(client, "Hi", 6, **sampling) == Counted("abcdef", 6, 6, 2)


def test_prompts_of_token_ids(client: httpx.Client) -> None:
    """Its random data set can send them."""
    assert bench(client, [72, 105, 33], 3) == Counted("abc", 3, 3, 3)


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_token_without_text_counts_too(
    client: httpx.Client, engine: FakeEngine, ignore_eos: bool
) -> None:
    """The end token, and half of a character."""
    engine.script = lambda _: [97, 0xC3, 0xA9, EOS, 98]
    counted = bench(client, "Hi", 5, ignore_eos=ignore_eos)
    if ignore_eos:
        assert counted == Counted("aéb", counted.num_chunks, 5, 2)
    else:
        assert counted == Counted("aé", counted.num_chunks, 4, 2)
    assert counted.output_tokens - 1 <= counted.num_chunks <= counted.output_tokens


def test_line_ends_in_a_text_stay_on_one_line(client: httpx.Client, engine: FakeEngine) -> None:
    text = "a\n\n\r\u2028: x\n\ndata: [DONE]\n\n"
    engine.script = lambda _: [*text.encode(), word(" the")]
    num_tokens = len(text.encode()) + 1
    assert bench(client, "Hi", num_tokens).text == text + " the"


@pytest.mark.parametrize(
    "stream",
    [
        b"id: 1:0\n" + CHUNK + USAGE + DONE,
        b"event: token\n" + CHUNK + USAGE + DONE,
        CHUNK.replace(b"data: ", b"data:") + USAGE + DONE,
        CHUNK.replace(b"data: ", b"data:  ", 1).replace(b"{", b"[", 1) + USAGE + DONE,
        CHUNK.replace(b"\n\n", b"\n") + USAGE + DONE,
        CHUNK.replace(b"\n", b"\r\n") + USAGE + DONE,
        CHUNK + DONE,  # without usage
        CHUNK + USAGE + USAGE + DONE,
        CHUNK + USAGE,  # without its end
        CHUNK + USAGE + DONE + CHUNK,
        CHUNK + USAGE + DONE[:-1],
        USAGE + DONE,  # without a token
        CHUNK + b'data: {"error": {"message": "no"}}\n\n' + USAGE + DONE,
        CHUNK[:20] + b"\n\n" + USAGE + DONE,
    ],
)
def test_the_reader_forgives_nothing(stream: bytes) -> None:
    with pytest.raises(BenchError):
        count([stream])


def test_the_reader_reads() -> None:
    """Comments are skipped, and where the network cuts the bytes does not matter."""
    stream = b": ping\n\n" + CHUNK + b": ping\n\n" + USAGE + DONE
    assert count([stream]) == count(bytes([byte]) for byte in stream) == Counted("a", 1, 1, 2)
