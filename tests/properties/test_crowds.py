"""Many requests at once, more than the KV cache holds: each gets the reply that it gets alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
from hypothesis import given

from tests.properties.asking import Asker, Body, Reply
from tests.properties.bodies import bodies, examples, num_choices, structured, texts
from tests.serving import Server

_long_bodies = st.builds(
    lambda body, more: {**body, "max_tokens": more}, bodies, st.integers(1, 90)
)
_structured_bodies = st.builds(
    lambda prompt, seed, asked: {"prompt": prompt, "seed": seed, "max_tokens": 60, **asked},
    texts,
    st.integers(0, 1 << 60),
    structured,
)
_crowds = st.lists(st.one_of(_long_bodies, _structured_bodies), min_size=3, max_size=6)


def test_a_reply_does_not_depend_on_the_others(server: Server, ask: Asker) -> None:
    before = server.metric("vllm:num_preemptions_total")
    _crowds_are_answered_as_alone(ask)
    assert server.metric("vllm:num_preemptions_total") > before, "too small a crowd"


@given(crowd=_crowds)
@examples(30)
def _crowds_are_answered_as_alone(ask: Asker, crowd: list[Body]) -> None:
    alone = [ask.plain(body) for body in crowd]
    with ThreadPoolExecutor(len(crowd)) as pool:
        together = list(pool.map(lambda body: ask.streamed(body, num_choices(body)), crowd))
    assert [_answer(reply) for reply in together] == [_answer(reply) for reply in alone]


def _answer(reply: Reply) -> tuple[object, ...]:
    choices = [(c.text, c.logprobs, c.finish_reason, c.stop_reason) for c in reply.choices]
    return (*choices, reply.token_counts)
