"""What a server is, before it is measured: its model, its context, its tokens per word of our text."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from time import perf_counter
from typing import Any

import msgspec

from server.bench.completion import complete
from server.bench.config import BenchConfig
from server.bench.connection import BodyReader, HttpClient, TransferError
from server.bench.record import Record
from server.bench.requests import ServerFacts, request_body
from server.bench.target import Target
from server.bench.text import make_text
from server.errors import ConfigError

ROUTES = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_PROBE_WORDS = 64
_MAX_LIST_BYTES = 4 << 20
_LIST_TIMEOUT_S = 30.0
_REFUSALS = ("HTTP 400", "HTTP 422")


async def probe(client: HttpClient, target: Target, config: BenchConfig) -> ServerFacts:
    """Raises ConfigError with what an operator can do about it."""
    facts = await _choose_model(client, target, config)
    record = await _try(client, target, config, facts)
    if record.failure in _REFUSALS:
        without = replace(facts, counts_tokens=False)
        second = await _try(client, target, config, without)
        if second.is_ok:
            return without
    if record.failure:
        raise ConfigError(_why(config, record))
    return replace(facts, tokens_per_word=(record.prompt_tokens or _PROBE_WORDS) / _PROBE_WORDS)


async def _choose_model(client: HttpClient, target: Target, config: BenchConfig) -> ServerFacts:
    cards = await _list_models(client, target, config)
    names = [card["id"] for card in cards]
    if config.model and names and config.model not in names:
        raise ConfigError(
            f"--model {config.model!r}: the server has {', '.join(map(repr, names[:10]))}."
        )
    if not (config.model or names):
        raise ConfigError("The server lists no models at /v1/models: name one with --model.")
    name = config.model or names[0]
    limits = [card.get("max_model_len") for card in cards if card["id"] == name]
    limit = limits[0] if limits and isinstance(limits[0], int) else None
    return ServerFacts(name, limit, 1.0, True)


async def _list_models(
    client: HttpClient, target: Target, config: BenchConfig
) -> list[dict[str, Any]]:
    """Those with a name; none where the route is missing."""
    reader = BodyReader(_MAX_LIST_BYTES)
    try:
        await client.send(target.get("/v1/models"), reader, _LIST_TIMEOUT_S)
    except TransferError as error:
        raise ConfigError(f"No answer from {config.url}: {error}.") from error
    if reader.status in (401, 403):
        raise ConfigError(f"The server wants another key than --api-key (HTTP {reader.status}).")
    if reader.status != 200:
        return []
    try:
        document = msgspec.json.decode(reader.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config.url} does not answer as an API: no JSON.") from error
    cards = document.get("data") if isinstance(document, dict) else None
    listed = cards if isinstance(cards, list) else []
    return [card for card in listed if isinstance(card, dict) and isinstance(card.get("id"), str)]


async def _try(
    client: HttpClient, target: Target, config: BenchConfig, facts: ServerFacts
) -> Record:
    ids = list(range(100, 100 + 8))
    text = make_text(Random(config.seed), _PROBE_WORDS)
    prompt = ids if config.prompts == "token-ids" else text
    body = request_body(config, facts, prompt, 1)
    record = Record(perf_counter(), 1, 0)
    request = target.post(ROUTES[config.endpoint], body)
    await complete(client, request, record, config.timeout, needs_done=config.needs_done)
    return record


def _why(config: BenchConfig, record: Record) -> str:
    said = f"{record.failure}: {record.message}" if record.message else record.failure
    sentence = f"The server does not serve {ROUTES[config.endpoint]} as asked ({said})."
    if record.failure == "HTTP 404" and config.endpoint == "completions":
        return f"{sentence} Perhaps it has only --endpoint chat."
    if record.failure in _REFUSALS and config.ignore_eos:
        return f"{sentence} Servers that refuse ignore_eos need --no-ignore-eos."
    return sentence
