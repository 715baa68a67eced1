"""What a request wants to see of its prompts and choices, from its fields to the objects that show it."""

from __future__ import annotations

from server.api.reply.choice_stream import ChoiceOptions, ChoiceStream
from server.api.reply.logprobs import Names, TokenIdNames, TokenNames
from server.api.reply.plain_prompt import PlainPrompt
from server.api.reply.prompt_view import PromptView
from server.api.reply.stop_strings import StopPattern
from server.api.request.protocol import CompletionRequest
from server.tokenizer import Tokenizer


class RequestView:
    """One request's; `names` are the tokenizer's, shared by all requests."""

    def __init__(self, request: CompletionRequest, tokenizer: Tokenizer, names: TokenNames) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._decoded = names
        self._names: Names = TokenIdNames() if request.return_tokens_as_token_ids else names
        self._options = _choice_options(request)

    def prompt(self, prompt_ids: list[int]) -> PlainPrompt:
        view = PromptView(prompt_ids, self._tokenizer, shows_special=self._options.shows_special)
        return PlainPrompt(
            view=view,
            names=self._names,
            decoded=self._decoded,
            has_echo=self._options.has_echo,
            logprobs=self._request.logprobs,
            prompt_logprobs=self._request.prompt_logprobs,
            has_token_ids=self._options.has_token_ids,
        )

    def choice(self, prompt: PlainPrompt) -> ChoiceStream:
        return ChoiceStream(self._tokenizer, self._names, self._options, prompt.view)


def _choice_options(request: CompletionRequest) -> ChoiceOptions:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop
    return ChoiceOptions(
        stop=StopPattern(stops) if stops else None,
        include_stop=bool(request.include_stop_str_in_output),
        min_tokens=request.min_tokens or 0,
        logprobs=request.logprobs,
        has_echo=bool(request.echo),
        is_stream=bool(request.stream),
        shows_special=request.skip_special_tokens is False,
        has_token_ids=bool(request.return_token_ids),
    )
