"""POST /v1/completions: from the body to a submitted run, or to the kept one that it repeats.

Whether a request is let in is asked three times, each time with what is known of it: at the door, before its
body is read; before its prompts are tokenised; and when it is submitted. Only the last answer takes anything.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from server.api.admission.admission import Admission, Applicant
from server.api.admission.waiting_room import NOTHING, Load
from server.api.engine_client import EngineClient
from server.api.generation import Generation
from server.api.kept.idempotency import HEADER, Idempotency, digest_of, idempotency_value
from server.api.kept.keeper import RESUMABLE, Keeper, needs_stream, repeat
from server.api.kept.kept_runs import KeptRuns
from server.api.metrics.metrics import Metrics
from server.api.metrics.sequence_timer import SequenceTimer
from server.api.reply.logprobs import TokenNames
from server.api.reply.replies import Head
from server.api.reply.request_view import RequestView
from server.api.reply.responses import CompletionResponse
from server.api.reply.run import Run
from server.api.request.body import read_json_body
from server.api.request.long_work import bodies
from server.api.request.parsing import parse_completion
from server.api.request.planning import MAX_COST, MAX_SEQUENCES, Plan, plan
from server.api.request.prompts import given_prompts
from server.api.request.protocol import DEFAULT_MAX_TOKENS, CompletionRequest
from server.api.routes.admission_door import APPLICANT
from server.errors import EngineGoneError, RequestError
from server.ipc.frames import EngineInfo
from server.tokenizer import Tokenizer

_OFF_LOOP_BYTES = 1 << 16  # larger bodies are parsed in a thread
_CHARS_PER_TOKEN = (
    4  # a guess that is mostly too high: what is refused by it would be refused in any case
)


class CompletionsRoute:
    """What the route needs, given once."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        model_name: str,
        engine: EngineClient,
        metrics: Metrics,
        kept: KeptRuns,
        admission: Admission,
        idempotency: Idempotency,
    ) -> None:
        self._tokenizer = tokenizer
        self._names = TokenNames(tokenizer)
        self._model_name = model_name
        self._engine = engine
        self._metrics = metrics
        self._kept = kept
        self._admission = admission
        self._idempotency = idempotency

    async def __call__(self, request: Request) -> Response:
        who = request.scope[APPLICANT]
        has_ids = _asks_for_ids(request)
        value = idempotency_value(request.headers.getlist(HEADER))
        body = await read_json_body(request)
        # its turn is nothing that it could wait for before
        who = who.waiting_since(time.monotonic())
        if value is None:
            keeper = Keeper(self._kept, who.tenant, None)
            return await self._respond(body, who, keeper, has_ids=has_ids)
        entry, is_first = self._idempotency.claim(who.tenant, value, await digest_of(body))
        if not is_first:  # it costs nothing, and is refused by no limit
            return repeat(self._kept, await entry.wait(), has_ids=has_ids)
        with entry.failing():
            self._admission.check(who)
            keeper = Keeper(self._kept, who.tenant, entry)
            return await self._respond(body, who, keeper, has_ids=has_ids)

    async def _respond(
        self, body: bytes, who: Applicant, keeper: Keeper, *, has_ids: bool
    ) -> Response:
        """`has_ids`: a header asks for them."""
        parsed = await _parse(body)
        if parsed.model is not None and parsed.model != self._model_name:
            raise unknown_model()
        if has_ids and not parsed.stream:
            raise needs_stream()
        info = await self._ready_info(who)
        if not who.is_hurried:  # an engine that starts again is no queue
            who = who.waiting_since(time.monotonic())
        self._admission.check(who, *_guess(parsed, info), parsed.priority or 0)
        planned = await plan(parsed, self._tokenizer, info)
        has_ids = has_ids or bool(planned.options.resumable)

        def start() -> Awaitable[Run]:
            return self._start(planned, info, who)

        if has_ids or keeper.is_repeatable:
            return keeper.response(start, planned, has_ids=has_ids)
        return CompletionResponse(start, planned)

    async def _start(self, planned: Plan, info: EngineInfo, who: Applicant) -> Run:
        """Submits. From here on somebody must read the run, and end it."""
        give_back = self._admission.hold(planned.num_bytes)
        try:
            return await self._admitted(planned, info, who, give_back)
        except BaseException:
            give_back()
            raise

    async def _admitted(
        self, planned: Plan, info: EngineInfo, who: Applicant, give_back: Callable[[], None]
    ) -> Run:
        priority = planned.request.priority or 0
        ticket = self._admission.admit(who, _loads(planned), planned.num_prompt_tokens, priority)
        places = ticket.places
        try:
            view = RequestView(planned.request, self._tokenizer, self._names)
            prompts = [view.prompt(prompt_ids) for prompt_ids in planned.prompts]
            choices = [view.choice(prompt) for prompt in prompts for _ in range(planned.n)]
            head = self._head(planned, info)
            timers = [SequenceTimer(self._metrics, who.arrived_s, place) for place in places]
            generation = await self._submit(planned, info, who)
        except BaseException:
            ticket.cancel()
            raise
        return Run(planned, head, generation, choices, timers, prompts, give_back)

    async def _ready_info(self, who: Applicant) -> EngineInfo:
        """What it waits here counts where its client is in a hurry."""
        max_wait_s = self._admission.left_s(who) if who.is_hurried else math.inf
        try:
            return await self._engine.ready_info(max_wait_s)
        except EngineGoneError:
            if who.is_hurried:
                self._admission.left_s(who)
            self._metrics.on_rejection("engine_gone")
            raise

    async def _submit(self, planned: Plan, info: EngineInfo, who: Applicant) -> Generation:
        requests = planned.requests(who.tenant, self._admission.left_s(who))
        try:
            generation = await self._engine.submit(requests, info)
            generation.grammar_field = planned.grammar_field
        except EngineGoneError:
            self._metrics.on_rejection("engine_gone")
            raise
        self._metrics.on_submit(
            planned.prompts,
            n=planned.num_returned,
            num_sequences=planned.n,
            max_tokens=planned.params.max_tokens,
        )
        return generation

    def _head(self, planned: Plan, info: EngineInfo) -> Head:
        return Head(
            id=f"cmpl-{planned.request.request_id or uuid.uuid4().hex}",
            created=int(time.time()),
            model=self._model_name,
            system_fingerprint=info.system_fingerprint,
            seed=planned.seed,
        )


