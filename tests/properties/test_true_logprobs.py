"""Logprobs are the model's: against the same weights in float64, prompt tokens and generated ones.

The server runs in fp32. Its values differ from float64's by up to 3.5e-6 in these tests; 2e-5 is allowed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from torch import Tensor

from server.tokenizer import Tokenizer, load_tokenizer
from tests.properties.asking import Asker, Body
from tests.properties.bodies import NUM_TOKENS, examples, id_lists
from tests.properties.float64_model import Float64Model

_TOLERANCE = 2e-5
_END_OF_TEXT = "<|endoftext|>"


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Float64Model:
    return Float64Model(tiny_model_dir)


@pytest.fixture(scope="module")
def ids_of_names(tiny_model_dir: Path) -> dict[str, int]:
    tokenizer = load_tokenizer(str(tiny_model_dir))
    return {_name(tokenizer, i): i for i in range(NUM_TOKENS)}


@given(
    st.lists(id_lists, min_size=1, max_size=3),
    st.integers(0, 20),
    st.integers(0, 12),
    st.sampled_from([0, 1, 2]),
    st.integers(0, 1 << 60),
)
@examples(40)
def test_top_logprobs_hold_the_true_values(
    ask: Asker,
    model: Float64Model,
    ids_of_names: dict[str, int],
    prompts: list[list[int]],
    num_top: int,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> None:
    """What lm-evaluation-harness sends: lists of ids, echo, and a greedy flag by float equality."""
    body: Body = {"prompt": prompts, "logprobs": num_top, "echo": True, "max_tokens": max_tokens}
    body |= {"temperature": temperature, "seed": seed, "presence_penalty": 1, "top_k": 40}
    for prompt, choice in zip(prompts, ask.plain(body).choices, strict=True):
        found = choice.logprobs
        assert found is not None
        token_ids = [ids_of_names[name] for name in found["tokens"]]
        assert token_ids[: len(prompt)] == prompt
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        truth = model.logprobs(token_ids)
        for position in range(1, len(token_ids)):
            entry = _Entry(found, position, ids_of_names)
            _check(entry, truth[position - 1], num_top)


@given(id_lists, st.integers(0, 20))
@examples(30)
def test_prompt_logprobs_hold_the_true_values_and_ranks(
    ask: Asker, model: Float64Model, prompt: list[int], num_top: int
) -> None:
    body: Body = {"prompt": prompt, "prompt_logprobs": num_top, "max_tokens": 1}
    found = ask.plain(body).choices[0].prompt_logprobs
    assert len(found) == len(prompt) and found[0] is None
    truth = model.logprobs(prompt)[:, :NUM_TOKENS]
    for token_id, entries, row in zip(prompt[1:], found[1:], truth, strict=False):
        assert entries is not None and str(token_id) in entries
        assert num_top <= len(entries) <= num_top + 1
        for name, entry in entries.items():
            value = row[int(name)]
            assert entry["logprob"] == pytest.approx(float(value), abs=_TOLERANCE)
            num_above = int((row > value + _TOLERANCE).sum())
            num_near = int((row > value - _TOLERANCE).sum())
            assert num_above < entry["rank"] <= num_near
        ranks = {entry["rank"] for entry in entries.values()}
        assert ranks >= set(range(1, num_top + 1))


class _Entry:
    def __init__(self, found: dict[str, list[Any]], position: int, ids: dict[str, int]) -> None:
        name = found["tokens"][position]
        self.token_id = ids[name]
        self.logprob: float = found["token_logprobs"][position]
        self.top = {ids[key]: value for key, value in found["top_logprobs"][position].items()}


def _check(entry: _Entry, truth: Tensor, num_top: int) -> None:
    assert entry.top[entry.token_id] == entry.logprob, "not the same float"
    for token_id, value in entry.top.items():
        assert value == pytest.approx(float(truth[token_id]), abs=_TOLERANCE)
    drawable = truth[:NUM_TOKENS]  # the rest is padding that no tokenizer entry has
    best = drawable.topk(num_top + 1).values
    assert len(entry.top) in (num_top, num_top + 1)
    if len(entry.top) == num_top:  # the token itself is among the top ones
        assert float(truth[entry.token_id]) >= float(best[num_top - 1]) - _TOLERANCE
    listed = sorted(entry.top.values(), reverse=True)[:num_top]
    for value, expected in zip(listed, best, strict=False):
        assert value == pytest.approx(float(expected), abs=_TOLERANCE)
    is_greedy = entry.logprob == max(entry.top.values())
    if num_top and float(best[0] - best[1]) > 2 * _TOLERANCE:
        assert is_greedy == (entry.token_id == int(drawable.argmax()))


def _name(tokenizer: Tokenizer, token_id: int) -> str:
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
