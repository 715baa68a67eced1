"""The shapes of replies, for the OpenAPI document only: what is sent is written by faster code.

The tests hold every reply against these models.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_CLOSED = ConfigDict(extra="forbid")
Index = Annotated[int, Field(ge=0, description="prompt index x n + choice index", examples=[0])]


class PromptTokensDetails(BaseModel):
    model_config = _CLOSED

    cached_tokens: int = Field(description="prompt tokens that were not computed again")


class Usage(BaseModel):
    model_config = _CLOSED

    prompt_tokens: int = Field(description="a prompt counts once, whatever n is")
    completion_tokens: int = Field(description="of all choices, with best_of of all candidates")
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Logprobs(BaseModel):
    """The legacy format: four lists of equal length."""

    model_config = _CLOSED

    tokens: list[str] = Field(
        description="a token whose bytes are not whole characters is written `bytes:\\xe2\\x80`"
    )
    token_logprobs: list[float | None] = Field(description="null: the first token of a prompt")
    top_logprobs: list[dict[str, float] | None] = Field(
        description="the likeliest tokens, best first, and the token itself"
    )
    text_offset: list[int] = Field(description="characters from the beginning of the choice's text")


class PromptLogprob(BaseModel):
    model_config = _CLOSED

    logprob: float
    rank: int = Field(ge=1, description="1: the likeliest")
    decoded_token: str


class _ChoiceBase(BaseModel):
    model_config = _CLOSED

    index: Index
    text: str
    logprobs: Logprobs | None
    stop_reason: str | int | None = Field(
        description="the stop string or the stop token id that ended the text"
    )


class Choice(_ChoiceBase):
    finish_reason: Literal["stop", "length"]
    token_ids: list[int] = Field(default=[], description="with return_token_ids")
    prompt_token_ids: list[int] = Field(default=[], description="with return_token_ids")
    prompt_logprobs: list[dict[str, PromptLogprob] | None] = Field(
        default=[],
        description="with prompt_logprobs: for each token of the prompt a map of token ids; null "
        "for the first",
    )


class ChunkChoice(_ChoiceBase):
    finish_reason: Literal["stop", "length"] | None = Field(
        description="on the chunk of the choice's last token, else null"
    )
    token_ids: list[int] = Field(default=[], description="with return_token_ids")
    prompt_token_ids: list[int] = Field(
        default=[], description="with return_token_ids, on a choice's first chunk"
    )


class _ReplyBase(BaseModel):
    model_config = _CLOSED

    id: str = Field(examples=["cmpl-0123456789abcdef0123456789abcdef"])
    object: Literal["text_completion"]
    created: int = Field(description="seconds since 1970")
    model: str
    system_fingerprint: str = Field(
        description="names weights, kernels and numerics; equal ones and an equal seed mean equal "
        "bytes"
    )
    seed: int = Field(description="that was given, or else drawn")


class Completion(_ReplyBase):
    """A plain reply."""

    choices: list[Choice]
    usage: Usage


class CompletionChunk(_ReplyBase):
    """The data of one event of a stream. After the last of them comes `data: [DONE]`."""

    choices: list[ChunkChoice] = Field(description="one; none in the chunk of include_usage")
    usage: Usage | None = Field(
        default=None, description="with include_usage or continuous_usage_stats"
    )


class ErrorDetails(BaseModel):
    model_config = _CLOSED

    message: str = Field(examples=["prompt must not be empty."])
    type: Literal["invalid_request_error", "server_error"]
    param: str | None = Field(description="the field at fault", examples=["prompt"])
    code: str | None = Field(
        description="a fixed word where programs may want to react",
        examples=["context_length_exceeded"],
    )


class ErrorReply(BaseModel):
    """Every error, also the last event of a stream that breaks: there it has an id like the others."""

    model_config = _CLOSED

    error: ErrorDetails
