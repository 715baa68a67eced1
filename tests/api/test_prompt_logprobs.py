"""Logprobs of prompts: packed by the engine, shown in the legacy lists and as `prompt_logprobs`."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.reply.prompt_logprobs import PromptLogprobsCollector
from tests.api.conftest import EOS, word
from tests.api.fake_engine import FakeEngine, logprobs_of, packed_logprobs
from tests.api.test_plain import complete
from tests.api.test_streams import read_chunks


def test_the_shape_is_vllms(client: httpx.Client, engine: FakeEngine) -> None:
    choice = complete(client, prompt=[97, 0xE6, EOS], prompt_logprobs=2)["choices"][0]
    assert choice["logprobs"] is None
    assert choice["text"] == "abcdefghijklmnop"  # the prompt is not echoed
    own = {"logprob": -1.125, "rank": 3}
    assert choice["prompt_logprobs"] == [
        None,
        {
            "230": {**own, "decoded_token": "bytes:\\xe6"},
            "231": {"logprob": -0.25, "rank": 1, "decoded_token": "bytes:\\xe7"},
            "232": {"logprob": -0.5, "rank": 2, "decoded_token": "bytes:\\xe8"},
        },
        {
            "256": {**own, "decoded_token": "<|endoftext|>"},
            "1": {"logprob": -0.25, "rank": 1, "decoded_token": "\x01"},
            "2": {"logprob": -0.5, "rank": 2, "decoded_token": "\x02"},
        },
    ]
    assert engine.submitted[0].params.prompt_logprobs == 2
    assert engine.submitted[0].params.logprobs is None


@pytest.mark.parametrize(("num_top", "num_entries"), [(0, 1), (1, 2), (3, 3), (20, 20)])
def test_the_tokens_own_entry_is_always_there_and_first(
    client: httpx.Client, num_top: int, num_entries: int
) -> None:
    maps = complete(client, prompt="abcd", prompt_logprobs=num_top)["choices"][0]["prompt_logprobs"]
    assert [next(iter(entries)) for entries in maps[1:]] == ["98", "99", "100"]
    assert [len(entries) for entries in maps[1:]] == [num_entries] * 3


def test_a_prompt_of_one_token_has_only_null(client: httpx.Client) -> None:
    choice = complete(client, prompt="a", prompt_logprobs=5)["choices"][0]
    assert choice["prompt_logprobs"] == [None]
    choice = complete(client, prompt="a", echo=True, logprobs=5, max_tokens=0)["choices"][0]
    assert choice["logprobs"]["top_logprobs"] == [None]


def test_all_choices_share_what_the_first_one_asked_for(
    client: httpx.Client, engine: FakeEngine
) -> None:
    fields = {"prompt": ["abc", "Hello"], "n": 3, "logprobs": 1, "echo": True, "max_tokens": 2}
    reply = complete(client, **fields, prompt_logprobs=2)
    asked = [request.params.prompt_logprobs for request in engine.submitted]
    assert asked == [2, None, None] * 2  # the larger of the two
    for start in (0, 3):
        one = reply["choices"][start]
        for choice in reply["choices"][start + 1 : start + 3]:
            assert choice["logprobs"] == one["logprobs"]
            assert choice["prompt_logprobs"] == one["prompt_logprobs"]
    first = reply["choices"][0]
    assert first["logprobs"]["tokens"] == list("abcab")
    assert [top and len(top) for top in first["logprobs"]["top_logprobs"]] == [None, 2, 2, 2, 2]
    assert [maps and len(maps) for maps in first["prompt_logprobs"]] == [None, 3, 3]
    chunks = read_chunks(client, **fields)
    for index, choice in enumerate(reply["choices"]):
        (chunk, *_) = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        plain = {
            name: values[: len(chunk["logprobs"][name])]
            for name, values in choice["logprobs"].items()
        }
        assert chunk["logprobs"] == plain


def test_echoed_logprobs_match_their_text(client: httpx.Client) -> None:
    """Half characters at the border of prompt and generated text."""
    fields: dict[str, Any] = {"echo": True, "logprobs": 0, "max_tokens": 1}
    prompt = [word("é日"), 0xE6, 0x97]
    choice = complete(client, prompt=prompt, **fields)["choices"][0]
    assert choice["text"] == "é日\ufffda"
    assert choice["logprobs"]["text_offset"] == [0, 2, 2, 3]
    assert choice["logprobs"]["tokens"] == ["é日", "bytes:\\xe6", "bytes:\\x97", "a"]


def test_a_large_reply_comes_in_parts_and_is_whole(
    client: httpx.Client, engine: FakeEngine
) -> None:
    """A longer prompt than fits one part, several prompts, both formats."""
    engine.prompt_rows_per_step = 100
    prompts = [[(i * k) % 256 for i in range(1, 252)] for k in (3, 5, 7)]
    body = {"prompt": prompts, "max_tokens": 2, "echo": True, "logprobs": 20, "prompt_logprobs": 20}
    response = client.post("/v1/completions", json=body)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["transfer-encoding"] == "chunked"
    choices = response.json()["choices"]
    assert len(choices) == 3
    for prompt, choice in zip(prompts, choices, strict=True):
        assert [len(values) for values in choice["logprobs"].values()] == [253] * 4
        values = choice["logprobs"]["token_logprobs"]
        assert values == [None] + [-1.125] * 252
        for token_id, entries in zip(prompt[1:], choice["prompt_logprobs"][1:], strict=True):
            row = logprobs_of(token_id, 20)
            expected = dict(zip(map(str, row.top_ids), row.top_logprobs, strict=True))
            shown = {name: entry["logprob"] for name, entry in entries.items()}
            assert shown == {**expected, str(token_id): row.logprob}


def test_a_small_reply_has_a_length(client: httpx.Client) -> None:
    response = client.post("/v1/completions", json={"prompt": "abc", "prompt_logprobs": 1})
    assert int(response.headers["content-length"]) == len(response.content)
    assert json.loads(response.content)


rows = st.lists(st.integers(0, 255), min_size=1, max_size=12)


@given(rows, st.integers(0, 20), st.integers(0, 20), st.data())
@settings(deadline=None)
def test_chunks_however_cut_give_the_rows_once(
    ids: list[int], num_sent: int, num_shown: int, data: st.DataObject
) -> None:
    """Also where a part comes again, as after a replay."""
    collector = PromptLogprobsCollector()
    known = 0
    while known < len(ids):
        start = data.draw(st.integers(0, known))
        end = data.draw(st.integers(start + 1, len(ids)))
        collector.add(packed_logprobs(0, ids[start:end], start + 1, num_sent))
        known = max(known, end)
        assert collector.num_rows == known
    expected = [logprobs_of(token_id, min(num_sent, num_shown)) for token_id in ids]
    assert list(collector.rows(num_shown)) == expected


def test_a_gap_is_a_fault() -> None:
    collector = PromptLogprobsCollector()
    with pytest.raises(ValueError, match="gap"):
        collector.add(packed_logprobs(0, [97], 2, 1))


def test_infinities_are_sent_as_a_number(client: httpx.Client, engine: FakeEngine) -> None:
    engine.logprob = lambda *_: float("-inf")
    choice = complete(client, max_tokens=1, logprobs=1)["choices"][0]
    assert choice["logprobs"]["token_logprobs"] == [-9999.0]
    assert choice["logprobs"]["top_logprobs"][0]["a"] == -9999.0
