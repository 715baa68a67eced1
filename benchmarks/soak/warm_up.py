"""Fills beforehand what would else fill slowly, and look like a leak: pools of threads, and the caches of
grammars."""

from __future__ import annotations

import asyncio
import random

from benchmarks.soak import bodies
from benchmarks.soak.wire import ask, request
from benchmarks.soak.world import World, key

_AT_ONCE = 16
_NUM_GRAMMARS = 1_100  # a masker keeps 1,024


async def fill_pools(world: World) -> None:
    """Long prompts are tokenized in threads, which come when they are needed, and stay."""
    long = {"prompt": "a" * 100_000, "truncate_prompt_tokens": 4, "max_tokens": 1}
    await _ask_each(world, [long] * (2 * _AT_ONCE))


async def fill_grammars(world: World) -> None:
    rng = random.Random("grammars")
    await _ask_each(world, [bodies.new_grammar(rng) for _ in range(_NUM_GRAMMARS)])


async def _ask_each(world: World, wanted: list[bodies.Body]) -> None:
    left = list(wanted)

    async def ask_on() -> None:
        while left:
            reply = await ask(world.port, request(key("infer"), body=left.pop()))
            world.note(reply.status, reply.body)

    await asyncio.gather(*(ask_on() for _ in range(_AT_ONCE)))
