"""What must be true after every step, after every turn of an api, and when all is quiet.

I1-I3, I7, I8   Engine.check_integrity: every block in one state, references are holders, rows, lists
I4, I5          the device's chain of digests with every token; here: what the cache names is computed
I6              an idle engine holds nothing
I9              a calm world comes to its end within a bounded number of steps (World)
I10             SimServer
I11-I13, I16    the clients
I15             queues and rings stay below their limits
I17             what is parked is in no engine, once that has been told
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.api_process import ApiProcess
from tests.simulation.engine_process import EngineProcess

if TYPE_CHECKING:
    from tests.simulation.world import World

_CACHE_EVERY = 16  # steps: it looks at every block
_MAX_PREEMPTIONS = 3  # then it keeps what it has
_SUM_EVERY = 16  # turns of an api: it looks at every stream


def check_step(engine: EngineProcess, num_steps: int) -> None:
    engine.engine.check_integrity()
    _check_parked(engine)
    if num_steps % _CACHE_EVERY == 0:
        _check_cache(engine)
        most = max((s.num_preemptions for s in engine.scheduler.sequences.values()), default=0)
        assert most <= _MAX_PREEMPTIONS, "I9: preempted again and again"


def _check_parked(engine: EngineProcess) -> None:
    """I17: its blocks and its row are others'."""
    if engine.server.events:
        return
    for connection, owner in engine.server.owner_of.items():
        api = engine.apis[owner]
        assert isinstance(api, ApiProcess)
        if api.is_alive and api.connection is connection and api.has_arrived():
            for seq_id, seq in api.book.open.items():
                is_there = (owner, seq_id) in engine.scheduler.sequences
                assert not (seq.is_parked and is_there), "I17: parked, and in the engine"


def _check_cache(engine: EngineProcess) -> None:
    """I4, I5: a block that can be found holds the tokens of its key, in their kinds."""
    size, slots = engine.cache.block_size, engine.device.slots
    for block_id, key in engine.cache._keys.items():
        records = slots[block_id * size : block_id * size + size]
        num_prompt = sum(record is not None and record.is_prompt for record in records)
        ids = [-1 if record is None else record.token_id for record in records]
        assert -1 not in ids, "I4: a block that is not computed can be found"
        assert key.endswith(engine.cache._pack(num_prompt, *ids)), "I5: a block under another's key"


def check_settled(api: ApiProcess) -> None:
    """Between two turns of an api's loop."""
    if api.book._has_deaths:
        blamed = {seq_id for seq_id, seq in api.book.open.items() if seq.num_deaths}
        assert blamed <= api.in_deaths, "a sequence is blamed that was not there"
    kept = api.kept
    api.num_turns += 1
    if api.num_turns % _SUM_EVERY:
        return
    assert kept.num_bytes == sum(entry.num_bytes for entry in kept._entries.values())
    slack = sum(entry.has_reader for entry in kept._entries) * 1_000  # of readers' newest events
    assert kept.num_bytes <= kept.max_bytes + slack, "I15: more is kept than there is room for"


def check_idle(world: World) -> None:
    engine = world.supervisor.engine
    assert engine is not None
    assert engine.blocks.num_used == 0, "I6: a block leaked"
    assert not engine.scheduler.sequences
    assert not engine.device.in_flight, "a result was never asked for"
    assert not engine.grammars.ids, "a grammar was never closed"
    for api in world.apis:
        assert not api.book.open, "a sequence that nobody waits for"
        assert api.book.num_mismatches == 0
        assert api.kept.num_streams == 0, "a stream that nobody can read any more"
        assert api.kept.num_bytes == 0
        assert api.book.unread.num_bytes == 0, "I15: something waits for nobody"
