"""The body of POST /v1/completions: every field that is known, with its type and limits.

Strict and closed. null means the default for every field. Fields that are known but not built yet
take only the value that changes nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_MAX_TOKENS = 16
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIASES = 1024
MAX_LOGPROBS = 20
MAX_CHOICES = 128

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Prompt = (
    str
    | Annotated[list[str], Field(fail_fast=True)]
    | TokenIds
    | Annotated[list[TokenIds], Field(fail_fast=True)]
)
Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]

_CLOSED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(BaseModel):
    model_config = _CLOSED

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    resumable: Literal[False] | None = None


class CompletionRequest(BaseModel):
    model_config = _CLOSED

    model: str | None = None
    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    ignore_eos: bool | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    logit_bias: (
        Annotated[
            dict[str, Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=MAX_LOGIT_BIASES),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: (
        StopString
        | Annotated[list[StopString], Field(fail_fast=True, max_length=MAX_STOP_STRINGS)]
        | None
    ) = None
    stop_token_ids: Annotated[TokenIds, Field(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    include_stop_str_in_output: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # accepted and ignored: they are notes for the sender's own books
    user: Any = None
    metadata: Any = None
    store: Any = None

    # known, not built: only what changes nothing
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None  # must equal n
    prompt_logprobs: None = None
    suffix: None = None
    response_format: None = None
    structured_outputs: None = None
    truncate_prompt_tokens: None = None
    skip_special_tokens: Literal[True] | None = None
    spaces_between_special_tokens: Literal[True] | None = None
    add_special_tokens: bool | None = None  # the tokenizers served add none
    return_token_ids: Literal[False] | None = None
    return_tokens_as_token_ids: Literal[False] | None = None
    allowed_token_ids: None = None
    bad_words: None = None
    cache_salt: None = None
    priority: Literal[0] | None = None
    request_id: None = None
    prompt_embeds: None = None
    logits_processors: None = None
    chat_template: None = None


NOT_BUILT = frozenset(
    {
        "best_of",
        "prompt_logprobs",
        "suffix",
        "response_format",
        "structured_outputs",
        "truncate_prompt_tokens",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "return_token_ids",
        "return_tokens_as_token_ids",
        "allowed_token_ids",
        "bad_words",
        "cache_salt",
        "priority",
        "request_id",
        "prompt_embeds",
        "logits_processors",
        "chat_template",
        "stream_options.resumable",
    }
)

# what a field must be, for the sentence of a 400
EXPECTED = {
    "model": "a string",
    "prompt": "a string, a list of strings, a list of token ids, or a list of lists of token ids",
    "max_tokens": "an integer of at least 0",
    "min_tokens": "an integer of at least 0",
    "ignore_eos": "true or false",
    "temperature": "a finite number of at least 0",
    "top_p": "a number between 0 and 1",
    "top_k": "an integer of at least -1",
    "min_p": "a number between 0 and 1",
    "presence_penalty": "a number between -2 and 2",
    "frequency_penalty": "a number between -2 and 2",
    "repetition_penalty": "a finite number above 0",
    "logit_bias": f"a map of at most {MAX_LOGIT_BIASES} token ids to numbers between -100 and 100",
    "seed": "a 64-bit integer",
    "n": f"an integer between 1 and {MAX_CHOICES}",
    "stop": f"a string or at most {MAX_STOP_STRINGS} strings, each of 1 to {MAX_STOP_CHARS} "
    "characters",
    "stop_token_ids": f"a list of at most {MAX_STOP_TOKEN_IDS} token ids",
    "include_stop_str_in_output": "true or false",
    "logprobs": f"an integer between 0 and {MAX_LOGPROBS}",
    "echo": "true or false",
    "stream": "true or false",
    "stream_options": "an object",
    "stream_options.include_usage": "true or false",
    "stream_options.continuous_usage_stats": "true or false",
    "add_special_tokens": "true or false",
}
