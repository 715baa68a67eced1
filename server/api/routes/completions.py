"""POST /v1/completions: from the body to a submitted run, or to the kept one that it repeats."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable

from starlette.requests import Request
from starlette.responses import Response

from server.api.engine_client import EngineClient
from server.api.generation import Generation
from server.api.http.request_log import KEY_NAME
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
from server.api.request.long_work import off_loop
from server.api.request.parsing import parse_completion
from server.api.request.planning import Plan, plan
from server.api.request.protocol import CompletionRequest
from server.errors import EngineGoneError, RequestError
from server.ipc.frames import EngineInfo
from server.tokenizer import Tokenizer

_OFF_LOOP_BYTES = 1 << 16  # larger bodies are parsed in a thread


class CompletionsRoute:
    """What the route needs, given once."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        model_name: str,
        engine: EngineClient,
        metrics: Metrics,
        kept: KeptRuns,
    ) -> None:
        self._tokenizer = tokenizer
        self._names = TokenNames(tokenizer)
        self._model_name = model_name
        self._engine = engine
        self._metrics = metrics
        self._kept = kept
        self._idempotency = Idempotency()

    async def __call__(self, request: Request) -> Response:
        arrived_at = time.monotonic()
        key_name = request.scope.get(KEY_NAME, "")
        has_ids = _asks_for_ids(request)
        value = idempotency_value(request.headers.getlist(HEADER))
        body = await read_json_body(request)
        if value is None:
            keeper = Keeper(self._kept, key_name, None)
            return await self._respond(body, arrived_at, keeper, has_ids=has_ids)
        entry, is_first = self._idempotency.claim(key_name, value, await digest_of(body))
        if not is_first:
            return repeat(self._kept, await entry.wait(), has_ids=has_ids)
        with entry.failing():
            keeper = Keeper(self._kept, key_name, entry)
            return await self._respond(body, arrived_at, keeper, has_ids=has_ids)

    async def _respond(
        self, body: bytes, arrived_at: float, keeper: Keeper, *, has_ids: bool
    ) -> Response:
        """`has_ids`: a header asks for them."""
        parsed = await _parse(body)
        if parsed.model is not None and parsed.model != self._model_name:
            raise unknown_model()
        if has_ids and not parsed.stream:
            raise needs_stream()
        info = await self._ready_info()
        planned = await plan(parsed, self._tokenizer, info)
        has_ids = has_ids or bool(planned.options.resumable)

        def start() -> Awaitable[Run]:
            return self._start(planned, info, arrived_at, keeper.key_name)

        if has_ids or keeper.is_repeatable:
            return keeper.response(start, planned, has_ids=has_ids)
        return CompletionResponse(start, planned)

    async def _start(self, planned: Plan, info: EngineInfo, arrived_at: float, tenant: str) -> Run:
        """Submits. From here on somebody must read the run, and end it."""
        view = RequestView(planned.request, self._tokenizer, self._names)
        prompts = [view.prompt(prompt_ids) for prompt_ids in planned.prompts]
        choices = [view.choice(prompt) for prompt in prompts for _ in range(planned.n)]
        generation = await self._submit(planned, info, tenant)
        head = self._head(planned, info)
        timers = [SequenceTimer(self._metrics, arrived_at) for _ in choices]
        return Run(planned, head, generation, choices, timers, prompts)

    async def _ready_info(self) -> EngineInfo:
        try:
            return await self._engine.ready_info()
        except EngineGoneError:
            self._metrics.on_rejection("engine_gone")
            raise

    async def _submit(self, planned: Plan, info: EngineInfo, tenant: str) -> Generation:
        try:
            generation = await self._engine.submit(planned.requests(tenant), info)
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


def _asks_for_ids(request: Request) -> bool:
    """As stream_options.resumable does."""
    values = request.headers.getlist(RESUMABLE)
    if values not in ([], ["0"], ["1"]):
        raise RequestError(f"{RESUMABLE} must be 0 or 1.", param=RESUMABLE)
    return values == ["1"]


async def _parse(body: bytes) -> CompletionRequest:
    if len(body) <= _OFF_LOOP_BYTES:
        return parse_completion(body)
    return await off_loop(parse_completion, body)
