"""The fake device, with requests that are bad for it, and with a process around it that may be killed.

presence_penalty = k    the process dies when it draws generated token k - 1 of such a row
frequency_penalty = k   that token's row has no finite logit
"""

from __future__ import annotations

from typing import Any

from server.runner.batch import StepBatch, StepHandle, StepResult
from server.sequence import FailureKind
from tests.engine.fake_device import FakeDevice, Record, Row
from tests.simulation.sim_server import Killed

Tainted = tuple[int, "Record | None"]  # a block, and what stands in its first slot


class OwnDeathError(Exception):
    """The process ends itself."""


class SimHandle:
    """A step's handle; its process may die behind it."""

    def __init__(self, device: SimDevice, handle: StepHandle, tainted: list[Tainted]) -> None:
        self._device = device
        self._handle = handle
        self._tainted = tainted

    def result(self) -> StepResult:
        result = self._handle.result()
        self._device.taint(self._tainted)
        self._device.die_if("result")
        return result


class SimDevice(FakeDevice):
    doom = ""  # "dispatch" or "result": where the next step ends it, from outside
    is_own_doom = False  # the same, but of its own making
    num_poisoned = 0

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.tainted: set[int] = set()  # blocks of failed rows: whoever finds one fails, too
        self._in_step: list[Tainted] = []
        self._doomed: set[Row] = set()

    def dispatch(self, batch: StepBatch) -> StepHandle:  # type: ignore[override]
        self._in_step = []
        handle = super().dispatch(batch)
        self.die_if("dispatch")
        return SimHandle(self, handle, self._in_step)

    def taint(self, blocks: list[Tainted]) -> None:
        """Unless they were written anew meanwhile."""
        size = self.block_size
        self.tainted.update(block for block, first in blocks if self.slots[block * size] is first)

    def die_if(self, point: str) -> None:
        if self.doom == point:
            raise OwnDeathError if self.is_own_doom else Killed

    def _poison_new_blocks(self, batch: StepBatch) -> None:
        super()._poison_new_blocks(batch)
        if self.tainted:
            for new in batch.new_blocks:
                for block_id in self.tainted.intersection(new.block_ids):
                    if self.slots[block_id * self.block_size] is None:
                        self.tainted.remove(block_id)  # it is written anew
                    else:
                        self._doomed.add(self.rows[new.row])

    def fails_behind_draft(self, row: Row) -> bool:
        in_step = self._in_step.copy()
        has_failed = super().fails_behind_draft(row)
        self._in_step = in_step  # it has failed when it does so in front
        return has_failed

    def failure_of(self, row: Row) -> FailureKind | None:
        params = row.params
        index = len(row.token_ids) - row.num_prompt_tokens
        if params.presence_penalty == index + 1:
            self.num_poisoned += 1
            raise OwnDeathError
        if params.frequency_penalty == index + 1:
            alone = [b for b in row.block_ids if len(self._readers[b]) == 1]
            self._in_step += [(b, self.slots[b * self.block_size]) for b in alone]
            return "not_finite"
        return "not_finite" if row in self._doomed else None
