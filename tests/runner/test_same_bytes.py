"""A sequence's tokens and logprobs are the same bits whatever else runs, and however it is run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from kernels.cpu.int8_linear import pack_int8
from kernels.cpu.kinds import BF16_KINDS, INT8_KINDS, Kind
from kernels.cpu.linear import pack_linear
from server.config import Quantization
from server.model import gpt
from server.model.gpt import GPT
from server.sequence import SequenceRequest
from tests.runner.rig import Answer, cut, load_tiny, make_request, make_rig, rest

PARAMS = (
    {"temperature": 0.0, "logprobs": 2},
    {"logprobs": 0, "prompt_logprobs": 3},
    {"temperature": 1.4, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "logprobs": 5},
    {
        "temperature": 0.8,
        "presence_penalty": 0.6,
        "frequency_penalty": 0.4,
        "repetition_penalty": 1.3,
        "logit_bias": ((5, 3.0), (17, -100.0)),
        "logprobs": 1,
    },
    {"temperature": 0.0, "repetition_penalty": 1.8, "min_tokens": 6, "eos_token_id": 297},
)


MODELS: dict[str, tuple[torch.dtype, Quantization, tuple[Kind, ...]]] = {
    "float32": (torch.float32, "none", BF16_KINDS),
    **{kind.name: (torch.bfloat16, "none", (kind, Kind.BF16)) for kind in BF16_KINDS},
    **{kind.name: (torch.bfloat16, "int8", (kind,)) for kind in INT8_KINDS},
    "INT8 of float32": (torch.float32, "int8", INT8_KINDS),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tiny_model_dir: Path) -> GPT:
    dtype, quantization, kinds = MODELS[request.param]
    name, pack = (
        ("pack_linear", pack_linear) if quantization == "none" else ("pack_int8", pack_int8)
    )
    with patch.object(gpt, name, partial(pack, kinds=kinds)):
        return load_tiny(tiny_model_dir, dtype, quantization)


@pytest.fixture(scope="module")
def requests() -> list[SequenceRequest]:
    """Sixteen, of prompt lengths on, before and after block borders, each kind of parameters."""
    return [
        make_request(i, (1, 7, 8, 9, 23, 40, 64)[i % 7], **PARAMS[i % len(PARAMS)])
        for i in range(16)
    ]


@pytest.fixture(scope="module")
def alone(model: GPT, requests: list[SequenceRequest]) -> list[Answer]:
    """Each in an engine of its own."""
    return [make_rig(model).run_alone(request) for request in requests]


def test_answers_are_what_was_asked_for(
    alone: list[Answer], requests: list[SequenceRequest]
) -> None:
    for answer, request in zip(alone, requests, strict=True):
        params = request.params
        assert len(answer.token_ids) == 12
        assert answer.finish_reason == "length"
        assert len(answer.logprobs) == (0 if params.logprobs is None else 12)
        assert all(len(entry.top_ids) == params.logprobs for entry in answer.logprobs)
        if params.prompt_logprobs is not None:
            assert answer.prompt_logprobs is not None
            assert len(answer.prompt_logprobs) == len(request.prompt_ids) - 1
    assert len({tuple(answer.token_ids) for answer in alone}) == len(alone)


def test_in_a_batch_of_sixteen(
    model: GPT, requests: list[SequenceRequest], alone: list[Answer]
) -> None:
    assert make_rig(model).run(requests) == alone


def test_in_one_call_a_step_and_kernel_by_kernel(
    model: GPT, requests: list[SequenceRequest], alone: list[Answer]
) -> None:
    with patch.object(gpt, "run_layers", wraps=gpt.run_layers) as run_layers:
        assert make_rig(model).run(requests) == alone
    assert run_layers.call_count >= 10, "steps of generated rows only"
    with (
        patch.object(gpt, "_SHORT_MACS", 0),
        patch.object(gpt, "run_layers", side_effect=AssertionError),
    ):
        assert make_rig(model).run(requests) == alone


@pytest.mark.parametrize("num_tokens", [3, 17])
def test_chunked(
    model: GPT, requests: list[SequenceRequest], alone: list[Answer], num_tokens: int
) -> None:
    rig = make_rig(model, max_num_seqs=3, max_num_batched_tokens=num_tokens)
    assert rig.run(requests) == alone


def test_in_chunks_of_one(model: GPT, requests: list[SequenceRequest], alone: list[Answer]) -> None:
    rig = make_rig(model, max_num_seqs=1, max_num_batched_tokens=1)
    assert rig.run(requests) == alone


def test_after_preemption(model: GPT, requests: list[SequenceRequest], alone: list[Answer]) -> None:
    rig = make_rig(model, num_blocks=18, max_num_batched_tokens=50)
    assert rig.run(requests) == alone
    assert rig.engine.stats().num_preemptions >= 3


def test_with_a_prefix_hit(
    model: GPT, requests: list[SequenceRequest], alone: list[Answer]
) -> None:
    rig = make_rig(model)
    rig.run(requests)
    assert rig.run(requests) == alone
    for request in requests:
        reads_cache = request.params.prompt_logprobs is None and len(request.prompt_ids) > 8
        assert (rig.num_cached_tokens[request.seq_id] > 0) == reads_cache


@pytest.mark.parametrize("num_emitted", [1, 2, 5, 11])
def test_alone_after_a_restart(
    model: GPT, requests: list[SequenceRequest], alone: list[Answer], num_emitted: int
) -> None:
    for request, answer in zip(requests, alone, strict=True):
        again = make_rig(model).run_alone(cut(request, answer, num_emitted))
        assert again == rest(answer, num_emitted)


@pytest.mark.parametrize("num_tokens", [3, 17, 512])
def test_all_after_a_restart(
    model: GPT, requests: list[SequenceRequest], alone: list[Answer], num_tokens: int
) -> None:
    """Several in one step, each cut elsewhere, some of them not at all; with 512 all rows of a sequence are
    in one step, and read what the step has written."""
    cuts = [5 * i % 12 for i in range(len(requests))]
    assert 0 in cuts and 11 in cuts
    rig = make_rig(model, max_num_seqs=min(num_tokens, 20), max_num_batched_tokens=num_tokens)
    found = rig.run([cut(*each) for each in zip(requests, alone, cuts, strict=True)])
    for answer, whole, num_emitted in zip(found, alone, cuts, strict=True):
        assert answer == (rest(whole, num_emitted) if num_emitted else whole)


def test_beside_others_after_a_restart(
    model: GPT, requests: list[SequenceRequest], alone: list[Answer]
) -> None:
    """The odd ones come back while the even ones decode, and have to give way now and then."""
    late = [
        cut(request, answer, 7) for request, answer in zip(requests[1::2], alone[1::2], strict=True)
    ]
    rig = make_rig(model, num_blocks=30, max_num_batched_tokens=40)
    found = rig.run(requests[::2], late)
    assert found == [*alone[::2], *(rest(answer, 7) for answer in alone[1::2])]
    assert rig.engine.stats().num_preemptions


def test_with_cached_blocks_after_a_restart(
    model: GPT, requests: list[SequenceRequest], alone: list[Answer]
) -> None:
    """Of both kinds: the prompt's, and those that one before it has generated."""
    rig = make_rig(model)
    rig.run(requests)
    num_tokens = rig.engine.stats().num_step_tokens
    replays = [cut(request, answer, 11) for request, answer in zip(requests, alone, strict=True)]
    assert rig.run(replays) == [rest(answer, 11) for answer in alone]
    num_all = sum(len(request.prompt_ids) + 11 for request in requests)
    assert rig.engine.stats().num_step_tokens - num_tokens < num_all // 2


