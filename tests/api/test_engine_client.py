"""What the api keeps of each open sequence, and when it lets go of it."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from server.api.engine_client import EngineClient
from server.sequence import SamplingParams
from tests.api.fake_engine import FakeEngine

PARAMS = SamplingParams(max_tokens=3, seed=9)


def test_open_sequences_hold_all_that_a_replay_needs() -> None:
    async def main(engine: FakeEngine) -> None:
        client = EngineClient(engine.path)
        connection = asyncio.create_task(client.run())
        await client.wait_connected()
        generation = await client.submit([[1, 2], [3]], 2, PARAMS)
        received: list[tuple[int, int]] = []
        while len(received) < 8:
            outputs = await generation.next()
            received += [(index, token_id) for index, out in outputs for token_id in out.token_ids]
        assert sorted(received) == [(index, token) for index in range(4) for token in (97, 98)]
        assert [
            (seq.request.prompt_ids, seq.request.choice, seq.request.params, seq.emitted_ids)
            for seq in client._open.values()
        ] == [
            ([1, 2], 0, PARAMS, [97, 98]),
            ([1, 2], 1, PARAMS, [97, 98]),
            ([3], 0, PARAMS, [97, 98]),
            ([3], 1, PARAMS, [97, 98]),
        ]
        generation.end(2)
        assert client.num_open == 3
        generation.close()
        generation.close()
        assert client.num_open == 0
        assert generation.is_done
        connection.cancel()
        await asyncio.gather(connection, return_exceptions=True)

    with tempfile.TemporaryDirectory() as directory:
        engine = FakeEngine(str(Path(directory) / "engine.sock"), lambda _: [97, 98])
        try:
            asyncio.run(asyncio.wait_for(main(engine), 20))
        finally:
            engine.kill()