def unknown_model() -> RequestError:
    return RequestError(
        "This model is not served here; GET /v1/models lists the one that is.",
        param="model",
        code="model_not_found",
        status=404,
    )


def _guess(parsed: CompletionRequest, info: EngineInfo) -> tuple[Load, int]:
    """What it asks for, and what its key is charged for it, as far as that is known without a tokenizer.
    Nothing for what will be refused as invalid: that is told to everybody at any time."""
    given = given_prompts(parsed)
    n = max(parsed.n or 1, parsed.best_of or 1)
    wanted = DEFAULT_MAX_TOKENS if parsed.max_tokens is None else parsed.max_tokens
    num_tokens = 0
    if parsed.truncate_prompt_tokens is None:  # else few of them may be read
        num_tokens = sum(
            len(each) // _CHARS_PER_TOKEN if isinstance(each, str) else len(each) for each in given
        )
    num_sequences = n * len(given)
    load = Load(num_sequences, n * num_tokens, num_sequences * wanted)
    if num_sequences > MAX_SEQUENCES or wanted > info.max_model_len or load.num_tokens > MAX_COST:
        return NOTHING, 0
    return load, num_tokens + load.max_tokens


def _loads(planned: Plan) -> list[Load]:
    max_tokens = planned.params.max_tokens
    return [
        Load(1, len(prompt_ids), max_tokens)
        for prompt_ids in planned.prompts
        for _ in range(planned.n)
    ]


def _asks_for_ids(request: Request) -> bool:
    """As stream_options.resumable does."""
    values = request.headers.getlist(RESUMABLE)
    if values not in ([], ["0"], ["1"]):
        raise RequestError(f"{RESUMABLE} must be 0 or 1.", param=RESUMABLE)
    return values == ["1"]


async def _parse(body: bytes) -> CompletionRequest:
    if len(body) <= _OFF_LOOP_BYTES:
        return parse_completion(body)
    return await bodies.run(len(body), parse_completion, body)
