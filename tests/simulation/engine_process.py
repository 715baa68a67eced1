"""One life of an engine process: the real loop, engine, scheduler, blocks and cache over a fake device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from server.board import SERVING, Board
from server.engine.block_manager import BlockManager
from server.engine.engine import Engine
from server.engine.loop import EngineLoop
from server.engine.prefix_cache import PrefixCache
from server.engine.scheduler import Scheduler
from server.engine.speculation import Speculation
from server.engine.step_shape import StepShape
from server.ipc.frames import EngineInfo
from server.sequence import Death
from tests.engine.fake_grammars import VOCAB_SIZE, FakeGrammars
from tests.simulation.clock import Clock
from tests.simulation.foreseeing import Foreseeing
from tests.simulation.pipe import Connection
from tests.simulation.sim_device import OwnDeathError, SimDevice
from tests.simulation.sim_server import Killed, SimServer

STEP_S = 0.001
SEGV, KILL, EXCEPTION = -11, -9, 1


@dataclass(frozen=True)
class Parts:
    """The classes that an engine is made of; a planted bug replaces one."""

    cache: type[PrefixCache] = PrefixCache
    blocks: type[BlockManager] = BlockManager
    scheduler: type[Scheduler] = Scheduler
    engine: type[Engine] = Engine
    speculation: type[Speculation] = Foreseeing


@dataclass(frozen=True)
class Sizes:
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_steps_in_flight: int
    max_mask_delay: int
    shape: StepShape | None = None
    is_speculating: bool = False


class EngineProcess:
    def __init__(
        self,
        clock: Clock,
        rng: Random,
        sizes: Sizes,
        parts: Parts,
        board: Board,
        life: int,
        deaths: list[Death],
        on_death: Callable[[int, str | None], None],
        on_step: Callable[[EngineProcess], None],
    ) -> None:
        self._clock = clock
        self._on_death = on_death
        self._on_step = on_step
        self.cache = parts.cache(sizes.block_size)
        self.blocks = parts.blocks(sizes.num_blocks, self.cache)
        self.scheduler = parts.scheduler(
            self.blocks,
            max_num_seqs=sizes.max_num_seqs,
            max_num_batched_tokens=sizes.max_num_batched_tokens,
            max_model_len=sizes.max_model_len,
            shape=sizes.shape,
        )
        self.device = SimDevice(
            num_blocks=sizes.num_blocks,
            block_size=sizes.block_size,
            max_num_seqs=sizes.max_num_seqs,
            max_num_batched_tokens=sizes.max_num_batched_tokens,
            max_model_len=sizes.max_model_len,
            vocab_size=VOCAB_SIZE,
            max_steps_in_flight=sizes.max_steps_in_flight,
            keeps_history=False,
        )
        delay = sizes.max_mask_delay
        self.grammars = FakeGrammars(lambda: rng.randint(0, delay))
        self.speculation = parts.speculation(self.scheduler, 4.0) if sizes.is_speculating else None
        self.engine = parts.engine(
            self.scheduler,
            self.device,
            VOCAB_SIZE,
            grammars=self.grammars,
            board=board,
            speculation=self.speculation,
        )
        self.server = SimServer(info_of(sizes), life, deaths)
        self._loop = EngineLoop(self.engine, self.server, lambda: clock.now_s, board)  # type: ignore[arg-type]
        self.is_alive = True
        self.is_stopped = False  # by a signal: it takes no turn
        self.apis: list[object] = []  # whose connection each owner is
        self._turn_at_s = -1.0  # of the turn that is planned
        board.set_phase(SERVING)
        self._plan_turn(clock.now_s)

    @property
    def is_idle(self) -> bool:
        return not self.engine.has_work and not self.server.events

    def connect(self, api: object, connection: Connection) -> None:
        self.apis.append(api)
        self.server.accept(connection)

    def receive(self, connection: Connection, data: bytes | None) -> None:
        if self.is_alive:
            self.server.receive(connection, data)
            if self.server.events:
                self._plan_turn(self._clock.now_s)

    def stop(self) -> None:
        self.is_stopped = True

    def go_on(self) -> None:
        if self.is_alive and self.is_stopped:
            self.is_stopped = False
            self._turn_at_s = -1.0
            self._plan_turn(self._clock.now_s)

    def die(self, exit_code: int, fault: str | None = None) -> None:
        """What it has sent still arrives."""
        if self.is_alive:
            self.is_alive = False
            self.server.close()
            self._on_death(exit_code, fault)

    def _plan_turn(self, at_s: float) -> None:
        if self._turn_at_s < 0 or at_s < self._turn_at_s:
            self._turn_at_s = at_s
            self._clock.at(at_s, self._turn)

    def _turn(self) -> None:
        now_s = self._clock.now_s
        if not self.is_alive or self.is_stopped or now_s != self._turn_at_s:
            return  # an earlier turn came in between
        self._turn_at_s = -1.0
        num_steps = self.device.num_steps
        try:
            self._loop.turn()
        except Killed:
            self.die(KILL)
            return
        except OwnDeathError:
            self.die(SEGV if self.device.num_steps % 2 else EXCEPTION)
            return
        self._plan_next(now_s)
        if self.device.num_steps > num_steps:
            self._on_step(self)

    def _plan_next(self, now_s: float) -> None:
        if self.engine.can_step or self.server.events:
            self._plan_turn(now_s + STEP_S)
        else:
            self._plan_turn(now_s + self._loop._max_wait_s())


def info_of(sizes: Sizes) -> EngineInfo:
    return EngineInfo(
        sizes.max_model_len,
        VOCAB_SIZE,
        sizes.max_num_seqs,
        sizes.block_size,
        sizes.num_blocks,
        "fake",
        "none",
        "fp_fake",
    )
