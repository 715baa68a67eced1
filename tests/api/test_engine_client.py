"""What the api keeps of each open sequence, when it lets go of it, and when it calls who reads."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import uvloop

from server.api.engine_client import EngineClient
from server.api.generation import Generation
from server.errors import ContinuoError, EngineGoneError, RequestError
from server.sequence import SamplingParams, SequenceOutput, SequenceRequest
from tests.api.fake_engine import FakeEngine, Script, packed_logprobs

PARAMS = SamplingParams(max_tokens=3, seed=9)


def request(index: int, prompt_ids: list[int], choice: int) -> SequenceRequest:
    return SequenceRequest(index, prompt_ids, choice, PARAMS)


def with_client(
    script: Script, main: Callable[[FakeEngine, EngineClient], Awaitable[None]]
) -> None:
    """Runs `main` with a client that is connected to an engine of its own."""

    async def connected(engine: FakeEngine) -> None:
        client = EngineClient(engine.path)
        connection = asyncio.create_task(client.run())
        await client.wait_connected()
        await main(engine, client)
        connection.cancel()
        await asyncio.gather(connection, return_exceptions=True)

    with tempfile.TemporaryDirectory() as directory:
        engine = FakeEngine(str(Path(directory) / "engine.sock"), script)
        try:
            uvloop.run(asyncio.wait_for(connected(engine), 20))  # as it is served
        finally:
            engine.kill()


async def read(generation: Generation, is_enough: Callable[[list[SequenceOutput]], bool]) -> None:
    """Takes what comes until there is enough."""
    received: list[SequenceOutput] = []
    enough = asyncio.Event()

    def reader() -> None:
        received.extend(generation.take())
        if is_enough(received):
            enough.set()

    generation.read_by(reader)
    await enough.wait()


def test_open_sequences_hold_all_that_a_replay_needs() -> None:
    async def main(_: FakeEngine, client: EngineClient) -> None:
        await client.submit([request(0, [5], 0)])  # so that the next ones do not begin at 0
        generation = await client.submit(
            [request(0, [1, 2], 0), request(1, [1, 2], 1), request(2, [3], 0), request(3, [3], 1)]
        )
        received: list[SequenceOutput] = []
        await read(generation, lambda outputs: received.extend(outputs) or len(outputs) == 8)
        index_and_token = {(o.seq_id - generation.first_seq_id, *o.token_ids) for o in received}
        assert index_and_token == {(index, token) for index in range(4) for token in (97, 98)}
        assert [
            (seq.request.prompt_ids, seq.request.choice, seq.request.params, seq.emitted_ids)
            for seq in list(client._book.open.values())[1:]
        ] == [
            ([1, 2], 0, PARAMS, [97, 98]),
            ([1, 2], 1, PARAMS, [97, 98]),
            ([3], 0, PARAMS, [97, 98]),
            ([3], 1, PARAMS, [97, 98]),
        ]
        generation.end(2)
        assert client.num_open == 4
        generation.close()
        generation.close()
        assert client.num_open == 1
        assert not generation.is_running

    with_client(lambda _: [97, 98], main)


def test_a_reader_is_called_once_for_all_frames_of_a_turn() -> None:
    async def main(_: FakeEngine, client: EngineClient) -> None:
        generation = await client.submit([request(0, [1], 0)])
        calls: list[int] = []
        await asyncio.sleep(0)
        generation.read_by(lambda: calls.append(len(generation.take())))
        await asyncio.sleep(0)
        assert calls == [0]  # at once, for what may have come before it
        for token_id in range(3):
            generation.deliver(SequenceOutput(0, [token_id], None, None, None, None))
        assert calls == [0]
        await asyncio.sleep(0)
        assert calls == [0, 3]
        await asyncio.sleep(0)
        assert calls == [0, 3]
        generation.close()
        generation.deliver(SequenceOutput(0, [4], None, None, None, None))
        await asyncio.sleep(0)
        assert calls == [0, 3]  # nobody reads a closed one

    with_client(lambda _: [], main)


def test_prompt_logprobs_and_failures_reach_their_request_alone() -> None:
    async def main(engine: FakeEngine, client: EngineClient) -> None:
        engine.failures = {1: "grammar_too_slow"}
        engine.prompt_rows_per_step = 2
        params = SamplingParams(max_tokens=3, seed=9, prompt_logprobs=1)
        other = await client.submit([request(0, [1], 0)])
        generation = await client.submit(
            [SequenceRequest(0, [1, 2, 3, 4], 0, params), request(1, [1, 2, 3, 4], 1)]
        )
        chunks: list[object] = []
        generation.read_prompts_by(lambda *chunk: chunks.append(chunk))
        await read(generation, lambda _: not generation.is_running)
        first = generation.first_seq_id
        assert chunks == [
            (0, packed_logprobs(first, [2, 3], 1, 1)),
            (0, packed_logprobs(first, [4], 3, 1)),
        ]
        assert generation.failed == {1: "grammar_too_slow"}
        assert isinstance(generation.error, RequestError)
        assert client.num_open == 2  # the failed one is gone, and its sibling not yet aborted
        generation.close()
        assert client.num_open == 1
        assert other.is_running

    with_client(lambda _: [97, 98] if _.choice == 0 else [], main)


def test_giving_up_ends_what_is_open_and_what_waits_and_what_comes_later() -> None:
    async def main(engine: FakeEngine, client: EngineClient) -> None:
        generation = await client.submit([request(0, [1], 0)])
        ended: list[Exception | None] = []
        generation.read_by(lambda: ended.append(generation.error))
        engine.kill()
        await until(lambda: not client.is_connected)
        waiting = asyncio.gather(*[client.ready_info() for _ in range(3)], return_exceptions=True)
        await until(lambda: len(client._waiting) == 3)
        client.give_up()
        client.give_up()
        errors = [*await waiting, await error_of(client.ready_info())]
        errors.append(await error_of(client.submit([request(0, [1], 0)])))
        assert [type(error) for error in errors] == [EngineGoneError] * 5
        assert (len(ended), type(ended[-1]), client.num_open) == (2, EngineGoneError, 0)
        engine.start()  # it is ended in the fixture

    with_client(lambda _: [], main)


def test_an_engine_that_does_not_read_makes_requests_wait_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main(engine: FakeEngine, client: EngineClient) -> None:
        engine.is_deaf = True
        while not client._link.is_full:
            await client.submit([request(0, [2**31] * 100_000, 0)])
        num_open = client.num_open
        waiting = asyncio.create_task(client.submit([request(0, [1], 0)]))
        await until(lambda: len(client._waiting) == 1)
        monkeypatch.setattr("server.api.engine_client.ENGINE_WAIT_S", 0.02)
        assert isinstance(await error_of(client.submit([request(0, [1], 0)])), EngineGoneError)
        assert client.num_open == num_open
        engine.is_deaf = False
        await waiting
        await until(lambda: engine.num_running == num_open + 1)

    with_client(lambda _: [], main)


def test_what_is_submitted_or_aborted_while_the_connection_is_being_lost_is_not_lost() -> None:
    async def main(engine: FakeEngine, client: EngineClient) -> None:
        first = await client.submit([request(0, [1], 0)])
        protocol = client._link._protocol
        assert protocol is not None and protocol.transport is not None
        protocol.transport.abort()
        await asyncio.sleep(0)  # now it is closed
        second = await client.submit([request(0, [2], 0)])
        assert client.is_connected, "nobody has been told yet"
        assert client.num_unsent_bytes == 0
        first.close()
        await read(second, lambda _: not second.is_running)
        assert client.num_open == engine.num_running == 0

    with_client(lambda request: [97, 98, 99] if request.prompt_ids == [2] else [], main)


def test_what_was_planned_for_another_engine_is_not_submitted() -> None:
    async def main(_: FakeEngine, client: EngineClient) -> None:
        info = await client.ready_info()
        await client.submit([request(0, [1], 0)], info)
        for change in ({"system_fingerprint": "fp_other"}, {"max_model_len": 9}):
            other = msgspec.structs.replace(info, **change)
            error = await error_of(client.submit([request(0, [1], 0)], other))
            assert isinstance(error, EngineGoneError)
        assert client.num_open == 1

    with_client(lambda _: [], main)


def test_what_killed_engines_is_refused_whichever_of_its_choices_did() -> None:
    async def main(_: FakeEngine, client: EngineClient) -> None:
        first = replace(request(0, [1], 0), params=replace(PARAMS, prompt_logprobs=1))
        second, other = request(1, [1], 1), request(0, [2], 0)
        client._quarantine.add(second, client.heard_at)
        error = await error_of(client.submit([first, second]))
        assert isinstance(error, RequestError)
        assert (error.status, error.code) == (500, "engine_crash")
        await client.submit([other])
        assert client.num_open == client.num_refused == 1

    with_client(lambda _: [], main)


async def error_of(call: Awaitable[object]) -> Exception | None:
    try:
        await call
    except ContinuoError as error:
        return error
    return None


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)
