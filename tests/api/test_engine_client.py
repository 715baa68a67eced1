"""What the api keeps of each open sequence, when it lets go of it, and when it calls who reads."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from server.api.engine_client import EngineClient
from server.api.generation import Generation
from server.errors import RequestError
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
            asyncio.run(asyncio.wait_for(connected(engine), 20))
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
            for seq in list(client._open.values())[1:]
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
