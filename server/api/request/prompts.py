"""A request's prompts as token ids that the model can read. Plain work: where it runs is up to others."""

from __future__ import annotations

from server.api.request.protocol import DEFAULT_MAX_TOKENS, CompletionRequest
from server.api.request.sampling import ModelTokens
from server.errors import ContextLengthError, RequestError
from server.ipc.frames import EngineInfo
from server.tokenizer.encoding import PackedIds, Tokenizer

# In front of what is kept of a text that is cut; without a break all of it must be encoded, and that takes
# 0.7 s for a million letters and 5 for four million.
MAX_UNBROKEN_CHARS = 1 << 20


def given_prompts(request: CompletionRequest) -> list[str | list[int]]:
    """One or several, each a text or ids."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)  # type: ignore[arg-type]


def read_prompts(
    given: list[str | list[int]], request: CompletionRequest, ids: ModelTokens, info: EngineInfo
) -> list[list[int]]:
    """Encoded, truncated, and checked: short enough, and every id is a token. Raises RequestError."""
    if not given or not all(given):
        raise RequestError("prompt must not be empty.", param="prompt")
    max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    num_kept = _num_kept(request.truncate_prompt_tokens, max_tokens, info.max_model_len)
    encoded = [
        _encoded(each, ids.tokenizer, max_tokens, num_kept, info.max_model_len)
        if isinstance(each, str)
        else each
        for each in given
    ]
    longest = max(map(len, encoded))
    num_kept = longest if num_kept is None else min(num_kept, longest)
    if num_kept + max_tokens > info.max_model_len:
        raise ContextLengthError(info.max_model_len, num_kept, max_tokens)
    # only now, when there are not too many of them, are packed ids made objects
    prompts = [
        each.last(num_kept) if isinstance(each, PackedIds) else each[-num_kept:] for each in encoded
    ]
    if not all(map(ids.has_all, prompts)):
        raise RequestError("prompt has an id that is not a token of the model.", param="prompt")
    return prompts


def _encoded(
    text: str, tokenizer: Tokenizer, max_tokens: int, num_kept: int | None, max_model_len: int
) -> PackedIds:
    """Of a text that is cut: perhaps only the last ids, but as many as are kept.

    Raises RequestError, without encoding it, for one that is too long whatever its tokens are: megabytes
    without a blank take seconds.
    """
    if num_kept is not None:
        text = tokenizer.end_of(text, num_kept)
        if len(text) > num_kept * tokenizer.max_token_bytes + MAX_UNBROKEN_CHARS:
            raise RequestError(
                f"prompt has more than {MAX_UNBROKEN_CHARS} characters without a blank or a mark.",
                param="prompt",
            )
        return tokenizer.encode_packed(text)
    if len(text) >= max_model_len:
        num_bytes = len(text.encode(errors="replace"))
        min_tokens = -(-num_bytes // tokenizer.max_token_bytes)
        if min_tokens >= max_model_len and min_tokens + max_tokens > max_model_len:
            raise ContextLengthError(max_model_len, min_tokens, max_tokens, is_minimum=True)
    return tokenizer.encode_packed(text)


def _num_kept(wanted: int | None, max_tokens: int, max_model_len: int) -> int | None:
    """How many of a prompt's last tokens are read; None: all."""
    if wanted is not None and wanted > max_model_len:
        raise RequestError(
            f"truncate_prompt_tokens must not be above {max_model_len}, the model's maximum "
            "context length.",
            param="truncate_prompt_tokens",
        )
    return max(1, max_model_len - max_tokens) if wanted == -1 else wanted
