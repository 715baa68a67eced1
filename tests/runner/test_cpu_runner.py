"""What the runner draws and reports, through the engine."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from server.board import Board
from server.model.gpt import GPT
from server.model.kv_cache import KVCache
from server.runner import cpu_runner
from server.runner.batch import NewBlocks, NewRow, ScheduledRow, StepBatch
from server.runner.cpu_runner import CpuRunner
from server.runner.rows import Rows
from server.runner.runs import cut_runs
from server.runner.step_inputs import append, build_inputs, step_of
from server.sequence import SamplingParams
from tests.runner.rig import NEVER_SAMPLED, load_tiny, make_request, make_rig


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> GPT:
    return load_tiny(tiny_model_dir, torch.float32)


def test_never_sampled_ids_are_never_sampled(model: GPT) -> None:
    """Without the mask 22 of 320 nearly equal ids would come up in 1,280 draws about 88 times."""
    requests = [make_request(i, temperature=2.0, max_tokens=64) for i in range(20)]
    drawn = [token for answer in make_rig(model).run(requests) for token in answer.token_ids]
    assert len(drawn) == 1280
    assert not set(drawn) & set(NEVER_SAMPLED)
    assert len(set(drawn)) > 200


def test_min_tokens_keeps_the_end_away_until_then(model: GPT) -> None:
    likely_end = {"eos_token_id": 297, "logit_bias": ((297, 100.0),)}
    rig = make_rig(model)
    ended, later = rig.run(
        [make_request(0, **likely_end), make_request(1, min_tokens=5, **likely_end)]
    )
    assert ended.token_ids == [297]
    assert later.token_ids[5:] == [297]
    assert 297 not in later.token_ids[:5]
    assert later.finish_reason == "stop"


def test_min_tokens_covers_stop_token_ids(model: GPT) -> None:
    answer = make_rig(model).run_alone(
        make_request(0, min_tokens=3, stop_token_ids=(9,), logit_bias=((9, 100.0),))
    )
    assert answer.token_ids[3:] == [9]
    assert 9 not in answer.token_ids[:3]


def test_logit_bias_forces_and_forbids(model: GPT) -> None:
    forced = make_rig(model).run_alone(make_request(0, logit_bias=((123, 100.0),)))
    assert set(forced.token_ids) == {123}
    greedy = make_rig(model).run_alone(make_request(1, temperature=0.0, max_tokens=1))
    banned = make_rig(model).run_alone(
        make_request(1, temperature=0.0, max_tokens=1, logit_bias=((greedy.token_ids[0], -100.0),))
    )
    assert banned.token_ids != greedy.token_ids


def test_ids_that_are_none_change_nothing(model: GPT) -> None:
    """A stop id may be any number; below min_tokens it is not written to where no logit is."""
    request = make_request(0, min_tokens=4)
    strange = make_request(
        0, min_tokens=4, stop_token_ids=(320, -1, 2**31 - 1, -(2**31)), logit_bias=((10**6, 5.0),)
    )
    assert make_rig(model).run_alone(strange) == make_rig(model).run_alone(request)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 1e300),
        ("repetition_penalty", 1e-300),
        ("repetition_penalty", 1e300),
        ("frequency_penalty", 1e300),
        ("top_k", 10**30),
        ("min_p", 1e-300),
        ("top_p", 1e-300),
    ],
)
def test_extreme_parameters_harm_nobody(model: GPT, name: str, value: float) -> None:
    rig = make_rig(model)
    healthy = make_request(1, logprobs=1)
    extreme, beside = rig.run([make_request(0, **{name: value}), healthy])
    assert len(extreme.token_ids) == 12
    assert not set(extreme.token_ids) & set(NEVER_SAMPLED)
    assert beside == make_rig(model).run_alone(healthy)


def test_logprobs_are_of_the_raw_logits(model: GPT) -> None:
    """Bias, penalties and temperature change what is drawn, not what is reported."""
    plain = make_request(3, max_tokens=1, logprobs=20, temperature=0.0)
    changed = make_request(
        3, max_tokens=1, logprobs=20, temperature=1.7, logit_bias=((44, 100.0),), presence_penalty=2
    )
    one, other = (make_rig(model).run_alone(request) for request in (plain, changed))
    assert one.logprobs[0].top_logprobs == other.logprobs[0].top_logprobs
    assert one.logprobs[0].top_ids == other.logprobs[0].top_ids
    assert one.logprobs[0].logprob == one.logprobs[0].top_logprobs[0]
    assert other.token_ids == [44]


def test_top_logprobs_are_of_ids_that_can_be_sampled(model: GPT) -> None:
    answer = make_rig(model).run_alone(make_request(4, 60, logprobs=20, prompt_logprobs=20))
    assert answer.prompt_logprobs is not None
    entries = answer.prompt_logprobs + answer.logprobs
    assert all(len(entry.top_ids) == 20 for entry in entries)
    assert not {token for entry in entries for token in entry.top_ids} & set(NEVER_SAMPLED)


def test_prompt_logprobs_equal_log_softmax(model: GPT, tiny_model_dir: Path) -> None:
    """Against transformers' GPT-2 in float64: what the definition says, not what we compute."""
    transformers = pytest.importorskip("transformers")
    reference = transformers.GPT2LMHeadModel.from_pretrained(tiny_model_dir).double().eval()
    request = make_request(2, 50, prompt_logprobs=4, max_tokens=0)
    with torch.no_grad():
        logits = reference(torch.tensor([request.prompt_ids])).logits[0]
    values = torch.log_softmax(logits, dim=-1)
    answer = make_rig(model).run_alone(request)
    assert answer.token_ids == []
    assert answer.prompt_logprobs is not None
    assert len(answer.prompt_logprobs) == 49
    for position, found in enumerate(answer.prompt_logprobs, start=1):
        row = values[position - 1]
        expected = [row[token].item() for token in [request.prompt_ids[position], *found.top_ids]]
        np.testing.assert_allclose([found.logprob, *found.top_logprobs], expected, atol=2e-4)
        drawable = row[: NEVER_SAMPLED.start]
        assert found.top_logprobs[0] >= drawable.max().item() - 2e-4
        assert (drawable > expected[0] + 4e-4).sum() < found.rank
        assert found.rank <= 1 + (drawable > expected[0] - 4e-4).sum()


