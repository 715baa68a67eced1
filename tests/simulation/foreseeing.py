"""Speculation that asks the oracle what is going to be drawn, and gets a wrong id now and then."""

from __future__ import annotations

from server.engine.sequence_state import SequenceState
from tests.engine.guessing import Guessing
from tests.simulation.oracle import drawn


class Foreseeing(Guessing):
    def _drawn(self, seq: SequenceState, prompt: list[int]) -> list[int]:
        longest = self._scheduler.max_model_len
        return list(drawn(tuple(prompt), seq.choice, seq.params, seq.grammar, longest).ids)
