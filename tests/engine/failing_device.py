"""The fake device with numbers that are not finite. They are in the slots that a doomed sequence writes and
in all that is computed from those; whoever reads them draws nothing."""

from __future__ import annotations

from typing import Any

from server.runner.batch import ScheduledRow, StepResult
from server.sequence import SamplingParams
from tests.engine.fake_device import FakeDevice, Record


class FailingDevice(FakeDevice):
    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self._doomed: dict[int, SamplingParams] = {}  # by id: each sequence has its own
        self._tainted: dict[int, Record] = {}  # slot -> what was written there, and is not finite

    def doom(self, params: SamplingParams) -> None:
        """From its next step on."""
        self._doomed[id(params)] = params

    def _attend(self, scheduled: ScheduledRow, result: StepResult) -> None:
        super()._attend(scheduled, result)
        if not self._doomed:
            return
        row, start = self.rows[scheduled.row], scheduled.num_computed_tokens
        end = start + scheduled.num_scheduled_tokens
        slots = [self._slot(row, position) for position in range(end)]
        if id(row.params) not in self._doomed and not any(map(self._is_tainted, slots)):
            return
        for slot in slots[start:]:
            record = self.slots[slot]
            assert record is not None
            self._tainted[slot] = record
        if scheduled.is_sampling or scheduled.row in result.prompt_logprobs:
            result.failed[scheduled.row] = "not_finite"

    def _is_tainted(self, slot: int) -> bool:
        return slot in self._tainted and self.slots[slot] is self._tainted[slot]
