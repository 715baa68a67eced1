"""Compiles every CPU kernel for a dtype, or finds it in numba's cache, before anybody waits for it."""

from __future__ import annotations

import numpy as np
import torch

from kernels.cpu import logprobs, prefill_attention, sampler
from kernels.cpu.arrays import as_array
from kernels.cpu.embedding import embed
from kernels.cpu.int8_linear import PackedInt8, pack_int8
from kernels.cpu.kv_write import write_kv
from kernels.cpu.layer_norm import layer_norm
from kernels.cpu.linear import NONE, Packed, linear, pack_linear
from kernels.cpu.paged_attention import paged_attention
from kernels.cpu.short_step import layer_table, run_layers
from kernels.cpu.step_inputs import append_tokens, generated_inputs, step_inputs
from kernels.sampling_rows import LogitEdits, RowMasks, SamplingRows

_WIDTH = 8


def warm_up(dtype: torch.dtype, quantization: str = "none") -> None:
    """Runs each kernel once on one row of zeros, on one thread and in its parallel form. Of the linears
    those that a model of this `quantization` calls, "none" or "int8"."""
    _warm_up_model(dtype)
    _warm_up_linears(dtype, quantization)
    _warm_up_sampling()


def _warm_up_model(dtype: torch.dtype) -> None:
    one = np.float32(1.0)
    fp32 = as_array(torch.zeros(1, _WIDTH))
    hidden, qkv = (as_array(torch.zeros(1, width, dtype=dtype)) for width in (_WIDTH, 3 * _WIDTH))
    k, v = (as_array(torch.zeros(1, 1, 8, _WIDTH, dtype=dtype)) for _ in range(2))
    ids, index = np.zeros(1, np.int64), np.zeros(1, np.int32)
    tables, lens, borders = np.zeros((1, 1), np.int32), index + 1, np.array([0, 1], np.int32)
    run, at = np.zeros((1, 4), np.int32), ids.copy()
    step_inputs(run, tables, tables, 8, at, at, at, index, index)
    generated_inputs(
        run, lens, tables, tables, 8, np.zeros((3, 1), np.int64), np.zeros((4, 1), np.int32)
    )
    append_tokens(tables, index.copy(), index, ids)
    embed(ids, ids, hidden, hidden, fp32)
    layer_norm(fp32, fp32[0], fp32[0], one, hidden)
    write_kv(qkv, k, v, ids)
    paged_attention(qkv, k, v, lens, index, tables, one, hidden)
    prefill = qkv, k, v, borders, lens, index, tables, one, hidden
    prefill_attention._count_tasks(borders, 1)
    prefill_attention._attend_task(*prefill, 0)
    prefill_attention._attend_threads(*prefill, 1)


def _warm_up_linears(dtype: torch.dtype, quantization: str) -> None:
    """Float weights are packed by strides: as they are stored, and transposed."""
    weight = torch.zeros(_WIDTH, _WIDTH)
    if quantization == "int8":
        packed: Packed = pack_int8(weight, None)
    else:
        pack_linear(torch.zeros(_WIDTH, 2 * _WIDTH)[:, ::2].t(), None, dtype)
        packed = pack_linear(weight, None, dtype)
    x, fp32 = (as_array(torch.zeros(1, _WIDTH, dtype=each)) for each in (dtype, torch.float32))
    for out in (x, fp32):
        linear(x, packed, NONE, out)
    _warm_up_short_step(packed, dtype)


def _warm_up_short_step(packed: Packed, dtype: torch.dtype) -> None:
    """No layers, and no rows of them: what is compiled does not know how many there are."""
    none, norms = np.zeros(0, np.float32), np.zeros((1, 2, 2, _WIDTH), np.float32)
    table = layer_table([[packed] * 4], NONE, norms, none)
    x = as_array(torch.zeros(1, _WIDTH, dtype=dtype))
    cache, index = x.reshape(1, 1, 1, 1, _WIDTH), np.zeros(1, np.int32)
    step = np.zeros(1, np.int64), index, index, index[None]
    activations = np.zeros((1, _WIDTH), np.float32), x, x, x
    is_int8 = isinstance(packed, PackedInt8)
    run_layers(table, np.float32(1.0), (cache, cache), step, activations, none, is_int8=is_int8)


def _warm_up_sampling() -> None:
    logits, mask = np.zeros((1, _WIDTH), np.float32), np.zeros(_WIDTH, np.float32)
    index, values = np.zeros(1, np.int32), np.zeros(1, np.float32)
    token_ids, top_ids = np.zeros(1, np.int64), np.zeros((1, 1), np.int32)
    rows = SamplingRows(
        token_ids=np.zeros((1, 2), np.int32),
        num_tokens=index + 1,
        num_prompt_tokens=index,
        choice=index,
        seed=np.zeros(1, np.int64),
        temperature=values + 1,
        top_k=index + 2,
        top_p=values,
        min_p=values,
        presence_penalty=values,
        frequency_penalty=values,
        repetition_penalty=values + 2,
    )
    edits = LogitEdits(np.array([0, 1], np.int32), index, values)
    masks = RowMasks(index + 1, np.full((1, 1), -1, np.int32))
    draws = sampler.Draws(index, np.array([0, 1], np.int32), token_ids - 1)
    drawn = sampler.Drawn(token_ids.copy(), index.copy())
    sampling = logits, mask, draws, rows, edits, masks, drawn
    sampler._sample_every(0, 1, *sampling)
    sampler._sample_parallel(1, *sampling)
    found = logprobs.Logprobs(values, index, top_ids, values[None])
    measuring = logits, mask, token_ids, token_ids, found
    logprobs._logprobs_every(0, 1, *measuring)
    logprobs._logprobs_parallel(1, *measuring)
