"""Whatever becomes of the engine or of the connection to it, an accepted request ends with the bytes that
it would have had."""

from __future__ import annotations

import re
import threading
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.api.engine_client import EngineClient
from server.sequence import SequenceRequest
from tests.api.conftest import EOS, wait_until, word
from tests.api.fake_engine import INFO, FakeEngine, Fault
from tests.api.prometheus_page import Family, read_page

ALPHABET = [ord(c) for c in "abcdefghijklmnopqrstuvwxyz"]
BODIES: dict[str, dict[str, Any]] = {
    "plain": {"prompt": "Hi", "max_tokens": 4},
    "choices": {"prompt": ["Hi", "abc"], "n": 2, "max_tokens": 4, "logprobs": 2},
    "prompt logprobs": {
        "prompt": "abcdefgh",
        "n": 2,
        "max_tokens": 3,
        "logprobs": 2,
        "prompt_logprobs": 1,
        "echo": True,
    },
    "stop string": {"prompt": "Hi", "stop": ["d"], "max_tokens": 9},
    "usage": {"prompt": "Hi", "max_tokens": 3, "return_token_ids": True},
    "echo alone": {"prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 0},
    "multi-byte": {"prompt": "Hi", "max_tokens": 4, "ignore_eos": True},
}
STREAMED = {
    name: {**body, "stream": True, "stream_options": {"include_usage": True}}
    for name, body in BODIES.items()
    if name != "prompt logprobs"
}


def counters(client: httpx.Client) -> dict[str, Family]:
    return read_page(client.get("/metrics").text)


def moved(before: dict[str, Family], after: dict[str, Family], name: str, **labels: str) -> float:
    return after[name].total("", **labels) - before[name].total("", **labels)


def bytes_of(client: httpx.Client, body: dict[str, Any]) -> str:
    """But for what is another in every reply, and the order in which choices take turns."""
    reply = client.post("/v1/completions", json={"seed": 1, **body})
    assert reply.status_code == 200, reply.text
    text = re.sub(r'"(id|created)":("[^"]*"|\d+)', "", reply.text)
    return "\n".join(sorted(text.splitlines(), key=_index))


def _index(event: str) -> str:
    """Of a stream's event: sorting is stable."""
    found = re.search(r'"choices":\[\{"index":\d+', event)
    return found[0] if found and event.startswith("data:") else "~"


def script(body: dict[str, Any]) -> list[int]:
    return [0xE6, 0x97, 0xA5, word("é日")] if body is BODIES["multi-byte"] else [*ALPHABET, EOS]


@pytest.mark.parametrize("body", [*BODIES.values(), *STREAMED.values()])
def test_killed_before_any_frame_the_bytes_are_the_same(
    client: httpx.Client, engine: FakeEngine, body: dict[str, Any]
) -> None:
    engine.script = lambda _: script(body)
    undisturbed = bytes_of(client, body)
    num_frames = engine.num_frames
    assert num_frames
    for position in range(num_frames):
        engine.num_frames = 0
        engine.faults = {position: "killed"}
        assert bytes_of(client, body) == undisturbed, position
        # Behind a stop string an abort is on its way: how many frames come before it may differ.
        assert engine.num_frames > position or "stop" in body
        wait_until(lambda: engine.num_running == 0)


@pytest.mark.parametrize("fault", ["half sent", "cut", "twice"])
def test_whatever_happens_to_a_frame_the_bytes_are_the_same(
    client: httpx.Client, engine: FakeEngine, fault: Fault
) -> None:
    body = STREAMED["choices"]
    undisturbed, before = bytes_of(client, body), counters(client)
    for position in range(engine.num_frames):
        engine.num_frames = 0
        engine.faults = {position: fault}
        assert bytes_of(client, body) == undisturbed, position
    assert moved(before, counters(client), "continuo:replay_mismatches_total") == 0


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    faults=st.dictionaries(
        st.integers(0, 12), st.sampled_from(["killed", "half sent", "cut", "twice"]), max_size=4
    ),
    tokens_per_step=st.integers(1, 3),
)
def test_several_in_a_row_change_nothing(
    client: httpx.Client, engine: FakeEngine, faults: dict[int, Fault], tokens_per_step: int
) -> None:
    engine.tokens_per_step = tokens_per_step
    for body in (BODIES["prompt logprobs"], STREAMED["stop string"]):
        engine.faults = {}
        undisturbed = bytes_of(client, body)
        engine.num_frames, engine.faults = 0, faults
        assert bytes_of(client, body) == undisturbed


def test_what_has_been_sent_is_not_drawn_again_but_for_the_last_token(
    client: httpx.Client, engine: FakeEngine
) -> None:
    before = counters(client)
    engine.faults = {3: "killed"}
    assert '"text":"abcdef"' in bytes_of(client, {"prompt": "Hi", "max_tokens": 6})
    first, again = engine.submitted
    assert first.emitted_ids == []
    assert again.emitted_ids == ALPHABET[:2]  # of three
    assert (again.seq_id, again.params, again.choice) == (first.seq_id, first.params, first.choice)
    after = counters(client)
    assert moved(before, after, "continuo:replayed_tokens_total") == 4
    assert moved(before, after, "continuo:engine_restarts_total") == 1
    assert moved(before, after, "continuo:engine_deaths_total", cause="SIGKILL") == 1
    assert moved(before, after, "continuo:replay_mismatches_total") == 0


