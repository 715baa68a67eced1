"""Parts of the comparison that need no peer: vocabulary, bytes of a step, bench's JSON, prompts, state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare.engines import ENGINES, PROMPT_TOKENS, SERVERS, Plan, plan_of
from benchmarks.compare.environment import Peers, read_peers
from benchmarks.compare.models import EMBEDDED, NAMES, ModelStore, Shape, shape_of
from benchmarks.compare.over_http import read_load
from benchmarks.compare.rounds import ModelRounds, prompts_of
from benchmarks.compare.samples import OFFLINE, Samples
from benchmarks.compare.set_up import read_requirements
from benchmarks.compare.vocabulary import write_tokenizer
from benchmarks.compare.worker_process import PeerError
from server.bench.config import BenchConfig
from server.bench.flags import add_arguments
from server.tokenizer import load_tokenizer


def test_the_bytes_of_a_step() -> None:
    """GPT-2 has 124,439,808 weights; a step reads them but for the position table, which has 1,024 * 768."""
    shape = shape_of("124M")
    assert shape.weight_bytes("float32") == 4 * (124_439_808 - 1024 * 768)
    assert shape.weight_bytes("bfloat16") / shape.weight_bytes("q8_0") == 2 / (34 / 32)
    assert Shape(0, 2, 5).weight_bytes("int8") == 5 * 2 + 2 * 2


@pytest.mark.parametrize("vocab_size", [4200, 50257])
def test_the_made_up_vocabulary_is_one_of_ours_and_of_others(
    tmp_path: Path, vocab_size: int
) -> None:
    from tokenizers import Tokenizer

    write_tokenizer(EMBEDDED, tmp_path, vocab_size)
    ours, theirs = load_tokenizer(tmp_path), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert ours.num_tokens == theirs.get_vocab_size() == vocab_size
    assert ours.eos_token_id == vocab_size - 1
    text = "Once upon a time there was a small garden by the river."
    assert ours.encode(text) == theirs.encode(text).ids
    merges = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert len(merges) == 1 + vocab_size - 256 - 1


def test_prompts_are_distinct_and_new_in_every_round() -> None:
    prompts = prompts_of("0 64", 64)
    assert len({prompt[0] for prompt in prompts}) == 64
    assert {len(prompt) for prompt in prompts} == {PROMPT_TOKENS}
    assert prompts_of("0 64", 64) == prompts and prompts_of("1 64", 64) != prompts
    assert all(100 <= token < 1000 for prompt in prompts for token in prompt)


def load_of(**changes: Any) -> dict[str, Any]:
    load = {
        "failures": {}, "messages": {}, "completed": 4, "output_tokens": 32, "output_tokens_per_s": 9.0,
        "itl_ms": {"p50": 2.0}, "tpot_ms": None, "ttft_ms": {"p50": 30.0},
    }  # fmt: skip
    return {"loads": [{**load, **changes}]}


def test_the_figures_of_a_load() -> None:
    load = read_load(load_of(), 8)
    assert (load.tokens_per_s, load.itl_ms, load.tpot_ms, load.ttft_ms) == (9.0, 2.0, None, 30.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"failures": {"HTTP 422": 1}, "messages": {"HTTP 422": "no"}}, "HTTP 422"),
        ({"output_tokens": 31}, "31 tokens were generated, not 32"),
        ({"completed": 0}, "requests failed"),
    ],
)
def test_a_load_in_which_not_all_was_generated_is_no_figure(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(PeerError, match=said):
        read_load(load_of(**changes), 8)


def test_peers_that_were_never_set_up_are_missing_with_that_reason(tmp_path: Path) -> None:
    peers = read_peers(tmp_path / "peers.json")
    assert set(peers.missing) == {engine.peer for engine in ENGINES} - {"continuo"}
    assert all("make compare" in reason for reason in peers.missing.values())
    state = {"versions": {"ctranslate2": "4"}, "missing": {"llama.cpp": "no cmake"}}
    (tmp_path / "peers.json").write_text(json.dumps(state))
    peers = read_peers(tmp_path / "peers.json")
    assert (peers.versions, peers.missing) == (state["versions"], state["missing"])


def test_what_cannot_be_converted_is_said(tmp_path: Path) -> None:
    """Python itself is missing from this environment."""
    store = ModelStore(tmp_path, Peers(tmp_path / "python"))
    path, reason = store.get("embedded", "ctranslate2")
    assert path is None and reason == "could not be converted: FileNotFoundError"
    folder, _ = store.get("embedded", "hf")
    assert folder is not None
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == -1


def test_the_peers_are_pinned() -> None:
    pinned = read_requirements("benchmarks/compare/requirements.txt")
    assert {"ctranslate2", "llama-cpp-python"} <= set(pinned)


def test_774m_has_no_fp32_and_goes_through_http_only_when_asked() -> None:
    plan = plan_of("774M", 5, is_quick=False, has_large_http=False)
    assert plan.repeats == 3 and not plan.in_flight
    assert "float32" not in {engine.form for engine in plan.engines}
    assert plan_of("774M", 5, is_quick=False, has_large_http=True).in_flight == (1, 8)


@pytest.mark.parametrize("model", NAMES)
def test_prompt_and_tokens_fit_the_least_context(model: str) -> None:
    for is_quick in (False, True):
        plan = plan_of(model, 5, is_quick=is_quick, has_large_http=True)
        assert PROMPT_TOKENS + max(plan.http_tokens, *plan.num_tokens.values()) <= 512


def test_servers_are_benchmarked_with_flags_that_exist() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for server in SERVERS:
        given = parser.parse_args(list(server.bench_flags))
        assert given.prompts in ("text", "token-ids")
    assert BenchConfig().needs_done


def test_a_model_runs_without_any_peer(tmp_path: Path) -> None:
    """Loads one of ours in a process of its own, two rounds; the peers' rows say why they are empty."""
    plan = Plan("embedded", {1: 4, 8: 3}, 4, (), 2, ("float32",))
    peers, samples = read_peers(tmp_path / "peers.json"), Samples()
    wanted = {"transformers", "ctranslate2"}
    store = ModelStore(tmp_path, peers)
    ModelRounds(plan, wanted, store, peers, tmp_path, lambda sentence: None).run(samples)
    assert samples.streams_of("embedded", OFFLINE, "Continuo fp32") == [1, 8]
    assert {engine for _, _, engine in samples.missing} == {
        "transformers fp32", "transformers continuous fp32", "CTranslate2 fp32",
    }  # fmt: skip
