from __future__ import annotations

import subprocess
import sys

import pytest

from server.errors import RequestError
from tests.engine.rig import VOCAB_SIZE, Rig, Size, request

LONG = [1, 2, 3, 4, 5] * 5


def test_an_idle_engine_steps_without_a_device() -> None:
    rig = Rig()
    assert rig.engine.step() == ([], [], [])
    assert rig.device.batches == []
    assert not rig.engine.has_work


def test_every_token_is_an_output_of_its_own_step() -> None:
    rig = Rig()
    rig.submit(request(max_tokens=3))
    outputs = [rig.engine.step().outputs for _ in range(3)]
    assert [len(step) for step in outputs] == [1, 1, 1]
    assert [output.finish_reason for ((_, output),) in outputs] == [None, None, "length"]
    assert [output.first is not None for ((_, output),) in outputs] == [True, False, False]


def test_logprobs_come_with_their_tokens_and_only_where_asked() -> None:
    rig = Rig()
    rig.submit(request(0, max_tokens=4, logprobs=0))
    rig.submit(request(1, max_tokens=4))
    rig.run()
    assert [entry.top_ids for entry in rig.text(0).logprobs] == [[t] for t in rig.text(0).token_ids]
    assert rig.text(1).logprobs == []
    assert rig.differing() == []


@pytest.mark.parametrize("num_prompt_tokens", [1, 2, 4, 5, 23])
@pytest.mark.parametrize("budget", [1, 3, 32])
def test_prompt_logprobs_are_one_per_prompt_token_but_the_first(
    num_prompt_tokens: int, budget: int
) -> None:
    rig = Rig(Size(max_num_seqs=1, max_num_batched_tokens=budget))
    rig.submit(request(0, LONG[:num_prompt_tokens], prompt_logprobs=0))
    rig.run()
    assert rig.text().prompt_ids == LONG[1:num_prompt_tokens]
    assert rig.differing() == []


def test_a_prompt_list_given_twice_is_not_shared() -> None:
    rig = Rig()
    prompt = [1, 2, 3]
    for choice in range(2):
        rig.submit(request(choice, prompt, choice=choice))
    rig.run()
    assert prompt == [1, 2, 3]
    assert rig.differing() == []


def test_owners_do_not_see_each_other() -> None:
    rig = Rig()
    rig.submit(request(0, [1, 2]), owner=1)
    rig.submit(request(0, [3, 4]), owner=2)
    rig.step()
    rig.engine.abort_owner(1)
    rig.run()
    assert len(rig.text(0, 1).token_ids) == 1
    assert len(rig.text(0, 2).token_ids) == 8
    assert rig.differing() == []


@pytest.mark.parametrize("num_steps", range(12))
def test_an_abort_in_any_phase_leaves_at_once(num_steps: int) -> None:
    """Waiting, between chunks of its prompt, decoding, finished: gone before the next step, and the one
    behind it takes its place."""
    rig = Rig(Size(num_blocks=10, max_num_seqs=1, max_num_batched_tokens=8))
    rig.submit(request(0, LONG, max_tokens=6))
    rig.submit(request(1, LONG, max_tokens=6, seed=2))
    rig.steps(num_steps)
    num_tokens = len(rig.text(0).token_ids)
    rig.engine.abort(0)
    rig.scheduler.check_integrity()
    assert (0, 0) not in rig.scheduler.sequences
    rig.step()
    assert [seq.seq_id for seq in rig.scheduler.running] == [1]
    rig.run()
    assert len(rig.text(0).token_ids) == num_tokens
    assert rig.differing() == []


def test_an_abort_of_the_preempted_and_of_the_unknown() -> None:
    rig = Rig()
    rig.submit(request(0))
    rig.steps(2)
    rig.scheduler._preempt(rig.scheduler.running[0])
    rig.engine.abort(0)
    rig.engine.abort(0)
    rig.engine.abort(99, owner=7)
    rig.run()
    assert rig.text().finish_reason is None


def test_an_id_may_be_used_again_after_its_end() -> None:
    rig = Rig()
    for _ in range(2):
        rig.texts.clear()
        rig.submit(request(0))
        rig.run()
        assert rig.differing() == []


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE, 2**70])
def test_an_id_beyond_the_vocabulary_is_refused(token_id: int) -> None:
    rig = Rig()
    with pytest.raises(RequestError, match="below 8"):
        rig.submit(request(0, [1, token_id, 2]))
    assert not rig.engine.has_work


def test_stats_count_what_happened() -> None:
    rig = Rig()
    rig.submit(request(0, LONG, max_tokens=3))
    rig.run()
    rig.submit(request(1, LONG, max_tokens=2))
    rig.submit(request(2, [7], max_tokens=0))
    rig.step()
    stats = rig.engine.stats()
    assert (stats.num_steps, stats.num_running, stats.num_waiting) == (4, 1, 0)
    assert (stats.num_prompt_tokens, stats.num_generated_tokens) == (51, 4)
    assert (stats.num_cache_queries, stats.num_cache_hits) == (51, 24)
    assert stats.num_used_blocks == 7
    assert stats.num_step_tokens == 25 + 2 + 1 + 1


def test_the_engine_needs_no_torch() -> None:
    code = "import sys, server.engine.loop, server.engine.engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