def test_a_token_drawn_otherwise_is_counted_and_what_was_sent_stays(
    client: httpx.Client, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    before = counters(client)
    engine.faults = {3: "killed"}
    engine.script = lambda request: [*b"abXdef"] if len(engine.submitted) == 3 else [*b"abcdef"]
    body = {"prompt": ["Hi", "Hi"], "max_tokens": 6}
    texts = re.findall(r'"text":"(\w+)"', bytes_of(client, body))
    assert texts == ["abcdef", "abcdef"]
    assert moved(before, counters(client), "continuo:replay_mismatches_total") == 1
    assert "computed a token differently" in caplog.text
    last = engine.submitted[-2:]
    assert [request.emitted_ids for request in last] == [ALPHABET[:3], ALPHABET[:2]]


def post_in_thread(
    client: httpx.Client, body: dict[str, Any], replies: list[httpx.Response]
) -> threading.Thread:
    thread = threading.Thread(
        target=lambda: replies.append(client.post("/v1/completions", json=body))
    )
    thread.start()
    return thread


def test_while_the_engine_is_away_open_requests_and_new_ones_wait(
    client: httpx.Client, engine: FakeEngine, engine_client: EngineClient
) -> None:
    engine.script = lambda _: [97]  # then it hangs
    replies: list[httpx.Response] = []
    old = post_in_thread(client, {"prompt": "a", "max_tokens": 2}, replies)
    wait_until(lambda: engine.num_frames == 1)
    engine.kill()
    wait_until(lambda: not engine_client.is_connected)
    page = counters(client)
    assert page["vllm:num_requests_running"].total() == 0
    assert page["continuo:open_sequences"].total() == 1
    new = post_in_thread(client, {"prompt": "b", "max_tokens": 2}, replies)
    wait_until(lambda: len(engine_client._waiting) == 1)
    assert not replies
    engine.script = lambda _: [97, 98]
    engine.start()
    old.join(20)
    new.join(20)
    assert [reply.json()["choices"][0]["text"] for reply in replies] == ["ab", "ab"]


@pytest.mark.parametrize("limit", ["ENGINE_WAIT_S", "MAX_WAITING"])
def test_new_requests_wait_neither_long_nor_in_any_number(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    engine.kill()
    monkeypatch.setattr(f"server.api.engine_client.{limit}", 0)
    wait_until(lambda: client.get("/ready").status_code == 503)
    reply = client.post("/v1/completions", json={"prompt": "a"})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert client.get("/health").status_code == 200  # an engine is on its way
    monkeypatch.undo()
    engine.start()
    assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def test_an_engine_with_other_numerics_ends_what_is_open(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.script = lambda request: [97] if request.params.max_tokens == 2 else []  # then it hangs
    replies: list[httpx.Response] = []
    plain = post_in_thread(client, {"prompt": "a", "max_tokens": 1}, replies)
    body = {"prompt": "a", "max_tokens": 2, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as stream:
        lines = (line for line in stream.iter_lines() if line)
        assert '"text":"a"' in next(lines)
        wait_until(lambda: engine.num_running == 2)
        engine.kill()
        engine.info = msgspec.structs.replace(INFO, system_fingerprint="fp_other")
        engine.start()
        rest = list(lines)
    plain.join(20)
    assert len(rest) == 1
    assert rest[0].startswith('data: {"error":{"message":"The engine is not available')
    assert (replies[0].status_code, replies[0].headers["retry-after"]) == (503, "1")
    engine.script = lambda _: [97]
    reply = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).json()
    assert reply["system_fingerprint"] == "fp_other"
    engine.faults = {engine.num_frames: "killed"}
    engine.info = INFO
    client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})


def is_poison(request: SequenceRequest) -> bool:
    return request.prompt_ids[0] == ord("!")


def test_a_request_that_kills_the_engine_fails_alone_and_its_like_is_refused(
    client: httpx.Client, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    before, life = counters(client), engine.life
    engine.script = lambda _: [*ALPHABET * 8, EOS]
    engine.is_deadly = is_poison
    replies: list[httpx.Response] = []
    body = {"prompt": "Hi", "max_tokens": 208}
    others = [post_in_thread(client, {**body, "seed": seed}, replies) for seed in range(3)]
    wait_until(lambda: engine.num_running == 3)
    poison = {"prompt": f"!{life}", "n": 4}
    reply = client.post("/v1/completions", json=poison)
    assert reply.status_code == 500
    assert reply.headers["x-should-retry"] == "false"
    assert reply.json()["error"]["code"] == "engine_crash"
    assert engine.life - life == 3  # with the others; with the others again; alone
    for other in others:
        other.join(20)
    assert [each.json()["choices"][0]["text"] for each in replies] == [
        "".join(map(chr, ALPHABET)) * 8
    ] * 3

    num_submitted = len(engine.submitted)
    again = client.post("/v1/completions", json={**poison, "seed": 5, "n": 1})
    assert (again.status_code, again.json()["error"]["code"]) == (500, "engine_crash")
    assert (len(engine.submitted), engine.life - life) == (num_submitted, 3)
    after = counters(client)
    for name, labels, value in (
        ("continuo:quarantined_requests_total", {}, 1),
        ("vllm:admission_rejections_total", {"reason": "quarantined"}, 1),
        ("continuo:engine_deaths_total", {"cause": "SIGSEGV"}, 3),
        ("continuo:sequence_failures_total", {"kind": "engine_crash"}, 1),
    ):
        assert moved(before, after, name, **labels) == value, name
