"""A step that was dispatched to a GPU, and what comes back of it. Knows no launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from server.board import Board
from server.runner.batch import StepResult
from server.runner.gpu.draw import Asked
from server.runner.gpu.outputs import Drawn
from server.runner.gpu.queue import Arrival
from server.runner.prompt_logprobs import packed
from server.runner.row_faults import fail_row, without_failed
from server.runner.rows import Array
from server.sequence import FailureKind, PromptLogprobs, TokenLogprobs

Found = TypeVar("Found")


class GpuStep:
    """What its rows are and ask for was noted at its dispatch: they may be others' by now."""

    def __init__(
        self,
        sampling_rows: Array,
        asked: list[Asked],
        asked_of_prompts: list[Asked],
        drawn: Drawn,
        arrival: Arrival,
        *,
        failed: dict[int, FailureKind],
        board: Board | None,
    ) -> None:
        self._sampling_rows = sampling_rows
        self._asked = asked
        self._asked_of_prompts = asked_of_prompts
        self._drawn = drawn
        self._arrival = arrival
        self._failed = failed
        self._board = board

    def result(self) -> StepResult:
        self._arrival.wait()
        if self._board is not None:
            self._board.tick()
        token_ids = self._token_ids()
        of_tokens = self._each(self._asked, self._of_token)
        of_prompts = self._each(self._asked_of_prompts, self._of_prompt)
        return without_failed(StepResult(token_ids, of_tokens, of_prompts, self._failed))

    def _token_ids(self) -> list[int]:
        """Those of rows that are not finite came as -1 - id."""
        token_ids: list[int] = self._drawn.token_ids[: len(self._sampling_rows)].tolist()
        if token_ids and min(token_ids) < 0:
            for i, (row, token) in enumerate(
                zip(self._sampling_rows.tolist(), token_ids, strict=True)
            ):
                if token < 0:
                    token_ids[i] = -1 - token
                    self._failed[row] = "not_finite"
        return token_ids

    def _each(self, asked: list[Asked], find: Callable[[Asked], Found | None]) -> dict[int, Found]:
        """By row. One that fails, or of which none is found, is left out."""
        found: dict[int, Found] = {}
        for one in asked:
            if one.row not in self._failed:
                try:
                    of_row = find(one)
                except Exception as error:
                    fail_row(one.row, error, self._failed)
                    continue
                if of_row is not None:
                    found[one.row] = of_row
        return found

    def _of_token(self, asked: Asked) -> TokenLogprobs:
        drawn, entry = self._drawn, asked.first_entry
        return TokenLogprobs(
            drawn.chosen[entry].item(),
            int(drawn.ranks[entry]),
            drawn.top_ids[entry, : asked.num_top].tolist(),
            drawn.top_logprobs[entry, : asked.num_top].tolist(),
        )

    def _of_prompt(self, asked: Asked) -> PromptLogprobs | None:
        """None, and it fails, where a row of logits is not finite: not even the best id has a value."""
        entries = slice(asked.first_entry, asked.first_entry + asked.num_entries)
        drawn, num_top = self._drawn, asked.num_top
        if drawn.top_logprobs[entries, 0].isneginf().any():
            self._failed[asked.row] = "not_finite"
            return None
        return packed(
            asked.start,
            drawn.chosen[entries].numpy(),
            drawn.ranks[entries].numpy(),
            drawn.top_ids[entries, :num_top].numpy(),
            drawn.top_logprobs[entries, :num_top].numpy(),
        )
