"""The mixed load: so many clients at once, each what chance says, until it is paused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from benchmarks.soak import bad_clients as bad
from benchmarks.soak import good_clients as good
from benchmarks.soak.world import World

Act = Callable[[World, random.Random], Awaitable[None]]

WIDTH = 14  # clients at once; a burst is one
_LAST_S = 2.0  # behind the pause
_ACTS: dict[Act, int] = {  # how often, of all
    good.whole: 30,
    good.one_after_the_other: 6,
    good.resumed: 12,
    good.repeated: 8,
    good.left: 16,
    good.never_reads: 3,
    good.burst: 1,
    good.new_grammars: 3,
    good.looks: 5,
    bad.sends_garbage: 6,
    bad.mutates: 6,
    bad.sends_nonsense: 8,
    bad.sends_too_much: 3,
    bad.asks_elsewhere: 5,
    bad.sends_slowly: 4,
    bad.pipelines: 2,
}


class Load:
    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._rngs = [random.Random(f"{seed}/{index}") for index in range(WIDTH)]
        self._clients: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._world.paused.clear()
        self._clients = [asyncio.create_task(self._go_on(rng)) for rng in self._rngs]

    async def pause(self) -> None:
        """Whoever dawdles goes away, what is open ends by itself, and what has not in time hangs up."""
        self._world.paused.set()
        _, late = await asyncio.wait(self._clients, timeout=_LAST_S)
        for client in late:
            client.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _go_on(self, rng: random.Random) -> None:
        acts, weights = list(_ACTS), list(_ACTS.values())
        while not self._world.paused.is_set():
            await self._act(rng.choices(acts, weights)[0], rng)

    async def _act(self, act: Act, rng: random.Random) -> None:
        name = act.__name__
        self._world.num_acts[name] += 1
        try:
            await act(self._world, rng)
        except (OSError, asyncio.IncompleteReadError) as error:
            # Who is refused while it still sends may be reset before it has read why.
            if act.__module__ != bad.__name__:
                self._world.fault(f"{name}: {type(error).__name__}: {error}")
        except Exception as error:  # what came was no HTTP; and a task's own end would go unnoticed
            self._world.fault(f"{name}: {type(error).__name__}: {error}")
