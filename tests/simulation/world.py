"""One world: two apis, an engine and its supervisor, clients, and whatever can happen to them. Everything is
drawn from one seed, so seed and commit repeat it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from server.sequence import Death
from tests.simulation.api_process import ApiProcess
from tests.simulation.clients import Client, PiecesClient, PlainClient
from tests.simulation.clock import Clock
from tests.simulation.engine_process import KILL, EngineProcess, Parts
from tests.simulation.invariants import check_idle, check_settled, check_step
from tests.simulation.pipe import Connection
from tests.simulation.rates import draw_pipe_faults, draw_rates, draw_sizes
from tests.simulation.resuming_client import ResumingClient
from tests.simulation.sim_supervisor import SimSupervisor
from tests.simulation.workload import Asked, Workload

_CALM_EVERY = 800  # steps
_CALM_S = 250.0  # of the clock, and
_CALM_STEPS = 4_000  # in which everything must come to its end (I9)
_MOST_IDLE_S = 250.0  # between two steps, whatever goes wrong
_CALM_DEATHS = 100  # all that poison is open is tried meanwhile
_MAX_OPEN = 9


@dataclass
class World:
    seed: int
    parts: Parts = field(default_factory=Parts)

    def __post_init__(self) -> None:
        self.rng = rng = Random(self.seed)
        self.clock = Clock()
        self.sizes, self.rates = draw_sizes(rng), draw_rates(rng)
        self.pipe_faults = draw_pipe_faults(rng)
        self.workload = Workload(rng, self.sizes, poison=self.rates.poison)
        self.trace: deque[tuple[float, str, Any]] = deque(maxlen=50)
        self.seen: Counter[str] = Counter()  # what has happened, how often
        self.num_steps = 0
        self.clients: list[Client] = []
        self.is_calm = False
        self.never_gets_on = False  # each life ends in its first step
        self.supervisor = SimSupervisor(self.clock, rng, self._spawn)
        self.supervisor.begin()
        # A trial is alone only where there is one api, as there is.
        num_apis = 1 if self.rates.poison else 2
        self.apis = [self._new_api() for _ in range(num_apis)]
        self._arrive()
        self._fault()

    def run(self, max_steps: int) -> None:
        """Raises AssertionError, or what the code under it raises."""
        try:
            self._run(max_steps)
        finally:
            self.supervisor.board.close()

    def _run(self, max_steps: int) -> None:
        while self.num_steps < max_steps:
            goal = self.num_steps + _CALM_EVERY
            while self.num_steps < goal:
                self._run_until_step()
            self.calm_down()
        self.seen["parks"] += sum(api.book.num_parks for api in self.apis)
        self.break_down()

    def _run_until_step(self) -> None:
        num_steps, end_s = self.num_steps, self.clock.now_s + _MOST_IDLE_S
        while self.num_steps == num_steps:
            self.clock.run_next()
            assert self.supervisor.given_up is None, "the supervisor gave up"
            assert self.clock.now_s < end_s, "I9: no step for long"

    def calm_down(self) -> None:
        """Faults stop and nothing new comes: I6, I9, and nothing is left anywhere."""
        self.note("calm", None)
        self.is_calm, self.pipe_faults.is_on = True, False
        for api in self.apis:
            api.has_slow_socket = False
        if self.supervisor.engine is not None:
            self.supervisor.engine.go_on()
        self._run_until(lambda: all(client.outcome for client in self.clients), "I9: no progress")
        end_s = self.clock.now_s + 66.0
        self._run_until(lambda: self.clock.now_s > end_s, "I9: it does not come to rest")
        self._run_until(self._is_idle, "I6: work is left")
        check_idle(self)
        self._forget_ended()
        self.is_calm, self.pipe_faults.is_on = False, True
        self._arrive()
        self._fault()

    def _forget_ended(self) -> None:
        self.seen.update(client.outcome for client in self.clients if client.outcome)
        self.clients = [client for client in self.clients if not client.outcome]

    def _is_idle(self) -> bool:
        engine = self.supervisor.engine
        return engine is not None and engine.is_idle

    def _run_until(self, is_done: Callable[[], bool], what: str) -> None:
        end_s, end_steps = self.clock.now_s + _CALM_S, self.num_steps + _CALM_STEPS
        end_deaths = self.supervisor.num_deaths + _CALM_DEATHS
        while not is_done():
            self.clock.run_next()
            assert self.supervisor.given_up is None, "the supervisor gave up"
            assert self.clock.now_s < end_s and self.num_steps < end_steps, what
            assert self.supervisor.num_deaths < end_deaths, "I9: it dies again and again"

    def break_down(self) -> None:
        """An engine that completes no step any more is given up, and soon."""
        self.never_gets_on = True
        self._kill()
        num_deaths = self.supervisor.num_deaths
        for _ in range(100_000):
            if self.supervisor.given_up is not None:
                break
            self.clock.run_next()
        assert self.supervisor.given_up is not None, "it is started again and again"
        assert self.supervisor.num_deaths - num_deaths <= 5

    def note(self, what: str, of: Any) -> None:
        self.seen[what] += 1
        self.trace.append((self.clock.now_s, what, of))

    # -- processes

    def _spawn(self, life: int, deaths: list[Death]) -> EngineProcess:
        self.note("start", life)
        engine = EngineProcess(
            self.clock,
            self.rng,
            self.sizes,
            self.parts,
            self.supervisor.board,
            life,
            deaths,
            self._on_engine_death,
            self._on_step,
        )
        if self.never_gets_on:
            engine.device.doom = "dispatch"
        elif self._is_fair() and self.rng.random() < 0.05:
            engine.device.doom = self.rng.choice(("dispatch", "result"))  # while it replays
        return engine

    def _on_engine_death(self, exit_code: int, fault: str | None) -> None:
        self.note("death", exit_code)
        engine = self.supervisor.engine
        assert engine is not None
        self._count(engine)
        for owner, seq_id in self.supervisor.board.read().suspects:
            api = engine.apis[owner]
            assert isinstance(api, ApiProcess)
            if exit_code != KILL:
                api.in_deaths.add(seq_id)
        self.supervisor.on_death(exit_code, fault)

    def _count(self, engine: EngineProcess) -> None:
        stats = engine.engine.stats()
        self.seen["preemptions"] += stats.num_preemptions
        self.seen["cache hits"] += stats.num_cache_hits
        self.seen["replayed tokens"] += stats.num_replayed_tokens
        self.seen["drafts"] += stats.num_draft_tokens
        self.seen["drafts drawn"] += stats.num_accepted_tokens
        self.seen["late masks"] += engine.grammars.num_late
        self.seen["poisoned"] += engine.device.num_poisoned

    def _on_step(self, engine: EngineProcess) -> None:
        self.num_steps += 1
        check_step(engine, self.num_steps)
        has_trial = any(api.book._trial is not None for api in self.apis)
        if has_trial and self._is_fair() and self.rng.random() < 0.1:
            self._kill()  # nobody is to be blamed for that

    def _new_api(self) -> ApiProcess:
        has_room = self.rates.has_room
        return ApiProcess(
            self.clock,
            self.rng,
            self._connect,
            ring_bytes=2 << 20 if has_room else self.rng.choice((600, 3_000)),
            kept_bytes=64 << 20 if has_room else self.rng.choice((4_000, 20_000)),
            on_settled=check_settled,
        )

    def _connect(self, api: ApiProcess) -> Connection | None:
        engine = self.supervisor.engine
        if engine is None or not engine.is_alive:
            return None
        connection = Connection(self.clock, self.pipe_faults, api.receive, engine.receive)
        engine.connect(api, connection)
        return connection

    def _kill(self) -> None:
        if self.supervisor.engine is not None:
            self.supervisor.engine.die(KILL)

    # -- clients

    def _arrive(self) -> None:
        if self.is_calm:
            return
        self.clock.after(2 * self.rates.arrival_s * self.rng.random(), self._arrive)
        self._forget_ended()
        if len(self.clients) < _MAX_OPEN:
            self.submit(self.workload.draw())

    def submit(self, asked: Asked) -> None:
        api = self.rng.choice(self.apis)
        if not api.knows_engine:
            return
        run = api.start(asked.plan, asked.key_name, asked.max_queue_s)
        if run is None:
            assert asked.is_poison, "an innocent request is refused"
            self.note("refused", asked)
            return
        self.note(asked.kind, asked)
        args = (self.clock, self.rng, api, asked, run)
        if asked.kind == "plain":
            self.clients.append(PlainClient(*args))
        elif asked.kind == "stream":
            self.clients.append(PiecesClient(*args))
        else:
            has_room = self.rates.has_room
            self.clients.append(ResumingClient(*args, self.rates.cut, has_room=has_room))
        if self.rng.random() < 0.2 and not asked.failures:
            self.workload.remember(asked)
        api.settle()

    # -- faults

    def _fault(self) -> None:
        if self.is_calm:
            return
        self.clock.after(2 * self.rates.fault_s * self.rng.random(), self._fault)
        if not self._is_fair():
            return
        what = self.rng.choice(self.rates.faults)
        engine = self.supervisor.engine
        if what == "api crash":
            if self.rng.random() < 0.1:
                self._crash_api()
        elif what == "burst":
            for _ in range(self.sizes.max_num_seqs):
                self.submit(self.workload.draw_large())
        elif engine is not None:
            self.note(what, None)
            self._harm(engine, what)

    def _harm(self, engine: EngineProcess, what: str) -> None:
        rng = self.rng
        if what == "kill":
            engine.die(KILL)
        elif what in ("dispatch", "result"):
            engine.device.doom = what
        elif what == "send":
            engine.server.is_to_die_sending = True
        elif what == "own death":
            self._die_of_itself(engine)
        elif what == "stop":
            engine.stop()
            self.clock.after(rng.choice((0.05, 0.3, 5.0)), engine.go_on)
        elif what == "drop":
            engine.server.drop_one(rng.randrange(len(self.apis)))
        else:
            engine.blocks.deallocate(engine.blocks.allocate(engine.blocks.num_available))

    def _die_of_itself(self, engine: EngineProcess) -> None:
        """Not with somebody alone in it: he would be blamed, and rightly so by all that is known."""
        books = [api.book for api in self.apis]
        has_suspects = any(book._trial is not None or book._suspects for book in books)
        has_blamed = any(seq.num_deaths for book in books for seq in book.open.values())
        if not has_suspects and not has_blamed:
            engine.device.doom, engine.device.is_own_doom = "result", True

    def _is_fair(self) -> bool:
        """Too much at once, with no step in between, is a reason to give up."""
        is_quiet = self.is_calm or self.never_gets_on
        return not is_quiet and self.supervisor.policy._num_barren <= 1

    def _crash_api(self) -> None:
        index = self.rng.randrange(len(self.apis))
        dead = self.apis[index]
        self.note("api crash", index)
        dead.crash()
        for client in self.clients:
            if client.api is dead and not client.outcome:
                client.on_api_crash()
        self.seen["parks"] += dead.book.num_parks
        self.apis[index] = self._new_api()
