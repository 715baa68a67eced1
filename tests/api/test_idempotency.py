"""Repeated requests with an Idempotency-Key: one run, one reply, whatever became of the first connection."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.app import Doors
from server.api.kept.idempotency import HEADER, Entry, Idempotency, idempotency_value
from server.api_keys import KeyFile
from server.errors import EngineGoneError, RequestError
from tests.api.conftest import EOS, wait_until
from tests.api.fake_engine import FakeEngine
from tests.api.serving_app import error_of, served_app

BODY = {"prompt": "Hi", "max_tokens": 5}
STREAMED = {**BODY, "stream": True}
names = (f"name-{i}" for i in range(1_000_000))


@pytest.fixture
def name() -> str:
    """The app is shared by the session's tests."""
    return next(names)


def post(client: httpx.Client, name: str, body: Any = BODY, **headers: str) -> httpx.Response:
    headers |= {HEADER: name, "Content-Type": "application/json"}
    return client.post("/v1/completions", content=json.dumps(body), headers=headers)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def connect(base_url: str, name: str, body: Any) -> socket.socket:
    """A client that will hang up."""
    url, data = httpx.URL(base_url), json.dumps(body).encode()
    assert url.port is not None
    sock = socket.create_connection((url.host, url.port), timeout=10)
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"{HEADER}: {name}\r\nContent-Length: "
    sock.sendall(f"{head}{len(data)}\r\n\r\n".encode() + data)
    return sock


def at_once(
    pool: ThreadPoolExecutor, client: httpx.Client, name: str, body: Any, num: int = 3
) -> list[Future[httpx.Response]]:
    return [pool.submit(post, client, name, body) for _ in range(num)]


class TestHeader:
    @pytest.mark.parametrize(
        ("value", "meant"),
        [
            ("a", "a"),
            ("8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
            ('"8e03978e"', "8e03978e"),
            ('"a \\"b\\" \\\\"', 'a "b" \\'),
            (' a"b ', 'a"b'),
            ("x" * 255, "x" * 255),
            ('"' + "x" * 255 + '"', "x" * 255),
        ],
    )
    def test_bare_and_quoted_values_mean_the_same(self, value: str, meant: str) -> None:
        assert idempotency_value([value]) == meant

    @pytest.mark.parametrize(
        "value",
        ["", " ", '""', '"', '"a', '"a"b', '"a\\b"', '"a";p=1', "é", "a\tb", "a\x7f", "x" * 256],
    )
    def test_anything_else_is_refused(self, value: str) -> None:
        with pytest.raises(RequestError) as caught:
            idempotency_value([value])
        assert (caught.value.status, caught.value.param) == (400, HEADER)

    def test_it_must_be_one(self) -> None:
        assert idempotency_value([]) is None
        with pytest.raises(RequestError):
            idempotency_value(["a", "a"])

    @given(st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=300))
    def test_what_is_taken_is_short_and_printable(self, value: str) -> None:
        try:
            meant = idempotency_value([value])
        except RequestError:
            return
        assert meant is not None and 1 <= len(meant) <= 255 and meant.isascii()
        assert meant.isprintable()


class TestRegistry:
    """Without a server."""

    def in_loop(self, test: Callable[[Idempotency], Awaitable[None]]) -> None:
        async def run() -> None:
            await asyncio.wait_for(test(Idempotency()), 10)

        asyncio.run(run())

    def test_a_repeat_waits_for_the_first_ones_start(self) -> None:
        async def test(registry: Idempotency) -> None:
            entry, is_first = registry.claim("ann", "a", b"1")
            again, is_first_again = registry.claim("ann", "a", b"1")
            assert (is_first, is_first_again, again) == (True, False, entry)
            waiting = [asyncio.create_task(again.wait()) for _ in range(2)]
            await asyncio.sleep(0)
            waiting[0].cancel()  # its client has left
            await asyncio.sleep(0)
            kept: Any = object()
            entry.start(kept)
            assert await waiting[1] is kept
            assert await entry.wait() is kept

        self.in_loop(test)

    def test_another_body_is_refused_until_the_entry_is_forgotten(self) -> None:
        async def test(registry: Idempotency) -> None:
            entry, _ = registry.claim("ann", "a", b"1")
            with pytest.raises(RequestError) as caught:
                registry.claim("ann", "a", b"2")
            assert (caught.value.status, caught.value.code) == (409, "idempotency_key_reused")
            assert registry.claim("bob", "a", b"2")[1]
            assert registry.claim("ann", "b", b"2")[1]
            entry.forget()
            later, is_first = registry.claim("ann", "a", b"2")
            assert is_first
            entry.forget()  # a second time; the later one stays
            assert registry.claim("ann", "a", b"2") == (later, False)

        self.in_loop(test)

    @pytest.mark.parametrize("error", [RequestError("No."), ValueError("ours")])
    def test_what_fails_before_the_start_fails_for_all_and_is_forgotten(
        self, error: Exception
    ) -> None:
        async def test(registry: Idempotency) -> None:
            entry, _ = registry.claim("", "a", b"1")
            waiting = asyncio.create_task(entry.wait())
            await asyncio.sleep(0)
            with pytest.raises(type(error)), entry.failing():
                raise error
            with pytest.raises(type(error)):
                await waiting
            assert len(registry) == 0

        self.in_loop(test)

    def test_who_is_cancelled_leaves_nobody_waiting(self) -> None:
        async def test(registry: Idempotency) -> None:
            async def first(entry: Entry) -> None:
                with entry.failing():
                    await asyncio.Event().wait()

            entry, _ = registry.claim("", "a", b"1")
            task = asyncio.create_task(first(entry))
            waiting = asyncio.create_task(entry.wait())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(EngineGoneError):
                await waiting

        self.in_loop(test)

    def test_it_is_known_for_as_long_as_it_is_kept_however_many_there_are(self) -> None:
        async def test(registry: Idempotency) -> None:
            kept: Any = object()
            for i in range(10_001):
                registry.claim("ann", str(i), b"")[0].start(kept)
            assert registry.claim("ann", "0", b"")[1] is False

        self.in_loop(test)


