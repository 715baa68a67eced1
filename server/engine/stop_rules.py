"""When a sequence ends: its end and stop ids, max_tokens, max_model_len. Knows ids and counts only."""

from __future__ import annotations

from typing import NamedTuple

from server.sequence import FinishReason, SamplingParams


class Verdict(NamedTuple):
    """Whether a sequence ends here, and why."""

    finish_reason: FinishReason | None
    stop_token_id: int | None = None  # the id of stop_token_ids that ended it; None for eos


_GO_ON = Verdict(None)
_LENGTH = Verdict("length")


class StopRules:
    """The rules of one sequence, with everything that does not change resolved at submit."""

    __slots__ = ("_eos_token_id", "_first_stoppable", "max_num_tokens", "stop_ids")

    def __init__(
        self, params: SamplingParams, *, num_prompt_tokens: int, max_model_len: int
    ) -> None:
        self._eos_token_id = params.eos_token_id
        # Any other id goes on, as long as there are fewer than max_num_tokens.
        self.stop_ids = frozenset(params.stop_token_ids)
        if params.eos_token_id is not None:
            self.stop_ids |= {params.eos_token_id}
        # The sampler masks these ids below min_tokens; a sampler that fails to must not end it early.
        self._first_stoppable = num_prompt_tokens + params.min_tokens + 1
        # Prompt and generated. Equal to num_prompt_tokens for max_tokens = 0: nothing is sampled.
        self.max_num_tokens = min(num_prompt_tokens + params.max_tokens, max_model_len)

    def check(self, token_id: int, num_tokens: int) -> Verdict:
        """Of `token_id` as the `num_tokens`-th token of its sequence, the prompt counted."""
        if token_id in self.stop_ids and num_tokens >= self._first_stoppable:
            return Verdict("stop", None if token_id == self._eos_token_id else token_id)
        return _LENGTH if num_tokens >= self.max_num_tokens else _GO_ON
