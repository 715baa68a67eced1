"""One request, plain and streamed, and its reply in a form that both can be compared in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

Body = dict[str, Any]
LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


@dataclass
class Choice:
    text: str = ""
    logprobs: dict[str, list[Any]] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    num_chunks: int = 1
    token_ids: list[int] = field(default_factory=list)  # with return_token_ids
    prompt_token_ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[dict[str, dict[str, Any]] | None] = field(default_factory=list)


@dataclass
class Reply:
    choices: list[Choice]
    usage: dict[str, Any]
    chunk_usages: list[dict[str, Any]] = field(default_factory=list)  # of chunks with a choice

    @property
    def token_counts(self) -> tuple[int, int, int]:
        """All of usage but the cached tokens, which depend on what ran before."""
        usage = self.usage
        return usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]


class Asker:
    """Asks a server over HTTP. Every reply must be a 200."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def plain(self, body: Body) -> Reply:
        response = self._client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        reply = response.json()
        indices = [choice.pop("index") for choice in reply["choices"]]
        assert indices == list(range(len(indices)))
        return Reply([Choice(**choice) for choice in reply["choices"]], reply["usage"])

    def streamed(self, body: Body, num_choices: int, *, is_continuous: bool = False) -> Reply:
        """The chunks put together again."""
        options = {"include_usage": True, "continuous_usage_stats": is_continuous}
        chunks = self._chunks({**body, "stream": True, "stream_options": options})
        assert chunks[-1]["choices"] == []
        reply = Reply([Choice(num_chunks=0) for _ in range(num_choices)], chunks[-1]["usage"])
        for chunk in chunks[:-1]:
            (piece,) = chunk["choices"]
            _add(reply.choices[piece["index"]], piece)
            assert (chunk["usage"] is not None) == is_continuous
            if is_continuous:
                reply.chunk_usages.append(chunk["usage"])
        return reply

    def _chunks(self, body: Body) -> list[dict[str, Any]]:
        """Each event is one line `data: {json}` and a blank one; the last is [DONE]."""
        response = self._client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        events = response.content.decode("utf-8").split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        assert all(event.startswith("data: {") and "\n" not in event for event in events[:-2])
        return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def _add(choice: Choice, piece: dict[str, Any]) -> None:
    assert choice.finish_reason is None, "a chunk after the last one"
    choice.text += piece["text"]
    choice.finish_reason = piece["finish_reason"]
    choice.stop_reason = piece["stop_reason"]
    choice.num_chunks += 1
    choice.token_ids += piece.get("token_ids", [])
    choice.prompt_token_ids += piece.get("prompt_token_ids", [])
    if piece["logprobs"] is not None:
        lists = choice.logprobs = choice.logprobs or {name: [] for name in LISTS}
        for name in LISTS:
            lists[name] += piece["logprobs"][name]
