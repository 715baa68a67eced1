from __future__ import annotations

import pytest

from server.engine.stop_rules import StopRules
from server.sequence import SamplingParams
from tests.engine.rig import Rig, Size, request, solo


def rules(**params: object) -> StopRules:
    defaults: dict[str, object] = {"max_tokens": 4, "seed": 0}
    return StopRules(
        SamplingParams(**(defaults | params)),  # type: ignore[arg-type]
        num_prompt_tokens=10,
        max_model_len=20,
    )


def test_an_ordinary_token_ends_nothing() -> None:
    assert rules(eos_token_id=3, stop_token_ids=(4,)).check(5, 11) == (None, None)


def test_eos_is_a_stop_without_an_id() -> None:
    assert rules(eos_token_id=3).check(3, 11) == ("stop", None)


def test_a_stop_token_names_itself() -> None:
    assert rules(eos_token_id=3, stop_token_ids=(4,)).check(4, 11) == ("stop", 4)


def test_eos_among_the_stop_tokens_is_eos() -> None:
    assert rules(eos_token_id=3, stop_token_ids=(3,)).check(3, 11) == ("stop", None)


def test_without_eos_id_zero_is_an_ordinary_token() -> None:
    assert rules().check(0, 11) == (None, None)


def test_a_stop_token_on_the_last_place_is_a_stop() -> None:
    assert rules(eos_token_id=3).check(3, 14) == ("stop", None)


def test_max_tokens() -> None:
    assert rules().check(5, 13) == (None, None)
    assert rules().check(5, 14) == ("length", None)


def test_max_model_len() -> None:
    assert rules(max_tokens=100).check(5, 19) == (None, None)
    assert rules(max_tokens=100).check(5, 20) == ("length", None)


@pytest.mark.parametrize(("num_generated", "reason"), [(1, None), (2, None), (3, "stop")])
def test_no_stop_below_min_tokens(num_generated: int, reason: str | None) -> None:
    """min_tokens = 2 masks the ids for the first two tokens; the third may be one."""
    stop = rules(eos_token_id=3, min_tokens=2)
    assert stop.check(3, 10 + num_generated).finish_reason == reason


def test_text_up_to_the_stop_token_is_the_text_without_it() -> None:
    free = solo(request(max_tokens=20)).token_ids
    stop_id = free[5]
    end = free.index(stop_id) + 1
    stopped = solo(request(max_tokens=20, stop=(stop_id,)))
    assert stopped.token_ids == free[:end]
    assert (stopped.finish_reason, stopped.stop_token_id) == ("stop", stop_id)


def test_max_tokens_zero_computes_the_prompt_and_yields_no_token() -> None:
    rig = Rig(Size(max_num_batched_tokens=8))
    rig.submit(request(prompt=[1, 2, 3, 4, 5] * 4, max_tokens=0, prompt_logprobs=0))
    rig.run()
    text = rig.text()
    assert (text.token_ids, text.finish_reason) == ([], "length")
    assert len(text.prompt_ids) == 19
    assert not any(row.is_sampling for batch in rig.device.batches for row in batch.scheduled)
