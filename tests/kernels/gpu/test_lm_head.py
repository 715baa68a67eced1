"""The fused LM head: the tokens of sampling from written logits, whose bits do not depend on the path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.cpu.sampler import sample as cpu_sample
from kernels.lm_head import HeadWorkspace, lm_head
from kernels.logit_rows import RowScratch
from kernels.sampler import sample
from kernels.sampling_rows import LogitEdits, SamplingRows
from kernels.sampling_tables import new_logits
from tests.kernels.gpu.device import DEVICE
from tests.kernels.gpu.device_rows import close_calls, make_tables
from tests.kernels.sampling_cases import (
    make_edits,
    make_masks,
    make_rows,
    no_edits,
    no_mask,
    no_masks,
    row_ids,
)

_SENTINEL = -777.0

PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.7, "seed": 2**63 - 1, "choice": 5},
    "penalties": {"presence_penalty": 0.7, "frequency_penalty": -0.3, "repetition_penalty": 1.7},
    "greedy with penalties": {"temperature": 0.0, "repetition_penalty": 3.0},
}


def layer(num_rows: int, vocab_size: int, n_embd: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    hidden = torch.randn(num_rows, n_embd, generator=generator)
    weight = torch.randn(vocab_size, n_embd, generator=generator) * 3 / n_embd**0.5
    return hidden.to(dtype).to(DEVICE), weight.to(dtype).to(DEVICE)


def run(
    hidden: Tensor,
    weight: Tensor,
    rows: SamplingRows,
    mask: Any,
    edits: LogitEdits,
    ids: Any = None,
    **fill: Any,
) -> tuple[Any, Any, SamplingRows]:
    """Logits (sentinels where none were written), tokens (likewise), and the rows afterwards."""
    num_rows, vocab_size = len(hidden), len(weight)
    device_rows, tables = make_tables(rows, mask, edits, **fill)
    logits = new_logits(num_rows, vocab_size, DEVICE)
    logits.fill_(_SENTINEL)
    sampled = torch.full((num_rows,), -7, dtype=torch.int64, device=DEVICE)
    workspace = HeadWorkspace.allocate(num_rows, DEVICE)
    index = torch.from_numpy(row_ids(num_rows) if ids is None else np.array(ids, np.int32))
    index = index.to(DEVICE)
    lm_head(hidden, weight, index, device_rows, tables, workspace, logits, sampled)
    assert (workspace.best == -(2**63)).all() and (workspace.arrivals == 0).all(), "as it was found"
    return logits.cpu().numpy(), sampled.cpu().numpy(), device_rows


def every_eleventh(vocab_size: int) -> Any:
    return np.where(np.arange(vocab_size) % 11 == 5, -np.inf, 0).astype(np.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", PARAMS)
def test_draws_what_the_cpu_draws_from_the_same_logits(name: str, dtype: torch.dtype) -> None:
    num_rows, vocab_size = 3, 301
    hidden, weight = layer(num_rows, vocab_size, 80, dtype)
    rows = make_rows(num_rows, vocab_size, **PARAMS[name])
    mask = every_eleventh(vocab_size)
    edits = make_edits({1: 2.5, 8: -np.inf}, {}, {300: 9.0})
    logits, tokens, _ = run(hidden, weight, rows, mask, edits, wants_logits=1)
    assert (tokens == -7).all(), "rows that want logits are not drawn here"
    tolerance = 1e-5 if dtype == torch.float32 else 2e-5  # of products that fp32 holds exactly
    exact = hidden.double() @ weight.double().T
    np.testing.assert_allclose(logits, exact.cpu().numpy(), atol=tolerance)
    none, drawn, after = run(hidden, weight, rows, mask, edits)
    assert (none == _SENTINEL).all(), "no logit of a row that is drawn here is written"
    expected = cpu_sample(
        np.ascontiguousarray(logits),
        mask,
        row_ids(num_rows),
        rows,
        edits,
        no_masks(num_rows, vocab_size),
    )
    assert drawn.tolist() == expected.tolist()
    assert close_calls(logits, mask, rows, edits, drawn, expected) == []
    assert (after.num_tokens.cpu().numpy() == rows.num_tokens + 1).all()
    appended = after.token_ids.cpu().numpy()[np.arange(num_rows), rows.num_tokens]
    assert appended.tolist() == drawn.tolist()


@pytest.mark.parametrize("num_rows", [1, 2, 8, 9, 63, 64, 65, 130])
def test_a_row_depends_on_neither_batch_nor_path(num_rows: int) -> None:
    """Rows of both paths in one launch: the logits, and the tokens, of each row alone."""
    vocab_size = 133
    hidden, weight = layer(130, vocab_size, 72, torch.bfloat16)
    index = np.arange(130)
    rows = make_rows(
        130, vocab_size, seed=index * 7, temperature=index % 3 * 0.6, top_k=index % 2 * 9
    )
    edits = make_edits(*({3: 1.5} if i % 5 == 0 else {} for i in range(130)))
    ids = index[:num_rows]
    logits, tokens, _ = run(hidden[:num_rows], weight, rows, no_mask(vocab_size), edits, ids)
    needs_logits = (ids % 2 == 1) & (ids % 3 > 0)
    assert ((logits != _SENTINEL).all(axis=1) == needs_logits).all()
    assert ((logits == _SENTINEL).all(axis=1) == ~needs_logits).all()
    assert ((tokens == -7) == needs_logits).all()
    whole, _, _ = run(hidden, weight, rows, no_mask(vocab_size), edits, wants_logits=1)
    assert (logits[needs_logits] == whole[:num_rows][needs_logits]).all()
    expected = cpu_sample(
        np.ascontiguousarray(whole),
        no_mask(vocab_size),
        row_ids(130),
        rows,
        edits,
        no_masks(130, vocab_size),
    )
    assert (tokens == expected[:num_rows])[~needs_logits].all()


def test_the_two_launches_of_a_step_draw_every_row() -> None:
    hidden, weight = layer(6, 200, 64, torch.bfloat16)
    rows = make_rows(
        6, 200, seed=np.arange(6), top_k=[0, 5, 0, 0, 0, 0], top_p=[1, 1, 1, 0.7, 1, 1]
    )
    wants = [0, 0, 1, 0, 0, 0]
    masks = make_masks(200, [7, 8, 199], None, [5], None, None, [6, 40, 41])
    device_rows, tables = make_tables(rows, no_mask(200), no_edits(6), masks, wants_logits=wants)
    logits = new_logits(6, 200, DEVICE)
    sampled = torch.full((6,), -7, dtype=torch.int64, device=DEVICE)
    index = torch.tensor([5, 1, -1, 3, 0, 2], dtype=torch.int32, device=DEVICE)
    workspace, scratch = HeadWorkspace.allocate(6, DEVICE), RowScratch.allocate(6, 200, DEVICE)
    lm_head(hidden, weight, index, device_rows, tables, workspace, logits, sampled)
    sample(logits, index, device_rows, tables, scratch, sampled, skip_fused=True)
    all_logits, _, _ = run(hidden, weight, rows, no_mask(200), no_edits(6), wants_logits=1)
    order = np.maximum(index.cpu().numpy(), 0)
    expected = cpu_sample(all_logits, no_mask(200), order, rows, no_edits(6), masks)
    expected[2] = -7
    assert sampled.tolist() == expected.tolist()
    assert (device_rows.num_tokens.cpu().numpy() - rows.num_tokens).tolist() == [1, 1, 1, 1, 0, 1]


def test_padding_rows_are_left_alone() -> None:
    hidden, weight = layer(70, 90, 64, torch.bfloat16)
    rows = make_rows(70, 90)
    ids = np.full(70, -1)
    ids[[3, 40]] = [60, 0]
    logits, tokens, after = run(hidden, weight, rows, no_mask(90), no_edits(70), ids)
    assert (logits == _SENTINEL).all()
    assert np.flatnonzero(tokens != -7).tolist() == [3, 40]
    grown = np.flatnonzero(after.num_tokens.cpu().numpy() != rows.num_tokens)
    assert grown.tolist() == [0, 60]
    _, none, _ = run(hidden, weight, rows, no_mask(90), no_edits(70), np.full(70, -1))
    assert (none == -7).all()


def test_no_finite_logit_gives_the_lowest_id_that_may_be_drawn() -> None:
    hidden, weight = layer(3, 90, 64, torch.bfloat16)
    hidden[0] = float("nan")
    hidden[2] = float("inf")
    mask = no_mask(90)
    mask[:4] = -np.inf
    rows = make_rows(3, 90, temperature=[1.0, 0.7, 0.0])
    with np.errstate(invalid="ignore"):
        _, tokens, after = run(hidden, weight, rows, mask, no_edits(3))
        _, healthy, _ = run(*layer(3, 90, 64, torch.bfloat16), rows, mask, no_edits(3))
    assert tokens[[0, 2]].tolist() == [-1 - 4, -1 - 4], "marked"
    assert tokens[1] == healthy[1]
    assert after.token_ids[:, 40].tolist() == [4, healthy[1], 4], "the row itself gets an id"


def test_equal_keys_go_to_the_lowest_id_across_tiles() -> None:
    hidden = torch.ones(2, 64, dtype=torch.bfloat16, device=DEVICE)
    weight = torch.zeros(700, 64, dtype=torch.bfloat16, device=DEVICE)
    weight[[650, 300, 40]] = 1.0
    rows = make_rows(2, 700, temperature=0.0)
    mask = no_mask(700)
    _, tokens, _ = run(hidden, weight, rows, mask, no_edits(2))
    assert tokens.tolist() == [40, 40]
    mask[40] = -np.inf
    _, tokens, _ = run(hidden, weight, rows, mask, no_edits(2))
    assert tokens.tolist() == [300, 300]


def test_strided_hidden_rows() -> None:
    hidden, weight = layer(4, 90, 64, torch.bfloat16)
    wide = torch.full((4, 3 * 64), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    wide[:, 64:128] = hidden
    rows = make_rows(4, 90)
    arguments = weight, rows, no_mask(90), no_edits(4)
    assert (run(wide[:, 64:128], *arguments)[1] == run(hidden, *arguments)[1]).all()
