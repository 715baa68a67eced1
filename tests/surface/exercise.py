"""A round through everything that a server answers, right and wrong; what two servers must say alike."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx

CANARY = "c4n4ry-of-the-surface"
COMPLETIONS = "/v1/completions"
STRUCTURED = {"structured_outputs": {"regex": "[a-z ]{1,12}"}}
PAGES = (
    "/", "/docs", "/docs/start.js", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/openapi.json",
    "/version", "/health", "/ready", "/metrics", "/v1/models", "/v1/models/tiny-gpt", "/tokenizer_info",
)  # fmt: skip

# each with a seed, so that they can be compared
GOOD: list[dict[str, Any]] = [
    {"prompt": CANARY, "max_tokens": 12},
    {"prompt": ["a", CANARY], "n": 2, "max_tokens": 5, "logprobs": 3, "echo": True},
    {"prompt": [1, 2, 3], "max_tokens": 8, "temperature": 0, "prompt_logprobs": 2},
    {"prompt": "Once upon", "max_tokens": 20, "stream": True, "stop": [CANARY, "the"]},
    {
        "prompt": CANARY * 3,
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    {"prompt": "Once", "max_tokens": 16, **STRUCTURED},
    {"prompt": "Once", "max_tokens": 6, "logit_bias": {"5": -100}, "bad_words": [CANARY]},
]
BAD: list[dict[str, Any]] = [
    {"prompt": ""},
    {"prompt": CANARY, "model": CANARY},
    {"prompt": [-1]},
    {"prompt": [320]},
    {"prompt": CANARY, "temperature": CANARY},
    {"prompt": CANARY, "max_tokens": 10**9},
    {"prompt": CANARY, "n": 0},
    {"prompt": CANARY, "logit_bias": {"320": 1}},
    {"prompt": CANARY, CANARY: 1},
    {"prompt": CANARY, "structured_outputs": {"regex": f"({CANARY}"}},
    {"prompt": CANARY, "structured_outputs": {"grammar": f"start: {CANARY} /(/"}},
    {"prompt": CANARY, "structured_outputs": {"json": {"$ref": f"http://{CANARY}.example/x"}}},
    {"prompt": CANARY, "allowed_token_ids": [5], "bad_words": ["a"], "stop_token_ids": [10**6]},
]
RAW: list[tuple[str, str, dict[str, str], bytes]] = [
    ("POST", COMPLETIONS, {"Content-Type": "application/json"}, b'{"prompt": "' + CANARY.encode()),
    ("POST", COMPLETIONS, {"Content-Type": "application/json"}, b"[" * 100_000),
    ("POST", COMPLETIONS, {"Content-Type": "application/json"}, b'{"prompt": "\xff"}'),
    ("POST", COMPLETIONS, {"Content-Type": "text/plain"}, CANARY.encode()),
    ("GET", f"{COMPLETIONS}/{CANARY}/stream", {"Last-Event-ID": CANARY}, b""),
    ("GET", f"/{CANARY}", {}, b""),
    ("DELETE", "/v1/models/tiny-gpt", {}, b""),
    ("POST", "/v1/chat/completions", {}, CANARY.encode()),
    ("POST", "/tokenize", {"Content-Type": "application/json"}, b'{"prompt": 5}'),
    ("POST", "/detokenize", {"Content-Type": "application/json"}, b'{"tokens": [1, 99999]}'),
]
_OWN = re.compile(r'"(?:id|created|cached_tokens)":\s?(?:"[^"]*"|\d+),?')  # what differs by itself


def exercise(client: httpx.Client) -> list[tuple[int, str]]:
    """Status and text of every answer, without ids, times and what was cached; of a stream what it comes to,
    as tokens may share an event."""
    said = [client.post(COMPLETIONS, json={"seed": 7, **body}) for body in (*GOOD, *BAD)]
    said += [
        client.request(method, path, headers=headers, content=content)
        for method, path, headers, content in RAW
    ]
    return [(each.status_code, _joined(each.text) or _OWN.sub("", each.text)) for each in said]


def _joined(text: str) -> str:
    """The text of a stream's events and how it ended; empty for what is none."""
    *events, end = text.split("\n\n")[:-1] or [""]
    if end != "data: [DONE]":
        return ""
    choices = [json.loads(each.removeprefix("data: "))["choices"] for each in events]
    first = [choice for each in choices for choice in each]
    return "".join(each["text"] for each in first) + str(first[-1]["finish_reason"])
