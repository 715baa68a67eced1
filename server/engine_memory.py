"""What an engine process may hold beside its model, and what it holds at the moment. Knows the ends of its
sockets; changes nothing.
"""

from __future__ import annotations

from server.budget import MAX_OPEN_BYTES, Part
from server.engine.engine import Engine
from server.engine.prompt_lookup import BYTES_PER_ID
from server.grammar import child, client, verdicts
from server.grammar.client import GrammarClient
from server.ipc.frames import EngineInfo
from server.ipc.server import MAX_BUFFERED_BYTES, EngineServer
from server.ipc.wire import FrameReader


def queue_parts(
    *, has_grammars: bool, num_apis: int = 1, num_lookup_ids: int = 0
) -> tuple[Part, ...]:
    """All that is not there from the start. `num_lookup_ids`: the ids of all that run, where drafts are made
    from them."""
    parts: tuple[Part, ...] = (
        Part("sequences", MAX_OPEN_BYTES, "their ids and parameters: no more than the api lets in"),
        Part("frames_to_api", MAX_BUFFERED_BYTES, "above it the api is cut off"),
        Part(
            "frame_from_api",
            num_apis * FrameReader.max_bytes,
            "the one that has not come whole",
        ),
    )
    if num_lookup_ids:
        note = "where each few ids of what runs stood last"
        parts = (*parts, Part("prompt_lookups", BYTES_PER_ID * num_lookup_ids, note))
    if not has_grammars:
        return parts
    return (
        *parts,
        Part("open_grammars", client.MAX_OPEN_BYTES, "above it a structured request is refused"),
        Part("known_grammars", verdicts.MAX_BYTES, "the least recently used goes first"),
        Part(
            "grammar_processes", 2 * child.MAX_MEMORY_BYTES, "two: the kernel ends what takes more"
        ),
    )


class EngineMemory:
    def __init__(
        self,
        info: EngineInfo,
        engine: Engine,
        server: EngineServer,
        grammars: GrammarClient | None,
    ) -> None:
        """`info.memory_limits`: all parts."""
        self._info = info
        self._engine = engine
        self._server = server
        self._grammars = grammars

    def held(self) -> dict[str, int]:
        """Bytes, of every part. What is allocated at the start is held to its limit, but for KV blocks, of
        which those count that sequences use."""
        limits, server = self._info.memory_limits, self._server
        used = self._engine.num_used_blocks / self._info.num_blocks
        held = {
            **limits,
            "kv_cache": int(limits["kv_cache"] * used),
            "sequences": self._engine.open_bytes(),
            "frames_to_api": server.num_unsent_bytes,
            "frame_from_api": server.num_received_bytes,
        }
        if "prompt_lookups" in limits:
            held["prompt_lookups"] = self._engine.lookup_bytes()
        if self._grammars is not None:
            held |= {
                "open_grammars": self._grammars.num_open_bytes,
                "known_grammars": self._grammars.verdicts.num_bytes,
                "grammar_processes": self._grammars.num_process_bytes,
            }
        return held
