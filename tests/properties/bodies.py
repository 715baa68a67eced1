"""Random requests of the whole parameter space that a tiny model can answer in a few milliseconds."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings

from tests.properties.asking import Body

NUM_TOKENS = 298  # of the tiny tokenizer, <|endoftext|> the last
EOS = NUM_TOKENS - 1
# What decoding finds hard: characters of 2 to 4 bytes, joined and combined ones, other line ends.
HARD_TEXTS = (
    "日本語の文章",
    "né́e Ä̂ ế",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪",
    "a\u2028b\u2029c\x85d\r\ne",
    "עברית العربية हिन्दी",
    "\x00\x1f\x7f\ufffd\ufeff",
    "<|endoftext|> 'll ' s  \t\n",
)
texts = st.one_of(
    st.text(min_size=1, max_size=30),
    st.sampled_from(HARD_TEXTS),
    st.lists(st.sampled_from(HARD_TEXTS), min_size=2, max_size=3).map("".join),
)
# Ids of single bytes too: half characters, in every order.
id_lists = st.lists(st.integers(0, NUM_TOKENS - 1), min_size=1, max_size=40)
prompts = st.one_of(
    texts,
    id_lists,
    st.lists(texts, min_size=1, max_size=3),
    st.lists(id_lists, min_size=1, max_size=3),
)
_ids = st.integers(0, NUM_TOKENS - 1)
_OPTIONAL = {
    "temperature": st.sampled_from([0, 0.5, 1, 1.3]),
    "top_p": st.sampled_from([0.1, 0.7, 1]),
    "top_k": st.sampled_from([-1, 0, 1, 5, 50]),
    "min_p": st.sampled_from([0, 0.05, 0.5]),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.5, 2),
    "logit_bias": st.dictionaries(_ids.map(str), st.floats(-100, 100), max_size=4),
    "min_tokens": st.integers(0, 1),
    "ignore_eos": st.booleans(),
    "stop": st.lists(st.text("abeo nt>\ufffd", min_size=1, max_size=2), min_size=1, max_size=4),
    "stop_token_ids": st.lists(_ids, max_size=40),
    "include_stop_str_in_output": st.booleans(),
    "bad_words": st.lists(st.sampled_from(["e", "ab", " a", "Once upon"]), max_size=3),
    # more than stop_token_ids may be: with min_tokens something must be left
    "allowed_token_ids": st.integers(0, 200).map(lambda start: list(range(start, start + 60))),
    "skip_special_tokens": st.booleans(),
    "return_token_ids": st.booleans(),
    "return_tokens_as_token_ids": st.booleans(),
    "truncate_prompt_tokens": st.integers(1, 20),
    "cache_salt": st.sampled_from(["a", "b"]),
    "priority": st.integers(-3, 3),
    "logprobs": st.integers(0, 20),
    "echo": st.booleans(),
    "n": st.integers(1, 3),
}
bodies = st.fixed_dictionaries(
    {
        "prompt": prompts,
        "seed": st.integers(-(1 << 63), (1 << 63) - 1),
        "max_tokens": st.integers(1, 24),
    },
    optional=_OPTIONAL,
)

WORDS = ["yes", "no", "maybe later", "日本", "👍🏽"]
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["a", "bé"]}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
structured = st.sampled_from(
    [
        {"structured_outputs": {"choice": WORDS}},
        {"structured_outputs": {"regex": "[a-c]{1,3}-(é|日){2}"}},
        {"structured_outputs": {"json": _SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": _SCHEMA}}},
    ]
)


def num_choices(body: Body) -> int:
    prompt = body["prompt"]
    is_list = isinstance(prompt, list) and not isinstance(prompt[0], int)
    return (len(prompt) if is_list else 1) * int(body.get("n", 1))


def examples(max_examples: int) -> settings:
    """The same ones in each run, however slow the machine is."""
    return settings(
        max_examples=max_examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
