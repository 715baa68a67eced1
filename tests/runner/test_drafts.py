"""Tokens and logprobs are the same bits with drafts as without, right ones and wrong ones."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from unittest.mock import patch

import numpy as np
import pytest
import torch

from kernels.cpu.kinds import BF16_KINDS
from kernels.cpu.sampler import Draws
from server.engine.prompt_lookup import PromptLookup
from server.engine.scheduler import Scheduler
from server.engine.sequence_state import SequenceState
from server.engine.speculation import Load, Speculation
from server.model.gpt import GPT
from server.runner import cpu_runner
from server.runner.batch import Drafts, NewBlocks, NewRow, ScheduledRow, StepBatch
from server.runner.cpu_runner import CpuRunner
from server.sequence import SequenceRequest
from tests.runner.faulty_rows import raising
from tests.runner.rig import Answer, Rig, cut, load_tiny, make_request, make_rig, rest
from tests.runner.test_same_bytes import PARAMS

KINDS = (
    *PARAMS,
    {"temperature": 0.0, "repetition_penalty": 1.1, "frequency_penalty": 0.3, "logprobs": 20},
    {"temperature": 0.9, "allowed_token_ids": tuple(range(5, 60)), "logprobs": 2},
    {"temperature": 0.7, "bad_words": ((9,), (17,)), "min_tokens": 3, "eos_token_id": 4},
)


class Told(Speculation):
    """Is told what is going to be drawn, and gets one id in `1 / wrong` wrong."""

    def __init__(self, scheduler: Scheduler, answers: dict[int, Answer], wrong: float) -> None:
        super().__init__(scheduler, 4.0)
        self._answers = answers
        self._wrong = wrong
        self._rng = Random(7)

    def _least_chance(self, load: Load) -> float:
        return 0.0

    def _has_draft(self, lookup: PromptLookup) -> bool:
        return True

    def _foreseen(self, seq: SequenceState, num: int) -> list[int]:
        num_drawn = len(seq.token_ids) - seq.num_prompt_tokens
        found = self._answers[seq.seq_id].token_ids[num_drawn : num_drawn + num]
        found += [1] * (num - len(found))
        return [self._rng.randrange(298) if self._rng.random() < self._wrong else i for i in found]


class Willing(Speculation):
    """Takes the lookup's drafts whatever they cost."""

    def _least_chance(self, load: Load) -> float:
        return 0.0


@pytest.fixture(scope="module", params=(torch.float32, torch.bfloat16), ids=str)
def model(request: pytest.FixtureRequest, tiny_model_dir: Path) -> GPT:
    return load_tiny(tiny_model_dir, request.param)


@pytest.fixture(scope="module")
def requests() -> list[SequenceRequest]:
    return [
        make_request(
            i, (1, 7, 8, 9, 23, 40, 64)[i % 7], **{"max_tokens": 24, **KINDS[i % len(KINDS)]}
        )
        for i in range(16)
    ]


@pytest.fixture(scope="module")
def alone(model: GPT, requests: list[SequenceRequest]) -> list[Answer]:
    """Each in an engine of its own, a token a step."""
    return [make_rig(model).run_alone(request) for request in requests]


def told(answers: list[Answer], wrong: float):
    by_id = dict(enumerate(answers))
    return lambda scheduler: Told(scheduler, by_id, wrong)


def accepted(rig: Rig) -> int:
    return rig.engine.stats().num_accepted_tokens


@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_each_alone(
    model: GPT, requests: list[SequenceRequest], alone: list[Answer], wrong: float
) -> None:
    num_accepted = 0
    for request, answer in zip(requests, alone, strict=True):
        rig = make_rig(model, speculation=told(alone, wrong))
        assert rig.run_alone(request) == answer
        num_accepted += accepted(rig)
    assert (num_accepted > 200) == (wrong < 1)


@pytest.mark.parametrize("budget", [20, 48, 256])
def test_all_at_once_with_chunks_of_prompts_between(
    model: GPT, requests: list[SequenceRequest], alone: list[Answer], budget: int
) -> None:
    rig = make_rig(model, max_num_batched_tokens=budget, speculation=told(alone, 0.2))
    assert rig.run(requests[:9], requests[9:]) == alone
    assert accepted(rig) > 50


def test_preempted_and_replayed(
    model: GPT, requests: list[SequenceRequest], alone: list[Answer]
) -> None:
    rig = make_rig(model, num_blocks=36, max_num_seqs=8, speculation=told(alone, 0.2))
    assert rig.run(requests) == alone
    assert rig.engine.stats().num_preemptions > 2
    assert accepted(rig) > 20


def test_after_a_death_of_the_engine(
    model: GPT, requests: list[SequenceRequest], alone: list[Answer]
) -> None:
    """Emitted ids are generated rows beside those with drafts."""
    for num_emitted in (1, 5, 11):
        sequences = [i for i, answer in enumerate(alone) if len(answer.token_ids) > num_emitted]
        again = [cut(requests[i], alone[i], num_emitted) for i in sequences]
        rig = make_rig(model, speculation=told(alone, 0.2))
        expected = [rest(alone[i], num_emitted) for i in sequences]
        assert [replace(a, prompt_logprobs=None) for a in rig.run(again)] == [
            replace(a, prompt_logprobs=None) for a in expected
        ]


