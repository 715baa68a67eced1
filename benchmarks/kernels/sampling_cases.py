"""From the last hidden states to the next tokens, and the tables of each row that this needs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from benchmarks.kernels.cases import (
    BF16,
    FP16,
    FP32,
    GPT2,
    GPT2_XL,
    MAX_MODEL_LEN,
    MAX_NUM_SEQS,
    NAMES,
    Case,
    Shape,
    count,
    floats,
    ints,
    longs,
    tensor,
)
from benchmarks.kernels.expectations import Expectation
from benchmarks.kernels.targets import Target
from kernels.lm_head import HeadWorkspace, lm_head
from kernels.logit_rows import RowScratch
from kernels.logprobs import logprobs
from kernels.row_masks import write_masks
from kernels.sampler import sample
from kernels.sampling_rows import RowFills, SamplingRows, mask_words
from kernels.sampling_tables import SamplingTables, fill_tables, new_logits

_GPU = torch.device("cuda")
_VOCAB = GPT2.vocab_size


def cases(target: Target, is_full: bool) -> Iterator[Case]:
    for num_rows in (1, 64):
        yield _sample(num_rows, has_mask=False)
    yield _sample(64, has_mask=True)
    for shape, dtype, num_rows in _heads(target, is_full):
        yield _lm_head(shape, dtype, num_rows)
    for num_top in (0, 5, 20):
        yield _logprobs(num_top)
    fill = {"_fill_tables_kernel": Expectation()}
    yield Case("8 rows", lambda: fill_tables(_fills(8), _rows(), _tables(False)), fill)
    yield _write_masks(64)


def _heads(target: Target, is_full: bool) -> Iterator[tuple[Shape, torch.dtype, int]]:
    is_wide = is_full or target.is_judged
    yield from product((GPT2, GPT2_XL), (BF16,), (1, 17, 64, 256) if is_wide else (64,))
    yield from product((GPT2, GPT2_XL) if is_full else (GPT2,), (FP16, FP32), (64,))


def _lm_head(shape: Shape, dtype: torch.dtype, num_rows: int) -> Case:
    """Rows that need logits and rows that do not are one launch; then the sampler passes over the latter."""

    def launch() -> None:
        logits, row_ids = new_logits(num_rows, _VOCAB, _GPU), ints(num_rows)
        rows, tables, sampled = _rows(), _tables(False), longs(num_rows)
        lm_head(
            tensor(num_rows, shape.n_embd, dtype=dtype),
            tensor(_VOCAB, shape.n_embd, dtype=dtype),
            row_ids,
            rows,
            tables,
            HeadWorkspace.allocate(MAX_NUM_SEQS, _GPU),
            logits,
            sampled,
        )
        sample(logits, row_ids, rows, tables, _scratch(), sampled, skip_fused=True)

    expected = {
        "_lm_head_kernel": Expectation(
            is_wgmma=dtype != FP32, load_bytes={"hidden_ptr": 16, "weight_ptr": 16}
        ),
        "_sample_kernel": Expectation(load_bytes={"logits_ptr": 16}),
    }
    return Case(f"{shape.name} {NAMES[dtype]}, {count(num_rows, 'row')}", launch, expected)


def _sample(num_rows: int, *, has_mask: bool) -> Case:
    def launch() -> None:
        sample(
            new_logits(num_rows, _VOCAB, _GPU),
            ints(num_rows),
            _rows(),
            _tables(has_mask),
            _scratch(),
            longs(num_rows),
        )

    wide = Expectation(load_bytes={"logits_ptr": 16})
    config = f"{count(num_rows, 'row')} of {_VOCAB}" + (
        ", some ids never drawn" if has_mask else ""
    )
    return Case(config, launch, {"_sample_kernel": wide})


def _logprobs(num_top: int) -> Case:
    n = 64

    def launch() -> None:
        logprobs(
            new_logits(n, _VOCAB, _GPU),
            longs(n),
            _tables(False),
            _scratch(),
            floats(n),
            ints(n),
            ints(n, num_top),
            floats(n, num_top),
            ints(n),
        )

    wide = Expectation(
        load_bytes={"logits_ptr": 16}, num_single={"logits_ptr": 1}
    )  # the chosen one
    return Case(f"{count(n, 'row')} of {_VOCAB}, top {num_top}", launch, {"_logprobs_kernel": wide})


def _write_masks(num_masks: int) -> Case:
    def launch() -> None:
        words = ints(num_masks * mask_words(_VOCAB))
        write_masks(ints(num_masks), words, _tables(False))

    return Case(f"{num_masks} masks", launch, {"_write_masks_kernel": Expectation()})


def _scratch() -> RowScratch:
    return RowScratch.allocate(MAX_NUM_SEQS, _VOCAB, _GPU)


def _rows() -> SamplingRows:
    n = MAX_NUM_SEQS
    return SamplingRows(
        token_ids=ints(n, MAX_MODEL_LEN),
        num_tokens=ints(n),
        num_prompt_tokens=ints(n),
        choice=ints(n),
        seed=longs(n),
        temperature=floats(n),
        top_k=ints(n),
        top_p=floats(n),
        min_p=floats(n),
        presence_penalty=floats(n),
        frequency_penalty=floats(n),
        repetition_penalty=floats(n),
    )


def _tables(has_mask: bool) -> SamplingTables:
    mask = torch.zeros(_VOCAB)
    mask[1] = float("-inf") if has_mask else 0.0
    return SamplingTables.allocate(MAX_NUM_SEQS, mask, _GPU)


def _fills(n: int) -> RowFills:
    return RowFills(
        row_ids=ints(n),
        banned_below=ints(n),
        wants_logits=ints(n),
        bias_starts=ints(n + 1),
        bias_ids=ints(5),
        bias_values=floats(5),
        ban_starts=ints(n + 1),
        ban_ids=ints(5),
    )
