"""The rules that concern two fields, or that a type cannot say. No tokenizer, no engine."""

from __future__ import annotations

from server.api.request.protocol import DEFAULT_MAX_TOKENS, CompletionRequest
from server.api.request.structured_fields import ResponseFormat, StructuredOutputs
from server.errors import RequestError


def check_together(request: CompletionRequest) -> None:
    """Raises RequestError."""
    _check_lengths(request)
    _check_stream(request)
    if request.best_of is not None and request.best_of < (request.n or 1):
        raise _error("best_of", "best_of must not be below n.")
    if request.truncate_prompt_tokens == 0:
        raise _error("truncate_prompt_tokens", "truncate_prompt_tokens must not be 0.")
    if request.response_format is not None:
        _check_response_format(request.response_format)
    if request.structured_outputs is not None:
        _check_structured(request.structured_outputs, request.response_format)


def _error(param: str, message: str) -> RequestError:
    return RequestError(message, param=param)


def _check_lengths(request: CompletionRequest) -> None:
    if request.max_tokens == 0 and not request.echo:
        raise _error("max_tokens", "max_tokens may be 0 only with echo.")
    max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if (request.min_tokens or 0) > max_tokens:
        raise _error(
            "min_tokens", f"min_tokens must not be above max_tokens, which is {max_tokens}."
        )


def _check_stream(request: CompletionRequest) -> None:
    if not request.stream:
        if request.stream_options is not None:
            raise _error("stream_options", "stream_options needs stream.")
        return
    if request.best_of is not None and request.best_of > (request.n or 1):
        raise _error("best_of", "best_of above n cannot be streamed.")
    if request.prompt_logprobs is not None:
        raise _error("prompt_logprobs", "prompt_logprobs cannot be streamed; echo can.")


def _check_response_format(wanted: ResponseFormat) -> None:
    name = "response_format.json_schema"
    if wanted.type == "json_schema" and wanted.json_schema is None:
        raise _error(name, f"{name} is required with the type json_schema.")
    if wanted.type != "json_schema" and wanted.json_schema is not None:
        raise _error(name, f"{name} needs the type json_schema.")


def _check_structured(wanted: StructuredOutputs, other: ResponseFormat | None) -> None:
    kinds = (wanted.json_, wanted.regex, wanted.choice, wanted.grammar)
    if sum(kind is not None for kind in kinds) != 1:
        raise _error(
            "structured_outputs",
            "structured_outputs must have exactly one of json, regex, choice, grammar.",
        )
    if other is not None and other.type != "text":
        raise _error(
            "structured_outputs",
            "structured_outputs and response_format cannot both say what the text must be.",
        )
    if wanted.choice is not None and len(set(wanted.choice)) != len(wanted.choice):
        raise _error("structured_outputs.choice", "structured_outputs.choice names a text twice.")