def test_a_hit_on_blocks_that_drafts_wrote(
    model: GPT, requests: list[SequenceRequest], alone: list[Answer]
) -> None:
    """Those of an accepted draft are found by a replay, those of a wrong one by nobody."""
    for index in (0, 3, 5):
        rig = make_rig(model, speculation=told(alone, 0.3))
        assert rig.run_alone(requests[index]) == alone[index]
        num_replayed = rig.engine.stats().num_replayed_tokens
        again = cut(requests[index], alone[index], 20)
        assert rig.run_alone(again).token_ids == alone[index].token_ids[20:]
        length = len(requests[index].prompt_ids) + 20
        assert (
            rig.engine.stats().num_replayed_tokens - num_replayed == length - (length - 1) // 8 * 8
        )


def test_the_lookup_itself(model: GPT) -> None:
    """Greedy text of a random model runs into loops; what is sampled of few ids repeats itself."""
    kinds = ({"temperature": 0.0}, {"top_k": 2, "temperature": 0.4}, {"allowed_token_ids": (5, 6)})
    wanted = [make_request(i, 9, max_tokens=80, logprobs=1, **kinds[i % 3]) for i in range(6)]
    expected = [make_rig(model).run_alone(request) for request in wanted]
    rig = make_rig(model, speculation=partial(Willing, num_free_rows=4.0))
    assert rig.run(wanted) == expected
    stats = rig.engine.stats()
    assert stats.num_accepted_tokens > 60
    assert stats.num_draft_tokens > stats.num_accepted_tokens


def test_stop_ids_and_ends_among_drafts(model: GPT, requests: list[SequenceRequest]) -> None:
    for index in range(8):
        plain = make_rig(model).run_alone(requests[index])
        stops = tuple(plain.token_ids[9:11])
        request = replace(
            requests[index], params=replace(requests[index].params, stop_token_ids=stops)
        )
        expected = make_rig(model).run_alone(request)
        rig = make_rig(model, speculation=told([plain] * 16, 0.0))
        assert rig.run_alone(request) == expected
        assert rig.engine.stats().num_generated_tokens == len(expected.token_ids)


def test_few_logits_at_once(
    model: GPT,
    requests: list[SequenceRequest],
    alone: list[Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for num_rows in (1, 3, 10):
        monkeypatch.setattr(cpu_runner, "LOGITS_BYTES", 4 * 320 * num_rows)
        rig = make_rig(model, speculation=told(alone, 0.2))
        assert rig.run(requests) == alone
        assert (accepted(rig) > 0) == (num_rows > 1)


def _prompt(runner: CpuRunner) -> list[int]:
    """One row of eight tokens, and the one drawn behind them."""
    params = make_request(0, max_tokens=30, temperature=0.0).params
    batch = StepBatch(0)
    batch.new_rows.append(NewRow(0, list(range(8)), 8, 0, params))
    batch.new_blocks.append(NewBlocks(0, 0, [0, 1, 2]))
    batch.scheduled.append(ScheduledRow(0, 0, 8, True))
    return [*range(8), *runner.dispatch(batch).result().token_ids]


def _decode(runner: CpuRunner, num_tokens: int, *drafts: int):
    batch = StepBatch(1)
    batch.scheduled.append(ScheduledRow(0, num_tokens - 1, 1 + len(drafts), True))
    if drafts:
        batch.drafts.append(Drafts(0, list(drafts)))
    return runner.dispatch(batch).result()


def test_a_row_that_fails_behind_a_draft_ends_in_front_of_it(model: GPT) -> None:
    runner = make_rig(model).engine._runner
    assert isinstance(runner, CpuRunner)
    ids = _prompt(runner)
    for _ in range(4):
        ids += _decode(runner, len(ids)).token_ids
    runner = make_rig(model).engine._runner
    assert isinstance(runner, CpuRunner)
    _prompt(runner)
    logits_of = runner._logits_of

    def poisoned(hidden: np.ndarray) -> np.ndarray:
        logits = logits_of(hidden)
        logits[2] = np.nan  # behind the second draft
        return logits

    runner._logits_of = poisoned  # type: ignore[method-assign]
    result = _decode(runner, 9, *ids[9:12])
    assert not result.failed
    assert result.token_ids + result.further[0].token_ids == ids[9:11]
    runner._logits_of = logits_of  # type: ignore[method-assign]
    assert _decode(runner, 11).token_ids == [ids[11]]


@pytest.mark.parametrize("is_all", [False, True])
def test_where_drawing_behind_drafts_raises_the_drafts_are_lost_and_nothing_else(
    model: GPT, requests: list[SequenceRequest], alone: list[Answer], is_all: bool
) -> None:
    """With all rows at once; or also with each alone."""

    def is_faulty(logits: np.ndarray, token_mask: np.ndarray, draws: Draws, *_: object) -> bool:
        return is_all or len(draws.rows) > 1

    rig = make_rig(model, speculation=told(alone, 0.2))
    with raising(cpu_runner, "sample_drafted", is_faulty):
        assert rig.run(requests) == alone
    assert (accepted(rig) > 20) == (not is_all)
    assert rig.engine.stats().num_draft_tokens > 20


def test_bf16_kinds_are_the_same_with_drafts(tiny_model_dir: Path) -> None:
    from kernels.cpu.linear import pack_linear
    from server.model import gpt

    for kind in BF16_KINDS:
        with patch.object(gpt, "pack_linear", partial(pack_linear, kinds=(kind, BF16_KINDS[-1]))):
            model = load_tiny(tiny_model_dir, torch.bfloat16)
        request = make_request(0, 9, max_tokens=30, logprobs=2)
        answer = make_rig(model).run_alone(request)
        rig = make_rig(model, speculation=told([answer], 0.1))
        assert rig.run_alone(request) == answer
        assert accepted(rig) > 10