def test_prompt_logprobs_do_not_depend_on_how_many_logits_fit(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(2, 60, prompt_logprobs=4, logprobs=2)
    whole = make_rig(model).run_alone(request)
    monkeypatch.setattr(cpu_runner, "LOGITS_BYTES", 7 * 4 * 320)
    assert make_rig(model).run_alone(request) == whole


def test_ids_survive_a_refill_of_their_row(model: GPT) -> None:
    """A short sequence in the row of a long one with edits and penalties: nothing of it stays."""
    rig = make_rig(model, max_num_seqs=1)
    rig.run_alone(make_request(0, 60, logit_bias=((1, 50.0),), repetition_penalty=2.0))
    short = make_request(1, 5, temperature=0.0)
    assert rig.run_alone(short) == make_rig(model).run_alone(short)


def test_a_range_is_cut_at_the_prompt_end() -> None:
    """Row 1: prompt 4, computed 2 of 7; row 0: its prompt done; row 2: a chunk inside its prompt."""
    rows = Rows(3, 16, 4, vocab_size=320)
    params = SamplingParams(max_tokens=9, seed=0)
    for row, num_tokens, num_prompt in ((0, 9, 8), (1, 7, 4), (2, 12, 12)):
        rows.fill(NewRow(row, [100 * row + i for i in range(num_tokens)], num_prompt, 0, params))
        rows.write_blocks(NewBlocks(row, 0, [10 * row + 1, 10 * row + 5, 10 * row + 3]))
    scheduled = [
        ScheduledRow(1, 2, 5, True),
        ScheduledRow(0, 8, 1, True),
        ScheduledRow(2, 3, 2, False),
    ]
    runs = cut_runs(scheduled, rows.num_prompt_tokens)
    assert runs.table.tolist() == [[1, 2, 2, 0], [2, 3, 2, 2], [1, 4, 3, 4], [0, 8, 1, 7]]
    assert (runs.num_prefills, runs.num_prefill_tokens, runs.num_tokens) == (2, 4, 8)
    assert runs.num_decodes == 4
    assert runs.sampling_rows.tolist() == [1, 0]
    assert runs.sampling_index.tolist() == [6, 7]
    inputs = build_inputs(runs, rows)
    assert inputs.token_ids.tolist() == [102, 103, 203, 204, 104, 105, 106, 8]
    assert inputs.positions.tolist() == [2, 3, 3, 4, 4, 5, 6, 8]
    assert inputs.slot_mapping.tolist() == [46, 47, 87, 100, 60, 61, 62, 12]
    assert inputs.num_prefill_tokens == 4
    assert inputs.cu_seqlens_q.tolist() == [0, 2, 4]
    assert inputs.prefill_seq_lens.tolist() == [4, 5]
    assert inputs.prefill_rows.tolist() == [1, 2]
    assert inputs.seq_lens.tolist() == [5, 6, 7, 9]
    assert inputs.decode_rows.tolist() == [1, 1, 1, 0]


def test_one_generated_token_of_each_row_is_cut_as_among_others() -> None:
    """Such a step takes a shorter way: a prompt chunk behind it in the same step forces the longer one."""
    num_prompt_tokens = np.array([3, 9, 2, 5], np.int32)
    decodes = [
        ScheduledRow(2, 2, 1, True), ScheduledRow(0, 7, 1, False), ScheduledRow(3, 5, 1, True)
    ]  # fmt: skip
    short = cut_runs(decodes, num_prompt_tokens)
    long = cut_runs([*decodes, ScheduledRow(1, 4, 2, False)], num_prompt_tokens)
    assert (short.num_prefills, short.num_prefill_tokens, short.num_tokens) == (0, 0, 3)
    assert short.table.tolist() == [[2, 2, 1, 0], [0, 7, 1, 1], [3, 5, 1, 2]]
    assert long.table[1:, :3].tolist() == short.table[:, :3].tolist()
    assert long.table[1:, 3].tolist() == (short.table[:, 3] + 2).tolist()
    assert long.sampling_rows.tolist() == short.sampling_rows.tolist() == [2, 3]
    assert long.sampling_index.tolist() == (short.sampling_index + 2).tolist() == [2, 4]
    assert {array.dtype for array in (short.table, *short[4:])} == {np.dtype(np.int32)}


@pytest.mark.parametrize("count", [1, 3])
def test_the_shorter_way_of_generated_tokens_leads_to_the_same_inputs(count: int) -> None:
    rows = Rows(4, 16, 4, vocab_size=320)
    for row in range(4):
        ids = [50 * row + i for i in range(12)]
        rows.fill(NewRow(row, ids, 3 + row, 0, SamplingParams(max_tokens=9, seed=0)))
        rows.write_blocks(NewBlocks(row, 0, [10 * row + 1, 10 * row + 5, 10 * row + 3]))
    scheduled = [
        ScheduledRow(2, 7, 1, True), ScheduledRow(0, 3, 1, False), ScheduledRow(3, 9, count, True)
    ]  # fmt: skip
    runs, inputs = step_of(scheduled, rows)
    expected = cut_runs(scheduled, rows.num_prompt_tokens)
    for found, wanted in zip(runs, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    wanted_inputs = build_inputs(expected, rows)
    for field in fields(inputs):
        found, wanted = getattr(inputs, field.name), getattr(wanted_inputs, field.name)
        np.testing.assert_array_equal(found, wanted)
        assert np.asarray(found).dtype == np.asarray(wanted).dtype


@pytest.mark.parametrize(
    "outside",
    [ScheduledRow(1, 15, 2, False), ScheduledRow(1, 16, 1, True), ScheduledRow(2, 5, 1, True)],
)
def test_a_run_outside_of_the_rows_is_an_error(outside: ScheduledRow) -> None:
    rows = Rows(2, 16, 4, vocab_size=320)
    with pytest.raises(IndexError):
        step_of([outside], rows)


def test_a_token_for_a_full_row_is_an_error_and_no_row_gets_one() -> None:
    rows = Rows(2, 16, 4, vocab_size=320)
    rows.num_tokens[:] = 3, 16
    with pytest.raises(IndexError, match="full"):
        append(rows, np.array([0, 1], np.int32), np.array([7, 8]))
    assert rows.num_tokens.tolist() == [3, 16]
    append(rows, np.array([0], np.int32), np.array([7]))
    assert rows.num_tokens[0] == 4 and rows.token_ids[0, 3] == 7


def test_a_step_gets_on_with_every_layer_and_with_the_logits(model: GPT) -> None:
    """What a watchdog sees of a prompt that takes a minute: `age_s` asks the same clock."""
    now = 0

    def clock() -> int:
        nonlocal now
        now += 1
        return now

    board = Board.create(clock)
    try:
        kv_cache = KVCache.allocate(model.config, 4, 8, torch.float32)
        runner = CpuRunner(model, kv_cache, max_num_seqs=1, max_model_len=16, board=board)
        params = SamplingParams(max_tokens=5, seed=3, prompt_logprobs=0)
        new = NewRow(0, [7, 8, 9], 3, 0, params)
        scheduled = [ScheduledRow(0, 0, 3, True)]
        runner.dispatch(StepBatch(0, [new], [NewBlocks(0, 0, [1])], scheduled=scheduled))
        assert now == model.config.n_layer + 2, "the prompt's logits and those of the draw"
        assert board.read().progress_s == now / 1e9
    finally:
        board.close()
