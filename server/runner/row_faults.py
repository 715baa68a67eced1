"""A fault while the host works on one row of a step stays with that row: it fails, the others go on."""

from __future__ import annotations

from server.faults import log_fault
from server.runner.batch import NewRow, StepResult
from server.sequence import FailureKind, SamplingParams

_NOTHING_ASKED = SamplingParams(max_tokens=1, seed=0, temperature=0.0)


def fail_row(row: int, error: Exception, failed: dict[int, FailureKind]) -> None:
    """Raises what is everybody's matter: where memory is short, a new process has more."""
    if isinstance(error, MemoryError):
        raise error
    log_fault("a row of a step failed", error)
    failed[row] = "internal"


def without_failed(result: StepResult) -> StepResult:
    """Nothing else is said of a row that has failed: it may be half of what was asked for."""
    for row in result.failed:
        result.logprobs.pop(row, None)
        result.prompt_logprobs.pop(row, None)
        result.further.pop(row, None)
    return result


def neutral(new: NewRow) -> NewRow:
    """What is computed in place of a row that cannot be filled, until the engine has let go of it."""
    return new._replace(token_ids=[0] * len(new.token_ids), choice=0, params=_NOTHING_ASKED)