def test_choices_alone_and_among_siblings(model: GPT) -> None:
    """n = 4 of one prompt in a list of three prompts; each choice again on its own."""
    requests = [
        make_request(4 * prompt + choice, 21, choice=choice, prompt_seed=prompt, seed=5, logprobs=1)
        for prompt in range(3)
        for choice in range(4)
    ]
    together = make_rig(model).run(requests)
    assert together == [make_rig(model).run_alone(request) for request in requests]
    assert len({tuple(answer.token_ids) for answer in together}) == 12, "choices differ"


def test_blocks_of_another_size(
    model: GPT, requests: list[SequenceRequest], alone: list[Answer]
) -> None:
    assert make_rig(model, block_size=32, num_blocks=100).run(requests) == alone


def test_the_numbers_really_differ(tiny_model_dir: Path) -> None:
    answers = [
        make_rig(load_tiny(tiny_model_dir, *numbers)).run_alone(make_request(1, logprobs=0))
        for numbers in (
            (torch.float32, "none"),
            (torch.bfloat16, "none"),
            (torch.float32, "int8"),
            (torch.bfloat16, "int8"),
        )
    ]
    assert len({repr(answer.logprobs) for answer in answers}) == len(answers)


def test_every_kind_of_int8_gives_the_same(
    tiny_model_dir: Path, requests: list[SequenceRequest]
) -> None:
    answers = []
    for kind in INT8_KINDS:
        with patch.object(gpt, "pack_int8", partial(pack_int8, kinds=(kind,))):
            model = load_tiny(tiny_model_dir, torch.bfloat16, "int8")
        answers.append(make_rig(model).run(requests))
    assert all(answer == answers[0] for answer in answers)
