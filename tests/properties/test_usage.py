"""Usage adds up: tokens that were sent, prompts counted once, every chunk's sum growing to the last."""

from __future__ import annotations

import itertools

from hypothesis import given

from tests.properties.asking import Asker, Body
from tests.properties.bodies import bodies, examples, num_choices


@given(bodies)
@examples(40)
def test_usage_counts_the_tokens_of_all_choices(ask: Asker, body: Body) -> None:
    body = {**body, "logprobs": 0, "echo": False, "return_token_ids": True}
    reply = ask.plain(body)
    num_prompt, num_generated, num_total = reply.token_counts
    assert num_total == num_prompt + num_generated
    assert num_generated == sum(len(choice.token_ids) for choice in reply.choices)
    for choice in reply.choices:
        assert choice.logprobs is not None
        assert len(choice.logprobs["tokens"]) == len(choice.token_ids)
        assert 1 <= len(choice.token_ids) <= body["max_tokens"]
    assert 0 <= reply.usage["prompt_tokens_details"]["cached_tokens"] < num_prompt
    ids = [each.prompt_token_ids for each in reply.choices[:: body.get("n", 1)]]
    assert num_prompt == sum(map(len, ids))


@given(bodies)
@examples(40)
def test_continuous_usage_grows_to_the_last_chunks(ask: Asker, body: Body) -> None:
    reply = ask.streamed(body, num_choices(body), is_continuous=True)
    counts = [usage["completion_tokens"] for usage in reply.chunk_usages]
    assert counts[0] >= 1
    assert all(a < b for a, b in itertools.pairwise(counts)), "a chunk without a token"
    assert counts[-1] == reply.usage["completion_tokens"]
    for usage in reply.chunk_usages:
        assert usage["prompt_tokens"] == reply.usage["prompt_tokens"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
