"""best_of returns the candidates that n alone would show, the likeliest first;
all of them stay in their order."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from tests.properties.asking import Asker, Body, Choice
from tests.properties.bodies import examples, texts


@given(texts, st.integers(0, 1 << 60), st.integers(2, 5), st.data())
@examples(25)
def test_the_best_by_mean_logprob_come_first(
    ask: Asker, prompt: str, seed: int, best_of: int, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, best_of), "n")
    body: Body = {"prompt": prompt, "seed": seed, "max_tokens": 8, "logprobs": 0}
    candidates = ask.plain({**body, "n": best_of})
    best = ask.plain({**body, "n": n, "best_of": best_of})
    ranked = candidates.choices
    if n < best_of:
        ranked = sorted(ranked, key=_mean_logprob, reverse=True)  # of equals the lower index first
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:n]]
    assert best.token_counts == candidates.token_counts


def _mean_logprob(choice: Choice) -> float:
    assert choice.logprobs is not None
    values = choice.logprobs["token_logprobs"]
    return float(sum(values)) / len(values)
