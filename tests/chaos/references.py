"""Sixteen requests of every kind, long enough that they are always open, and what each of them must give."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tests.chaos.reading import Answer, Body, ask

_WORDS = ("the", "server", "never", "stopped", "once", "upon", "a", "time", "little", "stream")
_SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 5, "maxLength": 60},
        "lines": {
            "type": "array",
            "items": {"type": "string", "minLength": 20, "maxLength": 60},
            "minItems": 8,
            "maxItems": 12,
        },
    },
    "required": ["title", "lines"],
    "additionalProperties": False,
}


@dataclass
class Reference:
    name: str
    body: Body
    answer: Answer
    is_cut: bool = False  # its stream is cut and resumed now and then

    def check(self, answer: Answer) -> None:
        if answer != self.answer:
            raise AssertionError(f"{self.name}: {_difference(self.answer, answer)}")


def _difference(expected: Any, found: Any, path: str = "answer") -> str:
    """The first place where they differ: the whole of both would be some 100 KB."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        for key in expected:
            if expected[key] != found[key]:
                return _difference(expected[key], found[key], f"{path}.{key}")
    if isinstance(expected, (list, str)) and type(expected) is type(found):
        pairs = zip(expected, found, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))
        shown = [f"[{at}:] {part[at : at + 8]!r} of {len(part)}" for part in (expected, found)]
        return f"{path}: expected {shown[0]}, found {shown[1]}"
    return f"{path}: expected {expected!r:.200}, found {found!r:.200}"


def _sampled(seed: int, **fields: Any) -> Body:
    return {"prompt": "Once upon a time", "temperature": 0.9, "ignore_eos": True,
            "return_token_ids": True, "seed": seed, **fields}  # fmt: skip


def _greedy(seed: int, **fields: Any) -> Body:
    return _sampled(seed, **{"temperature": 0, **fields})


def _streamed(body: Body, **options: bool) -> Body:
    return {**body, "stream": True, "stream_options": {"include_usage": True, **options}}


def _resumable(body: Body, **options: bool) -> Body:
    return _streamed(body, resumable=True, **options)


def _text(num_words: int) -> str:
    rng = random.Random(4)
    return " ".join(rng.choice(_WORDS) for _ in range(num_words))


def _bodies() -> dict[str, Body]:
    prompt_ids = [random.Random(5).randrange(297) for _ in range(4000)]
    two = {"n": 2, "prompt": "There was"}
    bad = {"bad_words": ["e", "ab", " a", "Once upon"], "top_p": 0.95}
    penalties = {"presence_penalty": 0.7, "frequency_penalty": 0.3, "repetition_penalty": 1.1}
    echo = {"echo": True, "prompt_logprobs": 2, "prompt": _text(40)}
    ends = {"ignore_eos": False, "min_tokens": 300, "temperature": 1.5}
    schema = {"structured_outputs": {"json": _SCHEMA}, "ignore_eos": False}
    return {
        "greedy plain": _greedy(0, max_tokens=1500),
        "greedy streamed": _streamed(_greedy(1, max_tokens=1200, prompt="The server")),
        "greedy resumable": _resumable(_greedy(2, max_tokens=1200, prompt="A little")),
        "sampled plain": _sampled(3, max_tokens=1500, top_k=50),
        "sampled streamed": _streamed(_sampled(4, max_tokens=1500, min_p=0.01)),
        "sampled resumable, cut": _resumable(_sampled(5, max_tokens=1500)),
        "two choices": _streamed(_sampled(6, max_tokens=600, **two)),
        "logprobs": _streamed(_sampled(7, max_tokens=400, logprobs=5)),
        "echo and prompt logprobs": _sampled(8, max_tokens=600, logprobs=1, **echo),
        "stop string": _streamed(_sampled(9, max_tokens=1000)),
        "JSON schema": _streamed(_sampled(10, max_tokens=1000, **schema)),
        "bad words, cut": _resumable(_sampled(11, max_tokens=800, **bad)),
        "min_tokens": _streamed(_sampled(12, max_tokens=1200, **ends)),
        "penalties": _sampled(13, max_tokens=1000, **penalties),
        "long prompt": _streamed(_sampled(14, max_tokens=600, prompt=prompt_ids)),
        "two choices, logprobs, cut": _resumable(
            _sampled(15, max_tokens=300, logprobs=0, **two), continuous_usage_stats=True
        ),
    }


def references(address: str, num_at_once: int = 1) -> list[Reference]:
    """Each run undisturbed; alone, if there is time for it."""
    bodies = _bodies()
    text = ask(address, bodies["stop string"])["choices"][0]["text"]
    bodies["stop string"]["stop"] = _late_piece(text)

    def reference(name: str) -> Reference:
        return Reference(name, bodies[name], ask(address, bodies[name]), is_cut="cut" in name)

    with ThreadPoolExecutor(num_at_once) as pool:
        found = list(pool.map(reference, bodies))
    by_name = {each.name: each.answer for each in found}
    json.loads(by_name["JSON schema"]["choices"][0]["text"])
    assert by_name["stop string"]["choices"][0]["finish_reason"] == "stop"
    return found


def _late_piece(text: str) -> str:
    """Of the text's second half, and nowhere before."""
    for at in range(len(text) // 2, len(text) - 4):
        piece = text[at : at + 4]
        if "\ufffd" not in piece and text.find(piece) == at:
            return piece
    raise AssertionError("the text repeats itself")
