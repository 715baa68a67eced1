"""The body of POST /v1/completions: every field that is known, with its type and limits.

Strict and closed. null means the default for every field. Fields that are known but not supported
take only null. The descriptions go into the OpenAPI document.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from server.api.request.structured_fields import ResponseFormat, StructuredOutputs

DEFAULT_MAX_TOKENS = 16
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIASES = 1024
MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_BAD_WORDS = 256
MAX_BAD_WORD_CHARS = 256
MAX_SALT_CHARS = 256
MAX_REQUEST_ID_CHARS = 128

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
BadWord = Annotated[str, Field(min_length=1, max_length=MAX_BAD_WORD_CHARS)]
Prompt = (
    str
    | Annotated[list[str], Field(fail_fast=True)]
    | TokenIds
    | Annotated[list[TokenIds], Field(fail_fast=True)]
)
Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=1 << 31)]
NumChoices = Annotated[int, Field(ge=1, le=MAX_CHOICES)]
NumLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]

_CLOSED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def _about(description: str, *examples: Any, **limits: Any) -> Any:
    return Field(default=None, description=description, examples=list(examples) or None, **limits)


def _refused(why: str = "Not supported: anything but null is an error.") -> Any:
    return Field(default=None, description=why)


class StreamOptions(BaseModel):
    model_config = _CLOSED

    include_usage: bool | None = _about(
        "One more chunk at the end, without choices, with the usage of the whole request."
    )
    continuous_usage_stats: bool | None = _about("Usage so far on every chunk.")
    resumable: bool | None = _about(
        "Every event has an id: a stream that was cut goes on with `GET "
        "/v1/completions/{stream}/stream` and the header `Last-Event-ID`."
    )


class CompletionRequest(BaseModel):
    model_config = _CLOSED | ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0}]
        }
    )

    model: str | None = _about("A served name, as in GET /v1/models. Default: the only one.")
    prompt: Prompt = Field(
        description="A text, several texts, the token ids of one, or of several. Not empty.",
        examples=["Once upon a time"],
    )
    max_tokens: Count | None = _about(
        f"At most so many tokens are generated; default {DEFAULT_MAX_TOKENS}. 0 only with echo.", 16
    )
    min_tokens: Count | None = _about(
        "Before so many tokens neither the end token nor a stop ends the text; default 0."
    )
    ignore_eos: bool | None = _about("The end token does not end the text; default false.")
    temperature: Annotated[float, Field(ge=0)] | None = _about(
        "Logits are divided by it; below 1e-5 the likeliest token is taken. Default 1.", 0.7
    )
    top_p: Share | None = _about(
        "Draw among the likeliest tokens that together reach this probability; default 1."
    )
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = _about(
        "Draw among the k likeliest tokens; default 0, which is off, as -1 is."
    )
    min_p: Share | None = _about(
        "Draw among tokens of at least this share of the likeliest one's probability; default 0."
    )
    presence_penalty: Penalty | None = _about(
        "Subtracted from the logit of each token that was generated already; default 0."
    )
    frequency_penalty: Penalty | None = _about(
        "The same, times how often it was generated; default 0."
    )
    repetition_penalty: Annotated[float, Field(gt=0)] | None = _about(
        "Weakens (above 1) tokens of the prompt and of the generated text; default 1."
    )
    logit_bias: (
        Annotated[
            dict[str, Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=MAX_LOGIT_BIASES),
        ]
        | None
    ) = _about("Added to the logits of these token ids.", {"50": -100})
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = _about(
        "Only these token ids are drawn; default all."
    )
    bad_words: Annotated[list[BadWord], Field(fail_fast=True, max_length=MAX_BAD_WORDS)] | None = (
        _about(
            "Words that are not generated, with or without a space before them: the last token of a "
            "word is not drawn after its others."
        )
    )
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = _about(
        "The same request with the same seed gives the same bytes while `system_fingerprint` is "
        "the same. Default: drawn, and reported in the reply.",
        1234,
    )
    n: NumChoices | None = _about("So many choices for each prompt; default 1.")
    best_of: NumChoices | None = _about(
        "Generate so many, return the n with the best mean logprob. All count in usage. Not "
        "above n in a stream. Default n."
    )
    stop: (
        StopString
        | Annotated[list[StopString], Field(fail_fast=True, max_length=MAX_STOP_STRINGS)]
        | None
    ) = _about("The text ends before the first of these strings.", ["\n\n"])
    stop_token_ids: Annotated[TokenIds, Field(max_length=MAX_STOP_TOKEN_IDS)] | None = _about(
        "The text ends before the first of these tokens."
    )
    include_stop_str_in_output: bool | None = _about(
        "Whatever ended the text stays in it; default false."
    )
    logprobs: NumLogprobs | None = _about(
        "Log-probabilities of the tokens, each beside so many of the likeliest ones; of the raw "
        "logits, before temperature, penalties and masks. Default: none."
    )
    prompt_logprobs: NumLogprobs | None = _about(
        "The same for the prompt's tokens, as `prompt_logprobs` of a choice. Not with stream."
    )
    echo: bool | None = _about(
        "The text begins with the prompt, the logprobs with those of its tokens; default false."
    )
    stream: bool | None = _about("Server-sent events, one a token; default false.")
    stream_options: StreamOptions | None = _about("Only with stream.")
    response_format: ResponseFormat | None = _about(
        "What the text must be: any text, a JSON object, or JSON of a schema."
    )
    structured_outputs: StructuredOutputs | None = _about(
        "What the text must match: one of json, regex, choice, grammar.", {"choice": ["yes", "no"]}
    )
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = _about(
        "Only the last so many tokens of a prompt are read; -1: as many as fit. Default: all.", 128
    )
    add_special_tokens: bool | None = _about(
        "No effect: the tokenizers served here add no special tokens."
    )
    skip_special_tokens: bool | None = _about(
        "Special tokens are left out of the text; default true."
    )
    spaces_between_special_tokens: bool | None = _about(
        "No effect: byte-level tokenizers put no spaces between tokens."
    )
    return_token_ids: bool | None = _about(
        "Each choice also has `token_ids` and `prompt_token_ids`; in a stream every chunk the "
        "ids that it stands for, a choice's first one the prompt's too."
    )
    return_tokens_as_token_ids: bool | None = _about(
        "Tokens in logprobs are written `token_id:123`."
    )
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)] | None = _about(
        "Cached prompts are shared only among requests with the same salt."
    )
    priority: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)] | None = _about(
        "Requests with a lower number are served first; default 0."
    )
    request_id: (
        Annotated[str, Field(pattern=rf"^[A-Za-z0-9._:-]{{1,{MAX_REQUEST_ID_CHARS}}}$")] | None
    ) = _about("The reply's id is `cmpl-` and this. Default: drawn.", "my-request-1")

    user: Any = _about("Accepted and ignored.")
    metadata: Any = _about("Accepted and ignored.")
    store: Any = _about("Accepted and ignored.")

    suffix: None = _refused("Not supported: no infilling model is served.")
    prompt_embeds: None = _refused()
    logits_processors: None = _refused()
    chat_template: None = _refused("Not supported: this route has no chat.")
    guided_json: None = _refused("Not supported: see structured_outputs.json.")
    guided_regex: None = _refused("Not supported: see structured_outputs.regex.")
    guided_choice: None = _refused("Not supported: see structured_outputs.choice.")
    guided_grammar: None = _refused("Not supported: see structured_outputs.grammar.")
