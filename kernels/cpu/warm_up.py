"""Compiles every CPU kernel for a dtype, or finds it in numba's cache, before anybody waits for it."""

from __future__ import annotations

import numpy as np
import torch

from kernels.cpu import int8_linear, linear, logprobs, paged_attention, prefill_attention, sampler
from kernels.cpu.arrays import as_array
from kernels.cpu.embedding import embed
from kernels.cpu.kv_write import write_kv
from kernels.cpu.layer_norm import layer_norm
from kernels.cpu.step_inputs import step_inputs
from kernels.sampling_rows import LogitEdits, RowMasks, SamplingRows

_WIDTH = 8


def warm_up(dtype: torch.dtype, quantization: str = "none") -> None:
    """Runs each kernel once on one row of zeros, on one thread and in its parallel form. Of the linears
    those that a model of this `quantization` calls, "none" or "int8"."""
    _warm_up_model(dtype)
    if quantization == "int8":
        _warm_up_int8(dtype)
    else:
        _warm_up_linears(dtype)
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
    embed(ids, ids, hidden, hidden, fp32)
    layer_norm(fp32, fp32[0], fp32[0], one, hidden)
    write_kv(qkv, k, v, ids)
    decode = qkv, k, v, lens, index, tables, one, hidden
    paged_attention._attend_share(*decode, 0, 1)
    paged_attention._attend_threads(*decode, 1)
    prefill = qkv, k, v, borders, lens, index, tables, one, hidden
    prefill_attention._count_tasks(borders, 1)
    prefill_attention._attend_task(*prefill, 0)
    prefill_attention._attend_threads(*prefill, 1)


def _warm_up_linears(dtype: torch.dtype) -> None:
    for weight in (torch.zeros(_WIDTH, _WIDTH), torch.zeros(_WIDTH, 2 * _WIDTH)[:, ::2].t()):
        packed = linear.pack_linear(weight, None, dtype)
    x, fp32 = (as_array(torch.zeros(1, _WIDTH, dtype=each)) for each in (dtype, torch.float32))
    for out in (x, fp32):
        arguments = x, packed.weight, packed.kind.value, packed.bias, linear.NONE, out
        linear._linear_panels(*arguments, 0, 1)
        linear._linear_threads(*arguments, 1)


def _warm_up_int8(dtype: torch.dtype) -> None:
    packed = int8_linear.pack_int8(torch.zeros(_WIDTH, _WIDTH), None)
    x, fp32 = (as_array(torch.zeros(1, _WIDTH, dtype=each)) for each in (dtype, torch.float32))
    for out in (x, fp32):
        arguments = int8_linear.kernel_arguments(x, packed, linear.NONE, out)
        int8_linear._linear_alone(*arguments)
        int8_linear._linear_threads(*arguments, 1)


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
    sampling = logits, mask, index, rows, edits, masks, token_ids
    sampler._sample_every(0, 1, *sampling)
    sampler._sample_parallel(1, *sampling)
    found = logprobs.Logprobs(values, index, top_ids, values[None])
    measuring = logits, mask, token_ids, token_ids, found
    logprobs._logprobs_every(0, 1, *measuring)
    logprobs._logprobs_parallel(1, *measuring)
