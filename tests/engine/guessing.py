"""Speculation that drafts all it can: what is going to be drawn, and a wrong id now and then."""

from __future__ import annotations

from random import Random

from server.engine.prompt_lookup import PromptLookup
from server.engine.scheduler import Scheduler
from server.engine.sequence_state import SequenceState
from server.engine.speculation import Load, Speculation
from server.sequence import SequenceRequest
from tests.engine.rig import VOCAB_SIZE, solo

_WRONG = 0.2


class Guessing(Speculation):
    def __init__(self, scheduler: Scheduler, num_free_rows: float) -> None:
        super().__init__(scheduler, num_free_rows)
        self._rng = Random(0)

    def _least_chance(self, load: Load) -> float:
        return 0.0

    def _has_draft(self, lookup: PromptLookup) -> bool:
        return True

    def _foreseen(self, seq: SequenceState, num: int) -> list[int]:
        prompt = seq.token_ids[: seq.num_prompt_tokens]
        num_drawn = len(seq.token_ids) - len(prompt)
        found = self._drawn(seq, prompt)[num_drawn : num_drawn + num]
        found += [0] * (num - len(found))  # behind its end
        rng = self._rng
        return [rng.randrange(VOCAB_SIZE) if rng.random() < _WRONG else i for i in found]

    def _drawn(self, seq: SequenceState, prompt: list[int]) -> list[int]:
        wanted = SequenceRequest(0, prompt, seq.choice, seq.params, grammar=seq.grammar)
        return solo(wanted, self._scheduler.max_model_len).token_ids.copy()
