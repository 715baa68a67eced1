"""lm-evaluation-harness, `local-completions`: its scores are those of the same model without a server."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.clients.conftest import KEY, MODEL, MODEL_DIR
from tests.clients.lm_eval_tasks import (
    CHOICES,
    GENERATION,
    MAX_TOKENS,
    QUESTIONS,
    ROLLING,
    TEXTS,
    UNTIL,
    write_tasks,
)
from tests.clients.offline import OfflineModel, Score
from tests.clients.programs import run_client
from tests.serving import Server

_TASKS = ",".join([CHOICES, GENERATION, ROLLING])


class Report(NamedTuple):
    """What a run of the harness wrote."""

    results: dict[str, dict[str, Any]]  # the scores of each task
    samples: dict[str, list[dict[str, Any]]]  # of each task, one for each document


def run_harness(folder: Path, server: Server, *model_args: str, **variables: str) -> Report:
    tasks, out = folder / "tasks", folder / "out"
    tasks.mkdir()
    write_tasks(tasks)
    base = [f"model={MODEL}", f"base_url={server.address}/v1/completions", "max_length=512"]
    arguments = ",".join([*base, "num_concurrent=2", *model_args])
    run_client(
        folder,
        "lm_eval",
        *("run", "--model", "local-completions", "--model_args", arguments, "--batch_size", "3"),
        *("--tasks", _TASKS, "--include_path", str(tasks)),
        *("--output_path", str(out), "--log_samples"),
        **variables,
    )
    (results,) = out.rglob("results_*.json")
    samples = {task: _samples(out, task) for task in (CHOICES, GENERATION, ROLLING)}
    return Report(json.loads(results.read_text())["results"], samples)


def _samples(out: Path, task: str) -> list[dict[str, Any]]:
    (file,) = out.rglob(f"samples_{task}_*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(samples, key=lambda sample: int(sample["doc_id"]))


@pytest.fixture(scope="module")
def offline() -> OfflineModel:
    return OfflineModel()


@pytest.fixture(scope="module", params=["huggingface", "remote"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """With the tokenizer's files at hand; and from nothing but the server, which wants a key."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "huggingface":
        server = request.getfixturevalue("server")
        backend = ["tokenizer_backend=huggingface", f"tokenizer={MODEL_DIR}"]
        return run_harness(folder, server, *backend)
    server = request.getfixturevalue("keyed_server")
    backend = ["tokenizer_backend=remote", f"auth_token={KEY}"]
    return run_harness(folder, server, *backend, OPENAI_API_KEY=KEY)


def scores_of(offline: OfflineModel, context: str, continuations: list[str]) -> list[Score]:
    encode = offline.tokenizer.encode
    scores = []
    for continuation in continuations:
        start = len(encode(context))  # the harness encodes both together, then cuts
        ids = encode(context + continuation)
        scores.append(offline.score(ids[:start], ids[start:]))
    return scores


def test_choices_score_as_without_a_server(report: Report, offline: OfflineModel) -> None:
    """Every float, and with them the harness's greedy flag, to the last bit."""
    num_right = num_right_by_length = 0
    for (context, choices, label), sample in zip(QUESTIONS, report.samples[CHOICES], strict=True):
        expected = scores_of(offline, context, choices)
        logged = [(float(value), flag == "True") for value, flag in sample["filtered_resps"]]
        assert logged == [tuple(score) for score in expected]
        sums = [score.loglikelihood for score in expected]
        by_length = [value / len(choice) for value, choice in zip(sums, choices, strict=True)]
        num_right += sums.index(max(sums)) == label
        num_right_by_length += by_length.index(max(by_length)) == label
    results = report.results[CHOICES]
    assert results["acc,none"] == num_right / len(QUESTIONS)
    assert results["acc_norm,none"] == num_right_by_length / len(QUESTIONS)
    assert 0 < num_right < len(QUESTIONS)


def test_a_whole_text_scores_as_without_a_server(report: Report, offline: OfflineModel) -> None:
    """Rolling: the first token is given the end token, which the harness asks the tokenizer for."""
    assert offline.tokenizer.eos_token_id is not None
    prefix = [offline.tokenizer.eos_token_id]
    sums = [offline.score(prefix, offline.tokenizer.encode(text)).loglikelihood for text in TEXTS]
    logged = [float(sample["filtered_resps"][0]) for sample in report.samples[ROLLING]]
    assert logged == sums
    bits = -sum(sums) / sum(len(text.encode()) for text in TEXTS) / math.log(2)
    assert report.results[ROLLING]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-12)


def test_generated_text_is_that_without_a_server(report: Report, offline: OfflineModel) -> None:
    expected = [
        offline.generate(offline.tokenizer.encode(context), MAX_TOKENS, UNTIL)
        for context, _, _ in QUESTIONS
    ]
    assert [sample["filtered_resps"][0] for sample in report.samples[GENERATION]] == expected
    assert len(set(expected)) > 3


def test_the_scores_are_those_of_another_implementation(report: Report) -> None:
    """transformers' GPT-2 in float32; the server may compute in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    for (context, choices, _), sample in zip(QUESTIONS, report.samples[CHOICES], strict=True):
        start = len(tokenizer(context).input_ids)
        for choice, (logged, _) in zip(choices, sample["filtered_resps"], strict=True):
            ids = torch.tensor([tokenizer(context + choice).input_ids])
            with torch.no_grad():
                logprobs = model(ids).logits[0].log_softmax(-1)
            taken = logprobs[start - 1 : -1].gather(1, ids[0, start:, None])
            assert float(logged) == pytest.approx(float(taken.sum()), abs=0.05 * len(taken))
