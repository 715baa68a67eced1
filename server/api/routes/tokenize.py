"""/tokenize, /detokenize and /tokenizer_info, as vLLM has them: text to ids and back, without the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from server.api.engine_client import EngineClient
from server.api.reply.json_parts import JsonPartsResponse, item_parts
from server.api.request.body import read_json_body
from server.api.request.crowds import refuse_crowds
from server.api.request.long_work import Line, bodies, texts
from server.api.request.protocol import TokenIds
from server.api.request.strict_body import parse_strict
from server.api.routes.completions import unknown_model
from server.api.routes.get_route import get_route
from server.errors import EngineGoneError, RequestError
from server.tokenizer import Tokenizer
from server.tokenizer.encoding import PackedIds

_OFF_LOOP_BYTES = 4096  # more take over half a millisecond: not on the event loop
_LONG_BYTES = 1 << 16  # more wait behind each other
_PART_IDS = 256  # of a reply: a part takes some 0.1 ms with strings
_CLOSED = ConfigDict(strict=True, extra="forbid")
_EXPECTED = {
    "model": "a string",
    "prompt": "a string",
    "tokens": "a list of token ids",
    "add_special_tokens": "true or false",
    "return_token_strs": "true or false",
}


class TokenizeRequest(BaseModel):
    model_config = _CLOSED

    model: str | None = Field(None, description="A served name. Default: the only one.")
    prompt: str = Field(
        description="What spells a special token is text, as in a completion's prompt; only a prompt "
        "that is nothing else is that token.",
        examples=["Once upon a time"],
    )
    add_special_tokens: bool | None = Field(
        None, description="Without effect: the tokenizers served add none."
    )
    return_token_strs: bool | None = Field(None, description="Each token's text as well.")


class TokenizeReply(BaseModel):
    model_config = _CLOSED

    count: int
    max_model_len: int = Field(description="longest prompt + completion, in tokens")
    tokens: list[int]
    token_strs: list[str] | None = Field(description="null without return_token_strs")


class DetokenizeRequest(BaseModel):
    model_config = _CLOSED

    model: str | None = Field(None, description="A served name. Default: the only one.")
    tokens: TokenIds = Field(description="Ids of the vocabulary.", examples=[[72, 105]])


class DetokenizeReply(BaseModel):
    model_config = _CLOSED

    prompt: str = Field(description="Special tokens by their spelling; bytes of no character as �.")


class TokenizerInfo(BaseModel):
    model_config = _CLOSED

    tokenizer_class: str
    vocab_size: int = Field(description="ids are below it")
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None = Field(description="always null: nothing is ever padded")
    bos_token_id: int | None
    eos_token_id: int | None
    add_bos_token: bool
    special_tokens: dict[str, int]
    max_model_len: int | None


def tokenize_router(model_name: str, tokenizer: Tokenizer, engine: EngineClient) -> APIRouter:
    router = APIRouter()

    def check_model(name: str | None) -> None:
        if name is not None and name != model_name:
            raise unknown_model()

    @router.post("/tokenize", response_model=None)
    async def tokenize(request: Request) -> Response:
        body = await read_json_body(request)
        asked = await _parsed(TokenizeRequest, body)
        check_model(asked.model)
        if engine.info is None:
            raise EngineGoneError("The engine is not connected.")
        ids = await _maybe_off_loop(texts, len(body), _ids, tokenizer, asked.prompt)
        strings = tokenizer if asked.return_token_strs else None
        return JsonPartsResponse(_tokenized(ids, engine.info.max_model_len, strings))

    @router.post("/detokenize", response_model=None)
    async def detokenize(request: Request) -> Response:
        body = await read_json_body(request)
        asked = await _parsed(DetokenizeRequest, body)
        check_model(asked.model)
        reply = await _maybe_off_loop(texts, len(body), _detokenized, tokenizer, asked.tokens)
        return Response(reply, media_type="application/json")

    @get_route(router, "/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        return _info(tokenizer, engine)

    return router


async def _parsed(kind: type[Any], body: bytes) -> Any:
    return await _maybe_off_loop(bodies, len(body), _parse, kind, body)


def _parse(kind: type[Any], body: bytes) -> Any:
    refuse_crowds(body, kind)
    return parse_strict(kind, body, _EXPECTED)


async def _maybe_off_loop(line: Line, num_bytes: int, function: Any, *arguments: Any) -> Any:
    if num_bytes <= _OFF_LOOP_BYTES:
        return function(*arguments)
    if num_bytes <= _LONG_BYTES:
        return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    return await line.run(num_bytes, function, *arguments)


def _ids(tokenizer: Tokenizer, prompt: str) -> PackedIds | list[int]:
    """As of a completion's prompt; but a special token's spelling alone is that token: lm-evaluation-harness
    asks so for the id of the end token."""
    special_id = tokenizer.special_tokens.get(prompt)
    return tokenizer.encode_packed(prompt) if special_id is None else [special_id]


def _tokenized(
    ids: PackedIds | list[int], max_model_len: int, tokenizer: Tokenizer | None
) -> Iterator[bytes]:
    """A TokenizeReply, with strings where there is a tokenizer: of a long text many MB."""
    yield b'{"count":%d,"max_model_len":%d,"tokens":[' % (len(ids), max_model_len)
    yield from item_parts(ids, _PART_IDS)
    if tokenizer is None:
        yield b'],"token_strs":null}'
        return
    yield b'],"token_strs":['
    yield from item_parts((_text(tokenizer, [i]) for i in ids), _PART_IDS)
    yield b"]}"


def _detokenized(tokenizer: Tokenizer, token_ids: list[int]) -> bytes:
    """A DetokenizeReply. Raises RequestError."""
    if not tokenizer.are_tokens(token_ids):
        raise RequestError("tokens must be ids of this model's vocabulary.", param="tokens")
    return msgspec.json.encode({"prompt": _text(tokenizer, token_ids)})


def _text(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    return b"".join([tokenizer.token_bytes(i) for i in token_ids]).decode("utf-8", "replace")


def _info(tokenizer: Tokenizer, engine: EngineClient) -> dict[str, Any]:
    def spelling(token_id: int | None) -> str | None:
        return None if token_id is None else _text(tokenizer, [token_id])

    return {
        "tokenizer_class": "byte-level BPE",
        "vocab_size": tokenizer.num_tokens,
        "bos_token": spelling(tokenizer.bos_token_id),
        "eos_token": spelling(tokenizer.eos_token_id),
        "pad_token": None,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "add_bos_token": False,
        "special_tokens": tokenizer.special_tokens,
        "max_model_len": engine.info.max_model_len if engine.info else None,
    }
