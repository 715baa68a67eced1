"""The whole engine over the Triton kernels: it answers what the CPU path answers, whatever else runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.model.device_kv_cache import FP8
from server.model.gpu_gpt import GpuGPT
from server.sequence import SequenceRequest
from tests.kernels.gpu.device import DEVICE
from tests.runner import rig as cpu
from tests.runner.gpu.rig import load_tiny, make_rig, make_runner
from tests.runner.rig import Answer, cut, make_request, rest
from tests.tiny_model import write_tiny_model

PARAMS = (
    {"temperature": 0.0, "logprobs": 2},
    {"prompt_logprobs": 3},
    {"temperature": 1.4, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "logprobs": 5},
    {
        "temperature": 0.8,
        "presence_penalty": 0.6,
        "frequency_penalty": 0.4,
        "repetition_penalty": 1.3,
        "logit_bias": ((5, 3.0), (17, -100.0)),
    },
    {"temperature": 0.0, "repetition_penalty": 1.8, "min_tokens": 3, "eos_token_id": 297},
)
MAX_TOKENS = 4


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads of 32: the interpreter takes a second for a step of a wider one."""
    directory = tmp_path_factory.mktemp("narrow")
    write_tiny_model(directory, n_embd=64)
    return directory


@pytest.fixture(scope="module")
def model(model_dir: Path) -> GpuGPT:
    return load_tiny(model_dir, torch.float32)


@pytest.fixture(scope="module")
def requests() -> list[SequenceRequest]:
    """Prompts on, before and after block borders, each kind of parameters."""
    lengths = (1, 7, 8, 17, 20)
    return [
        make_request(i, lengths[i], max_tokens=MAX_TOKENS, **PARAMS[i]) for i in range(len(PARAMS))
    ]


@pytest.fixture(scope="module")
def alone(model: GpuGPT, requests: list[SequenceRequest]) -> list[Answer]:
    """Each in an engine of its own."""
    return [make_rig(model).run_alone(request) for request in requests]


def test_the_cpu_path_gives_the_same_tokens(
    model_dir: Path, requests: list[SequenceRequest], alone: list[Answer]
) -> None:
    reference = cpu.make_rig(cpu.load_tiny(model_dir, torch.float32)).run(requests)
    for found, expected in zip(alone, reference, strict=True):
        assert found.token_ids == expected.token_ids
        assert found.finish_reason == expected.finish_reason
        pairs = list(zip(found.logprobs, expected.logprobs, strict=True))
        if expected.prompt_logprobs is not None:
            assert found.prompt_logprobs is not None
            pairs += zip(found.prompt_logprobs, expected.prompt_logprobs, strict=True)
        for one, other in pairs:
            assert one.rank == other.rank
            assert one.top_ids == other.top_ids
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert one.top_logprobs == pytest.approx(other.top_logprobs, abs=1e-4)


def test_in_a_batch(model: GpuGPT, requests: list[SequenceRequest], alone: list[Answer]) -> None:
    assert make_rig(model).run(requests) == alone


def test_chunked(model: GpuGPT, requests: list[SequenceRequest], alone: list[Answer]) -> None:
    rig = make_rig(model, max_num_seqs=3, max_num_batched_tokens=9)
    assert rig.run(requests) == alone


def test_after_preemption(
    model: GpuGPT, requests: list[SequenceRequest], alone: list[Answer]
) -> None:
    rig = make_rig(model, num_blocks=7)
    assert rig.run(requests) == alone
    assert rig.engine.stats().num_preemptions >= 1


def test_with_a_prefix_hit(
    model: GpuGPT, requests: list[SequenceRequest], alone: list[Answer]
) -> None:
    rig = make_rig(model)
    rig.run(requests[3:])
    assert rig.run(requests[3:]) == alone[3:]
    assert all(rig.num_cached_tokens[request.seq_id] > 0 for request in requests[3:])


def test_after_a_restart(
    model: GpuGPT, requests: list[SequenceRequest], alone: list[Answer]
) -> None:
    """Each cut elsewhere, all in one step: its decode rows read what the step itself has written."""
    cuts = [1 + i % 3 for i in range(len(requests))]
    found = make_rig(model).run([cut(*each) for each in zip(requests, alone, cuts, strict=True)])
    assert found == [rest(*each) for each in zip(alone, cuts, strict=True)]


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="no CUDA device")
def test_after_a_restart_at_a_real_width(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Wide tiles, several splits of a row, and replays of more rows than one decode launch takes."""
    directory = tmp_path_factory.mktemp("wide")
    write_tiny_model(directory, n_embd=512)
    model = load_tiny(directory, torch.bfloat16)
    requests = [
        make_request(i, 1 + 7 * i % 40, max_tokens=40, **PARAMS[i % len(PARAMS)]) for i in range(20)
    ]
    alone = [make_rig(model).run_alone(request) for request in requests]
    assert make_rig(model, num_blocks=240).run(requests) == alone
    for cuts in (range(1, 21), range(39, 19, -1)):
        replays = [cut(*each) for each in zip(requests, alone, cuts, strict=True)]
        expected = [rest(*each) for each in zip(alone, cuts, strict=True)]
        assert make_rig(model, num_blocks=240).run(replays) == expected


def test_in_bfloat16_and_with_an_fp8_cache(model_dir: Path) -> None:
    """Near the fp32 answer, the same in a batch, and an fp8 cache is really another."""
    model = load_tiny(model_dir, torch.bfloat16)
    requests = [make_request(i, 9 + i, max_tokens=2, temperature=0.0, logprobs=1) for i in range(2)]
    for cache_dtype in (None, FP8):
        alone = [make_rig(model, cache_dtype=cache_dtype).run_alone(r) for r in requests]
        assert make_rig(model, cache_dtype=cache_dtype).run(requests) == alone
        if cache_dtype is None:
            in_bfloat16 = alone
    assert alone != in_bfloat16
    for one, other in zip(alone, in_bfloat16, strict=True):
        assert one.logprobs[0].logprob == pytest.approx(other.logprobs[0].logprob, abs=0.2)


def test_the_largest_step_and_graphs_leave_a_runner_that_works(
    model: GpuGPT, requests: list[SequenceRequest], alone: list[Answer]
) -> None:
    runner = make_runner(model, max_num_seqs=2, max_num_batched_tokens=16)
    runner.profile(16)
    assert runner.warm_up(0) == 1
    rig = make_rig(model, max_num_seqs=2, max_num_batched_tokens=16)
    rig.engine._runner = runner  # type: ignore[assignment]
    assert rig.run_alone(requests[2]) == alone[2]
