"""What is sent: the same for a seed, apart for each load, and never beyond the context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.bench.config import BenchConfig
from server.bench.dataset import load_dataset
from server.bench.requests import Requests, ServerFacts
from server.errors import ConfigError

FACTS = ServerFacts("m", None, 2.0, True)


def body(requests: Requests, index: int = 0, load: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(requests.make(load, index).body)
    return found


def test_a_seed_makes_the_same_requests() -> None:
    config = BenchConfig(prompt_tokens="sharegpt", output_tokens="sharegpt", seed=3)
    first, second = Requests(config, FACTS), Requests(config, FACTS)
    assert first.make(0, 5) == second.make(0, 5)
    assert first.make(0, 5) != first.make(0, 6)
    assert first.make(0, 5) != first.make(1, 5)  # a cache does not know the next load's
    other = Requests(BenchConfig(prompt_tokens="sharegpt", output_tokens="sharegpt"), FACTS)
    assert first.make(0, 5) != other.make(0, 5)


def test_words_follow_the_servers_count_of_tokens() -> None:
    requests = Requests(BenchConfig(prompt_tokens="100"), FACTS)
    assert len(body(requests)["prompt"].split()) == 50


def test_a_completion_request() -> None:
    extra = '{"top_k": 5, "temperature": 0.5}'
    found = body(Requests(BenchConfig(output_tokens="7", extra=extra), FACTS))
    assert found.pop("prompt")
    assert found == {
        "model": "m",
        "max_tokens": 7,
        "stream": True,
        "temperature": 0.5,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "top_k": 5,
    }


def test_a_chat_request() -> None:
    config = BenchConfig(endpoint="chat", ignore_eos=False)
    found = body(Requests(config, ServerFacts("m", None, 1.0, False)))
    (message,) = found["messages"]
    assert message["role"] == "user"
    assert not {"prompt", "stream_options", "ignore_eos"} & found.keys()


def test_token_ids() -> None:
    config = BenchConfig(prompts="token-ids", prompt_tokens="50", max_token_id=110)
    prompt = body(Requests(config, FACTS))["prompt"]
    assert len(prompt) == 50
    assert {100, 109} <= set(prompt) <= set(range(100, 110))


@pytest.mark.parametrize("prompts", ["text", "token-ids"])
def test_a_shared_prefix_is_shared_by_all(prompts: Any) -> None:
    config = BenchConfig(prompts=prompts, prompt_tokens="40", shared_prefix_tokens=60)
    requests = Requests(config, FACTS)
    first, second = (body(requests, index)["prompt"] for index in range(2))
    if prompts == "text":
        first, second = first.split(" "), second.split(" ")
    num_prefix = len(first) * 60 // 100
    assert first[:num_prefix] == second[:num_prefix]
    assert first[num_prefix:] != second[num_prefix:]
    assert body(requests, load=1)["prompt"][:20] == body(requests)["prompt"][:20]


@pytest.mark.parametrize(("prompt", "output"), [("1000", "50"), ("50", "1000"), ("900", "900")])
def test_what_is_too_long_is_cut_and_counted(prompt: str, output: str) -> None:
    config = BenchConfig(prompts="token-ids", prompt_tokens=prompt, output_tokens=output)
    request = Requests(config, ServerFacts("m", 512, 1.0, True)).make(0, 0)
    assert request.is_cut
    sent = json.loads(request.body)
    assert len(sent["prompt"]) == request.prompt_tokens
    assert request.prompt_tokens + request.max_tokens == 512
    assert sent["max_tokens"] == request.max_tokens


def test_what_fits_is_not_cut() -> None:
    facts = ServerFacts("m", 512, 1.0, True)
    request = Requests(BenchConfig(prompt_tokens="200", output_tokens="200"), facts).make(0, 0)
    assert not request.is_cut


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_sharegpt_files(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Who is it?"}, {"from": "gpt", "value": "It is I."}]
    entries = [
        {"id": 1, "conversations": turns},
        {"conversations": [{"from": "gpt", "value": "begins with an answer"}]},
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hi"},
            ]
        },
        {"prompt": "Go on", "completion": "and on and on"},
        {"conversations": []},
        "nothing",
    ]
    as_list = load_dataset(write(tmp_path / "a.json", json.dumps(entries)))
    as_lines = load_dataset(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, entries))))
    assert as_list == as_lines
    assert [(each.prompt, each.reply_words) for each in as_list] == [
        ("Who is it?", 3),
        ("Hi", 0),
        ("Go on", 4),
    ]


def test_a_line_of_json_ends_only_at_a_newline(tmp_path: Path) -> None:
    """Unicode's line ends may stand in a JSON string as they are; some editors begin a file with a mark."""
    text = "\ufeff" + json.dumps({"prompt": "a\u2028b\x85c"}, ensure_ascii=False) + "\r\n"
    (found,) = load_dataset(write(tmp_path / "a.jsonl", text))
    assert found.prompt == "a\u2028b\x85c"


def test_prompts_of_a_dataset(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"prompt {i}", "output": "word " * (i + 1)}) for i in range(5)]
    path = write(tmp_path / "data.jsonl", "\n".join(lines))
    requests = Requests(BenchConfig(dataset=str(path)), FACTS)
    made = [body(requests, index) for index in range(10)]
    lengths = {each["prompt"]: each["max_tokens"] for each in made}
    assert lengths == {f"prompt {i}": 2 * (i + 1) for i in range(5)}
    assert made[:5] == made[5:]  # it begins again
    fixed = Requests(BenchConfig(dataset=str(path), output_tokens="9"), FACTS)
    assert body(fixed)["max_tokens"] == 9


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '{"a": 1}', "[]"])
def test_a_file_without_conversations_is_a_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="--dataset"):
        load_dataset(write(tmp_path / "x.json", text))


def test_no_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--dataset"):
        load_dataset(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", "0"),
        ("rate", "1,x"),
        ("concurrency", "1.5"),
        ("concurrency", "100000"),
        ("num_requests", 0),
        ("duration", 0.0),
        ("goodput", "ttft"),
        ("goodput", "speed:5"),
        ("goodput", "ttft:-1"),
        ("extra", "{"),
        ("extra", "[]"),
        ("extra", '{"stream": false}'),
        ("timeout", 0.0),
        ("timeout", float("nan")),
        ("duration", float("nan")),
        ("duration", float("inf")),
        ("temperature", float("nan")),
        ("prompt_tokens", "many"),
    ],
)
def test_a_bad_value_names_its_flag(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}"):
        BenchConfig(**{name: value})


def test_flags_that_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--rate and --concurrency"):
        BenchConfig(rate="1", concurrency="1")
    with pytest.raises(ConfigError, match="token-ids"):
        BenchConfig(endpoint="chat", prompts="token-ids")
    with pytest.raises(ConfigError, match="--dataset"):
        BenchConfig(dataset="x", prompts="token-ids")
