"""The real engine is thrown away at any step, again and again: a new one goes on, and each sequence ends with
the ids and logprobs that it has alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from server.model.gpt import GPT
from server.sequence import SequenceOutput, SequenceRequest
from tests.properties.bodies import examples
from tests.runner.rig import Answer, load_tiny, make_request, make_rig

_params = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.5]),
        "max_tokens": st.integers(1, 30),
        "top_k": st.sampled_from([0, 1, 40]),
        "frequency_penalty": st.sampled_from([0.0, 0.5]),
        "repetition_penalty": st.sampled_from([1.0, 1.4]),
        "logprobs": st.sampled_from([None, 0, 3]),
        "min_tokens": st.integers(0, 3),
        "eos_token_id": st.sampled_from([None, 40]),
        "stop_token_ids": st.sampled_from([(), (7, 100, 200, 250)]),
    }
)
_prompts = st.integers(1, 40)
_lives = st.lists(st.integers(1, 25), min_size=1, max_size=5)  # steps until a death


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def model(request: pytest.FixtureRequest, tiny_model_dir: Path) -> GPT:
    return load_tiny(tiny_model_dir, request.param)


def test_deaths_change_nothing(model: GPT) -> None:
    _deaths_change_nothing(model)


@given(
    asked=st.lists(st.tuples(_prompts, _params), min_size=1, max_size=6),
    lives=_lives,
    num_tokens=st.integers(6, 60),
    keeps_back=st.booleans(),
)
@examples(10)
def _deaths_change_nothing(
    model: GPT,
    asked: list[tuple[int, dict[str, object]]],
    lives: list[int],
    num_tokens: int,
    keeps_back: bool,
) -> None:
    requests = [make_request(i, length, **params) for i, (length, params) in enumerate(asked)]
    crowd = _Crowd(requests)
    for num_steps in (*lives, 10_000):
        rig = make_rig(model, num_blocks=24, max_num_seqs=6, max_num_batched_tokens=num_tokens)
        for request in crowd.unfinished(keeps_back):
            rig.engine.submit(request)
        while rig.engine.has_work and num_steps:
            num_steps -= 1
            for _, output in rig.engine.step().outputs:
                crowd.add(output)
        rig.engine.check_integrity()
    for request, answer in zip(requests, crowd.answers, strict=True):
        assert answer == make_rig(model).run_alone(request)


class _Crowd:
    """What has come of each; what was sent is never sent again, and must be drawn again as it was."""

    def __init__(self, requests: list[SequenceRequest]) -> None:
        self._requests = requests
        self.answers = [Answer() for _ in requests]

    def unfinished(self, keeps_back: bool) -> list[SequenceRequest]:
        return [
            dataclasses.replace(request, emitted_ids=_sent(answer, keeps_back))
            for request, answer in zip(self._requests, self.answers, strict=True)
            if answer.finish_reason is None
        ]

    def add(self, output: SequenceOutput) -> None:
        answer = self.answers[output.seq_id]
        end = output.start + len(output.token_ids)
        again = answer.token_ids[output.start : end]
        assert again == output.token_ids[: len(again)]
        answer.token_ids[output.start : end] = output.token_ids
        if output.logprobs is not None:
            known = answer.logprobs[output.start : end]
            assert known == output.logprobs[: len(known)]
            answer.logprobs[output.start : end] = output.logprobs
        answer.finish_reason = output.finish_reason


def _sent(answer: Answer, keeps_back: bool) -> list[int]:
    """The api keeps one back, so that every replay proves itself."""
    return (
        answer.token_ids[:-1] if keeps_back and len(answer.token_ids) > 1 else answer.token_ids[:]
    )