class TestPlain:
    def test_a_repeat_gets_the_same_reply(
        self, client: httpx.Client, engine: FakeEngine, name: str
    ) -> None:
        first, second = post(client, name), post(client, f'"{name}"')
        assert first.status_code == second.status_code == 200, first.text
        assert first.content == second.content  # its id, time and seed, too
        assert first.json()["choices"][0]["text"] == "abcde"
        assert "idempotent-replayed" not in first.headers
        assert second.headers["idempotent-replayed"] == "true"
        assert len(engine.submitted) == 1

    def test_at_once_they_run_once(
        self, client: httpx.Client, engine: FakeEngine, pool: ThreadPoolExecutor, name: str
    ) -> None:
        engine.is_paused = True
        waiting = at_once(pool, client, name, {**BODY, "n": 2})
        wait_until(lambda: engine.num_running == 2)
        engine.is_paused = False
        replies = [future.result() for future in waiting]
        assert {reply.content for reply in replies} == {replies[0].content}
        assert [reply.status_code for reply in replies] == [200, 200, 200]
        assert sum("idempotent-replayed" in reply.headers for reply in replies) == 2
        assert len(engine.submitted) == 2

    def test_it_goes_on_when_the_client_leaves(
        self, base_url: str, client: httpx.Client, engine: FakeEngine, name: str
    ) -> None:
        engine.is_paused = True
        sock = connect(base_url, name, BODY)
        wait_until(lambda: engine.num_running == 1)
        sock.close()
        assert client.get("/version").status_code == 200  # so the server has seen it leave
        engine.is_paused = False
        assert post(client, name).json()["choices"][0]["text"] == "abcde"
        assert engine.aborted == []
        assert len(engine.submitted) == 1

    def test_another_body_is_a_conflict(self, client: httpx.Client, name: str) -> None:
        assert post(client, name).status_code == 200
        response = post(client, name, {**BODY, "max_tokens": 6})
        error = error_of(response, 409)
        assert (error["code"], error["param"]) == ("idempotency_key_reused", HEADER)
        assert response.headers["x-should-retry"] == "false"  # openai-python repeats a 409

    def test_the_header_must_be_valid(
        self, client: httpx.Client, engine: FakeEngine, name: str
    ) -> None:
        assert error_of(post(client, '"a'), 400)["param"] == HEADER
        two = [(HEADER, name), (HEADER, name)]
        error_of(client.post("/v1/completions", json=BODY, headers=two), 400)
        assert engine.submitted == []

    def test_errors_before_the_run_are_not_kept(
        self, client: httpx.Client, engine: FakeEngine, name: str
    ) -> None:
        for _ in range(2):
            error_of(post(client, name, {"prompt": 1}), 400)
        assert post(client, name).status_code == 200  # also with another body: nothing ran

    def test_a_run_that_fails_runs_again(
        self, client: httpx.Client, engine: FakeEngine, name: str
    ) -> None:
        engine.script = lambda _: [97]
        engine.failures = {0: "internal"}
        error_of(post(client, name), 500)
        engine.failures = {}
        engine.script = lambda _: [97, EOS]
        response = post(client, name)
        assert response.json()["choices"][0]["text"] == "a"
        assert "idempotent-replayed" not in response.headers

    def test_the_engine_may_die_in_between(
        self, client: httpx.Client, engine: FakeEngine, pool: ThreadPoolExecutor, name: str
    ) -> None:
        token_ids = [97, 98]
        engine.script = lambda _: token_ids
        waiting = at_once(pool, client, name, BODY, num=2)
        wait_until(lambda: engine.num_running == 1)
        engine.kill()
        token_ids += [99, 100, 101]
        engine.start()
        replies = [future.result() for future in waiting]
        assert replies[0].json()["choices"][0]["text"] == "abcde"
        assert replies[0].content == replies[1].content == post(client, name).content
        assert {request.seq_id for request in engine.submitted} == {engine.submitted[0].seq_id}

    def test_a_large_reply_is_sent_whole_to_all_who_wait(
        self, client: httpx.Client, engine: FakeEngine, pool: ThreadPoolExecutor, name: str
    ) -> None:
        engine.script = lambda _: [97] * 200
        engine.is_paused = True
        body = {"prompt": "a", "max_tokens": 200, "n": 8, "logprobs": 20}
        waiting = at_once(pool, client, name, body, num=2)
        wait_until(lambda: engine.num_running == 8)
        engine.is_paused = False
        first, second = (future.result() for future in waiting)
        assert len(first.content) > 1 << 18
        assert first.content == second.content
        assert len(json.loads(first.content)["choices"]) == 8


