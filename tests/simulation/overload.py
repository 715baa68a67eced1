"""Admission and engine together under load, over a clock that only steps and waiting move: the real scheduler
and the real estimate, a device whose steps cost what they are said to. Knows no HTTP and no processes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from server.api.admission.admission import Admission, Applicant
from server.api.admission.ticket import Ticket
from server.api.admission.waiting_room import Load
from server.engine.block_manager import BlockManager
from server.engine.engine import Engine
from server.engine.prefix_cache import PrefixCache
from server.engine.scheduler import Scheduler
from server.errors import RequestError
from server.ipc.frames import EngineInfo
from server.runner.batch import StepBatch, StepResult
from server.sequence import SamplingParams, SequenceRequest

NUM_ROWS, BUDGET, MAX_LEN = 64, 256, 1024
INFO = EngineInfo(MAX_LEN, 64, NUM_ROWS, 16, 4096, "cpu", "float32", "fp")
STEP_S, PROMPT_ROW_S, TOKEN_ROW_S = 0.004, 0.00005, 0.00025  # a full step: 20 ms


class _Done:
    def __init__(self, result: StepResult) -> None:
        self.result = lambda: result


class CostlyDevice:
    """A Runner that takes its time, and draws the same id for ever."""

    max_steps_in_flight = 1

    def __init__(self, spend: Callable[[float], None]) -> None:
        self._spend = spend
        self.slowness: Callable[[], float] = lambda: 1.0

    def dispatch(self, batch: StepBatch) -> _Done:
        num_sampled = sum(row.is_sampling for row in batch.scheduled)
        num_rows = sum(row.num_scheduled_tokens for row in batch.scheduled)
        seconds = (
            STEP_S + PROMPT_ROW_S * (num_rows - num_sampled) + TOKEN_ROW_S * num_sampled
        )  # a chunk's last row costs as a generated one
        self._spend(seconds * self.slowness())
        return _Done(StepResult([1] * num_sampled, {}, {}))


@dataclass
class Request:
    """What became of it; times are of the world's clock."""

    arrived_s: float
    tenant: str
    prompt: int
    max_tokens: int
    status: str = "open"  # "refused", "expired", "done"
    retry_after_s: float | None = None
    first_s: float | None = None
    token_s: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return float("inf") if self.first_s is None else self.first_s - self.arrived_s


class World:
    def __init__(self, max_queue_s: float, seed: int = 1) -> None:
        self.now_s = 0.0
        self.rng = Random(seed)
        self.busy_s = 0.0
        self.device = CostlyDevice(self._spend)
        scheduler = Scheduler(
            BlockManager(INFO.num_blocks, PrefixCache(INFO.block_size)),
            max_num_seqs=NUM_ROWS,
            max_num_batched_tokens=BUDGET,
            max_model_len=MAX_LEN,
        )
        self.engine = Engine(scheduler, self.device, INFO.vocab_size)
        self.max_queue_s = max_queue_s
        self.admission = Admission(max_queue_s, clock=lambda: self.now_s, uniform=self.rng.uniform)
        self.requests: list[Request] = []
        self._open: dict[int, tuple[Request, Ticket]] = {}
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._num_due = self._num_submitted = 0
        self.on_end: Callable[[Request], None] = lambda _: None

    def _spend(self, seconds: float) -> None:
        self.now_s += seconds
        self.busy_s += seconds

    def at(self, at_s: float, call: Callable[[], object]) -> None:
        self._num_due += 1
        heapq.heappush(self._due, (at_s, self._num_due, call))

    def send(
        self, tenant: str = "", *, prompt: int | None = None, max_tokens: int | None = None
    ) -> Request:
        request = Request(
            self.now_s,
            tenant,
            prompt or self.rng.randint(16, 64),
            max_tokens or self.rng.randint(64, 192),
        )
        self.requests.append(request)
        self._apply(request)
        return request

    def send_politely(self, num_retries: int = 2, request: Request | None = None) -> None:
        """As the official clients do: who is refused comes back when he was told to, twice."""
        if request is None:
            request = self.send()
        else:
            self._apply(request)
        if request.status == "refused" and num_retries:
            assert request.retry_after_s is not None
            again = partial(self.send_politely, num_retries - 1, request)
            self.at(self.now_s + request.retry_after_s, again)

    def _apply(self, request: Request) -> None:
        tenant, request.status = request.tenant, "open"
        who = Applicant(tenant, self.now_s, self.max_queue_s)
        try:
            self.admission.check(who)
            loads = [Load(1, request.prompt, request.max_tokens)]
            ticket = self.admission.admit(who, loads, request.prompt)
        except RequestError as error:
            request.status, request.retry_after_s = "refused", error.retry_after_s
            return
        seq_id, self._num_submitted = self._num_submitted, self._num_submitted + 1
        ids = [self.rng.randrange(64) for _ in range(request.prompt)]
        params = SamplingParams(request.max_tokens, seed=1)
        self.engine.submit(
            SequenceRequest(
                seq_id, ids, 0, params, tenant=tenant, max_queue_s=self.admission.left_s(who)
            ),
            now_s=self.now_s,
        )
        self._open[seq_id] = (request, ticket)

    def offer(self, per_s: float, until_s: float, tenant: str = "", **fields: int) -> None:
        """An open loop: requests come whatever becomes of them."""

        due_s = self.now_s
        while (due_s := due_s + self.rng.expovariate(per_s)) < until_s:
            self.at(due_s, lambda: self.send(tenant, **fields))

    def run(self, until_s: float) -> None:
        while self.now_s < until_s:
            while self._due and self._due[0][0] <= self.now_s:
                heapq.heappop(self._due)[2]()
            if self.engine.has_work:
                self._step()
            else:
                self.now_s = min(until_s, self._due[0][0] if self._due else until_s)

    def _step(self) -> None:
        added = self.engine.step(self.now_s)
        self.admission.on_stats(self.engine.stats(self.busy_s), INFO)
        for _, output in added.outputs:
            request, ticket = self._open[output.seq_id]
            request.token_s.append(self.now_s)
            if output.first is not None:
                request.first_s = self.now_s
                ticket.places[0].begin()
            if output.finish_reason is not None:
                self._end(output.seq_id, "done", by_itself=True)
        for _, failure in added.failures:
            self._end(failure.seq_id, failure.kind, by_itself=False)

    def _end(self, seq_id: int, status: str, *, by_itself: bool) -> None:
        request, ticket = self._open.pop(seq_id)
        request.status = status
        ticket.places[0].end(len(request.token_s), by_itself=by_itself)
        self.on_end(request)

    def tokens_per_s(self, begin_s: float, end_s: float) -> float:
        """Of requests that were answered in full."""
        done = (request for request in self.requests if request.status == "done")
        return sum(begin_s <= at_s < end_s for r in done for at_s in r.token_s) / (end_s - begin_s)
