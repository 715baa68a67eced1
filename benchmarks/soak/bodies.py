"""Bodies of completions, of every kind that a client may send, drawn from a generator of random numbers.

The embedded model has a context of 512 tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Body = dict[str, Any]

_WORDS = (
    "the", "old", "king", "fox", "sea", "little", "once", "upon", "a", "time", "house", "bird",
    "said", "and", "was", "went", "night", "tree", "she", "lived",
)  # fmt: skip
# Prompts that begin with one of these find each other's blocks.
_PREFIXES = tuple(
    " ".join(random.Random(number).choice(_WORDS) for _ in range(100)) for number in range(4)
)
_SCHEMA = {
    "type": "object",
    "required": ["name", "age"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
}
_GRAMMARS: tuple[Body, ...] = (
    {"json": _SCHEMA},
    {"regex": "[a-z]{3,9}( [a-z]{3,9}){2,6}"},
    {"choice": ["yes", "no", "perhaps"]},
    {"grammar": 'root ::= ("fox" | "bird") (" and " root)?'},
)


def words(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(num_words))


def plain(rng: random.Random) -> Body:
    """A prompt that begins like others, or like none; sampled or greedy."""
    is_shared = rng.random() < 0.5
    prompt = f"{rng.choice(_PREFIXES)} {words(rng, 5)}" if is_shared else words(rng, 40)
    return {
        "prompt": prompt,
        "max_tokens": rng.choice((1, 1, 5, 5, 20, 20, 60, 120, 240)),
        "temperature": rng.choice((0, 0.7, 1.0)),
        "seed": rng.randrange(1 << 31),
        "ignore_eos": rng.random() < 0.5,
    }


def _choices(rng: random.Random) -> Body:
    return {"n": rng.randrange(2, 5), "max_tokens": rng.choice((1, 5, 40))}


def _prompts(rng: random.Random) -> Body:
    return {"prompt": [words(rng, rng.randrange(1, 30)) for _ in range(3)], "max_tokens": 30}


def _token_ids(rng: random.Random) -> Body:
    return {"prompt": [rng.randrange(1, 4000) for _ in range(rng.randrange(1, 300))]}


def _logprobs(rng: random.Random) -> Body:
    return {"logprobs": rng.choice((0, 1, 5, 20)), "return_token_ids": True}


def _echo(rng: random.Random) -> Body:
    return {"echo": True, "logprobs": rng.choice((None, 1, 5)), "max_tokens": rng.choice((0, 10))}


def _stop(rng: random.Random) -> Body:
    return {"stop": rng.sample([" the", "king", ".", "zq", "\n"], 2), "ignore_eos": True}


def _limits(rng: random.Random) -> Body:
    return {
        "presence_penalty": 0.5,
        "repetition_penalty": 1.2,
        "top_p": 0.9,
        "bad_words": [" the", "king and"],
        "logit_bias": {str(rng.randrange(4000)): 5},
    }


def _best_of(rng: random.Random) -> Body:
    return {"best_of": 3, "n": rng.randrange(1, 3), "max_tokens": 30}


def structured(rng: random.Random) -> Body:
    return {"structured_outputs": rng.choice(_GRAMMARS), "max_tokens": 60, "ignore_eos": False}


def new_grammar(rng: random.Random) -> Body:
    """One that nobody has sent before."""
    name = words(rng, 2) + str(rng.randrange(10**9))
    return {"prompt": "a", "max_tokens": 2, "structured_outputs": {"regex": f"{name}[a-z]+"}}


_EXTRAS: tuple[Callable[[random.Random], Body], ...] = (
    _choices, _prompts, _token_ids, _logprobs, _echo, _stop, _limits, structured,
)  # fmt: skip


def body_of(rng: random.Random, *, is_streamed: bool) -> Body:
    body = plain(rng)
    if rng.random() < 0.7:
        body |= rng.choice(_EXTRAS)(rng)
    elif not is_streamed and rng.random() < 0.2:
        body |= _best_of(rng)
    if rng.random() < 0.05:
        body["cache_salt"] = words(rng, 1)
    if is_streamed:
        body |= {"stream": True, "stream_options": {"include_usage": rng.random() < 0.5}}
    return body