class TestStream:
    def test_a_repeat_reads_from_the_first_event(
        self, client: httpx.Client, engine: FakeEngine, name: str
    ) -> None:
        first, second = post(client, name, STREAMED), post(client, name, STREAMED)
        assert first.text.startswith("data: {") and first.text.endswith("data: [DONE]\n\n")
        assert first.content == second.content
        assert second.headers["idempotent-replayed"] == "true"
        assert len(engine.submitted) == 1

    def test_a_repeat_may_ask_for_ids(
        self, client: httpx.Client, engine: FakeEngine, name: str
    ) -> None:
        plain = post(client, name, STREAMED)
        with_ids = post(client, name, STREAMED, **{"X-Stream-Resumable": "1"})
        lines = with_ids.text.splitlines(keepends=True)
        assert "".join(line for line in lines if not line.startswith("id: ")) == plain.text
        ids = [line.strip() for line in lines if line.startswith("id: ")]
        stream = ids[0].removeprefix("id: ").partition(":")[0]
        assert ids == [f"id: {stream}:{n}" for n in range(plain.text.count("data: "))]
        assert client.get(f"/v1/completions/{stream}/stream").text == with_ids.text
        assert len(engine.submitted) == 1

    def test_it_goes_on_when_the_client_leaves(
        self, base_url: str, client: httpx.Client, engine: FakeEngine, name: str
    ) -> None:
        token_ids = [97, 98]
        engine.script = lambda _: token_ids
        sock = connect(base_url, name, STREAMED)
        assert b"data: " in sock.recv(1 << 16)
        sock.close()
        token_ids += [99, 100, 101]
        text = post(client, name, STREAMED).text
        assert [json.loads(line[6:])["choices"][0]["text"] for line in text.split("\n\n")[:5]] == [
            *"abcde"
        ]
        assert engine.aborted == []
        assert len(engine.submitted) == 1

    def test_one_that_breaks_runs_again(
        self, client: httpx.Client, engine: FakeEngine, name: str
    ) -> None:
        engine.script = lambda _: [97]
        engine.failures = {0: "internal"}
        assert '"error"' in post(client, name, STREAMED).text
        engine.failures = {}
        engine.script = lambda _: [97, EOS]
        assert post(client, name, STREAMED).text.endswith("data: [DONE]\n\n")
        assert len(engine.submitted) == 2

    def test_ids_need_a_stream(self, client: httpx.Client, name: str) -> None:
        assert post(client, name).status_code == 200
        error_of(post(client, name, **{"X-Stream-Resumable": "1"}), 400)


def test_names_of_other_keys_are_other_names(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.touch(0o600)
    lines = [f"{who} {hashlib.sha256(who.encode()).hexdigest()}\n" for who in ("ann", "bob")]
    keys.write_text("".join(lines))
    with (
        served_app(Doors(keys=KeyFile(str(keys)))) as app,
        httpx.Client(base_url=app.url, timeout=20) as client,
    ):
        ann, ann_again, bob = (
            post(client, "a", Authorization=f"Bearer {who}") for who in ("ann", "ann", "bob")
        )
        assert ann.content == ann_again.content
        assert bob.json()["id"] != ann.json()["id"]
        assert "idempotent-replayed" not in bob.headers
        assert len(app.engine.submitted) == 2
