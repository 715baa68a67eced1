"""Row 1 of three is made to fail; rows 0 and 2 are what they are without that, bit for bit, and so is a
later sequence in row 1's place. Each `make_runner()` is a new runner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from server.runner.batch import NewRow, Runner, StepResult
from server.sequence import FailureKind
from tests.runner.by_hand import Hand, RowMask

BAD = 1
POISON = 12  # a token of row 1's prompt, and of no other


def raising(owner: Any, name: str, is_bad: Callable[..., bool]) -> Any:
    """A patch under which `owner.name` raises for the calls that are bad."""
    real = getattr(owner, name)

    def fake(*args: Any, **kwargs: Any) -> Any:
        if is_bad(*args):
            raise RuntimeError("planted")
        return real(*args, **kwargs)

    return patch.object(owner, name, fake)


def is_bad_fill(*args: Any) -> bool:
    """That of row 1, not what is put in its place."""
    return any(isinstance(arg, NewRow) and arg.params.seed == BAD for arg in args)


@contextmanager
def poisoned_embedding(model: Any) -> Iterator[None]:
    """One token's row of the embedding is NaN: whoever has it in its prompt has NaN everywhere behind it,
    also in its KV blocks."""
    clean = model._wte
    model._wte = clean.clone() if isinstance(clean, torch.Tensor) else clean.copy()
    model._wte[POISON] = float("nan")
    try:
        with np.errstate(invalid="ignore"):  # of Triton's interpreter
            yield
    finally:
        model._wte = clean


def wrong_mask() -> RowMask:
    return RowMask(BAD, b"\1")


def check_neighbours(
    make_runner: Callable[[], Runner],
    planted: Any,
    kind: FailureKind = "internal",
    *masks: RowMask,
    **changes: object,
) -> None:
    """`planted`: under it the first step is run, and the decode behind it, where the engine has not yet
    heard of the failure."""
    plain, faulty = Hand(make_runner(), **changes), Hand(make_runner(), **changes)
    expected = [plain.admit(), plain.decode()]
    with planted:
        found = [faulty.admit(*masks), faulty.decode()]
    assert found[0].failed == {BAD: kind}
    assert found[1].failed in ({}, {BAD: kind})
    for one, other in zip(found, expected, strict=True):
        _check_others(one, other)
    again = faulty.admit(rows=(BAD,))
    assert again.failed == {}
    assert again.token_ids == [expected[0].token_ids[BAD]], "its row and its blocks are as new"
    assert again.logprobs.get(BAD) == expected[0].logprobs.get(BAD)
    assert again.prompt_logprobs.get(BAD) == expected[0].prompt_logprobs.get(BAD)


def _check_others(found: StepResult, expected: StepResult) -> None:
    assert len(found.token_ids) == len(expected.token_ids)
    assert found.token_ids[BAD] >= 0
    for row in (0, 2):
        assert found.token_ids[row] == expected.token_ids[row]
        assert found.logprobs.get(row) == expected.logprobs.get(row)
        assert found.prompt_logprobs.get(row) == expected.prompt_logprobs.get(row)
    if BAD in found.failed:
        assert BAD not in found.logprobs and BAD not in found.prompt_logprobs
