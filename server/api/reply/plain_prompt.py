"""What a plain reply shows of a prompt: its text, its logprobs in both formats, its ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from server.api.reply.logprobs import Names, finite, named_top
from server.api.reply.prompt_view import PromptView
from server.sequence import TokenLogprobs

PromptLogprob = dict[str, float | int | str]


@dataclass(frozen=True, slots=True)
class PlainPrompt:
    """Shared by the choices of one prompt. Iterators, because all entries at once would be large."""

    view: PromptView
    names: Names  # of tokens in `logprobs`
    decoded: Names  # of tokens in `prompt_logprobs`
    has_echo: bool
    logprobs: int | None  # alternatives in `logprobs`
    prompt_logprobs: int | None  # alternatives in `prompt_logprobs`
    has_token_ids: bool

    @property
    def text(self) -> str:
        """What precedes the generated text."""
        return self.view.text if self.has_echo else ""

    def echoed(self) -> Mapping[str, Callable[[], Iterable[object]]]:
        """The entries of its tokens in the lists of `logprobs`, in the order of their keys."""
        if not self.has_echo or self.logprobs is None:
            return dict.fromkeys(("tokens", "token_logprobs", "top_logprobs", "text_offset"), tuple)
        return {
            "tokens": lambda: map(self.names.__getitem__, self.view.token_ids),
            "token_logprobs": lambda: (row and finite(row.logprob) for _, row in self.view.rows(0)),
            "top_logprobs": self._top_logprobs,
            "text_offset": self.view.offsets,
        }

    def _top_logprobs(self) -> Iterator[dict[str, float] | None]:
        for token_id, row in self.view.rows(self.logprobs or 0):
            yield None if row is None else named_top(self.names, token_id, row)

    def maps(self) -> Iterator[dict[str, PromptLogprob] | None]:
        """The entries of `prompt_logprobs`: the token's own first, then the best ones, as vLLM has it."""
        for token_id, row in self.view.rows(self.prompt_logprobs or 0):
            yield None if row is None else self._map(token_id, row)

    def _map(self, token_id: int, row: TokenLogprobs) -> dict[str, PromptLogprob]:
        entries = {str(token_id): self._entry(token_id, row.rank, row.logprob)}
        for rank, (top_id, value) in enumerate(zip(row.top_ids, row.top_logprobs, strict=True), 1):
            entries.setdefault(str(top_id), self._entry(top_id, rank, value))
        return entries

    def _entry(self, token_id: int, rank: int, logprob: float) -> PromptLogprob:
        decoded = self.decoded[token_id]
        return {"logprob": finite(logprob), "rank": rank, "decoded_token": decoded}
